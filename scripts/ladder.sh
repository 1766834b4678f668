#!/usr/bin/env bash
# scripts/ladder.sh PRESET [modal] [FLAGS...]
# Every experiment of the log at this preset: one seed of all, then two more seeds of those that carry its insights.
# Hardware: mini, 2 CPU cores, 2 to 10 minutes a run, two at a time with one thread each (JOBS=4 on more cores), some 4
# hours in all; gpu, one H200, minutes a run, one at a time; gpu modal, a rented H200 for each of a seed's runs, some 60.
# Evidence goes to results/ as each run ends, and a run that has it there is left out: the same command goes on after any
# interruption, also on another machine that has what was committed. SEEDS="20 21" for other seeds. Flags go to every
# run: those of FLAGS below, which change no experiment.
set -u
shopt -s nullglob
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

export PRESET=${1:-}
shift
where=local
[ "${1:-}" != modal ] || { where=modal && shift; }
if [[ $PRESET != @(mini|gpu|full) ]]; then
  sed -n '2s/^# /usage: /p' scripts/ladder.sh >&2
  exit 2
fi
FLAGS='@(device|compile|no-compile|wandb|test-iterations)?(=*)'
for word in "$@"; do
  [[ $word != --* || ${word#--} = $FLAGS ]] && continue
  echo "ladder.sh: $word could change what an experiment is; give one of --${FLAGS:2:-6}" >&2
  exit 2
done

seeds=(${SEEDS:-20 21 22}) # the presets were chosen by looking at lower ones

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

insights=$(python insights.py) || exit 1 # names of the experiments that contrasts need

one() { # FILE SEED FLAGS...: run, then keep the evidence
  [ ! -s "$STOPPED" ] || return 0
  local file=$1 stem name=$PRESET-seed$2
  stem=$(basename "$file" .py)
  mkdir -p "runs/$stem"
  python "$file" --preset "$PRESET" --seed "$2" --resume "${@:3}" >"runs/$stem/$name.txt" 2>&1
  local status=$?
  case $status in
    0)
      echo "$(date +%H:%M) $stem $name: $(tail -n 1 "runs/$stem/$name.txt")"
      python report.py keep "runs/$stem/$name" || echo "runs/$stem/$name: evidence not kept" | tee -a "$FAILED" >&2
      ;;
    129 | 130 | 143) echo "$file --seed $2" >>"$STOPPED" ;; # SIGHUP, Ctrl-C or SIGTERM: no more are started
    *) echo "$file --seed $2 failed (status $status), see runs/$stem/$name.txt" | tee -a "$FAILED" >&2 ;;
  esac
}
export -f python one
FAILED=$(mktemp) STOPPED=$(mktemp) group= && export FAILED STOPPED
trap 'rm -f "$FAILED" "$STOPPED"' EXIT

watched() { # COMMAND...: runs it in a process group of its own, so that a signal can be passed on to all of it
  set -m
  "$@" </dev/null &
  group=$!
  set +m
  wait "$group"
  local status=$?
  group=
  return $status
}

stop() { # the runs save and end, a second signal ends them at once; no more are started
  echo stopped >>"$STOPPED"
  trap 'kill -INT -- "-$group"' INT TERM HUP
  [ ! "$group" ] || kill -INT -- "-$group" 2>/dev/null
  while [ "$group" ] && kill -0 -- "-$group" 2>/dev/null; do sleep 0.2; done
  echo "# stopped; the same command goes on from there" >&2
  exit 130
}
trap stop INT TERM HUP

all() { # FLAGS...: every file of this seed
  printf '%s\n' "${files[@]}" | xargs -P "${JOBS:-$jobs}" -I{} bash -c 'one "$@"' one {} "$seed" "$@"
}

for seed in "${seeds[@]}"; do
  files=()
  for file in sudoku*.py ablation_*.py train_*.py exp_*.py pos_embedding/[!c]*.py; do
    stem=$(basename "$file" .py)
    case $stem in exp_iterate | exp_speedrun | exp_hard | exp_deep* | exp_suppose) continue ;; esac # ours, with a size of their own
    [ "$seed" = "${seeds[0]}" ] || [[ " $insights " = *" $stem "* ]] || continue
    [ -s "results/$stem/$PRESET-seed$seed/summary.json" ] || files+=("$file")
  done
  echo "# seed $seed: ${#files[@]} runs to do"
  [ ${#files[@]} -gt 0 ] || continue
  if [ "$where" = modal ]; then
    watched python -m plumbing.remote fan "${files[@]}" -- --preset "$PRESET" --seed "$seed" "$@"
    status=$?
    [ $status -lt 129 ] || stop
    [ $status -eq 0 ] || echo "some of seed $seed, see above" >>"$FAILED"
    for file in "${files[@]}"; do
      folder=runs/$(basename "$file" .py)/$PRESET-seed$seed
      [ ! -s "$folder/summary.json" ] || python report.py keep "$folder" || echo "$folder: not kept" >>"$FAILED"
    done
    continue
  fi
  jobs=2
  if [ "$PRESET" = gpu ]; then jobs=1; else export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
  watched all "$@"
  [ ! -s "$STOPPED" ] || stop
done

python report.py || echo "report.py, see above" >>"$FAILED"
[ -s "$FAILED" ] || exit 0
echo "# failed; the same command runs these again:" >&2
sed 's/^/#   /' "$FAILED" >&2
exit 1
