#!/usr/bin/env bash
# scripts/ebm.sh [FLAGS...]
# What the log claims of its energy model, asked of small ones: seven arms, three seeds, each trained and evaluated, two
# at a time with one thread each (JOBS=4 on more cores). Hardware: 2 CPU cores, 10 to 30 minutes a run, 3 hours in all.
# Evidence goes to results/ebm/ as each run ends; a run that has it there is left out,
# so the same command goes on after any interruption. SEEDS="0 1" and ARMS="base" for fewer. FLAGS go to every training
# run; ebm.report refuses to average seeds of different settings.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

declare -A FLAGS=(
  [base]=""                                        # run 4, smaller
  [no-constraint]="--constraint-weight 0"          # without the rules' penalty in training
  [no-unit-norm]="--no-unit-norm"                  # z as long as the map makes it, as in runs 2 and 3; its noise is run 4's
  [target-trained]="--target-input trained"        # the target encoder's input weight follows, as the others do
  [wrong-tensor]="--vicreg-on prediction"          # the third bug of run 1, alone
  [run1]="--run 1"                                 # batch 16, a quarter; to compare the next with
  [first-form]="--run 1 --vicreg-on prediction --vicreg-variance 25 --vicreg-covariance 1 --decode-weight 0.1 --decode-cells all"
)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

one() { # NAME FLAGS...: train, evaluate, keep the evidence
  local run=runs/ebm/$1 asked="--puzzles 300 --chains 4" base=
  mkdir -p "$run"
  case $1 in base-*) base=1 ;; *) asked+=" --decodes 1" ;; esac # only base has the baseline of equal cost and more
  {
    python -m ebm.train --preset mini --name "$1" --seed "${1##*-seed}" --resume "${@:2}" &&
      python -m ebm.evaluate "$run" $asked --output "$run/evaluation.json" &&
      python -m ebm.evaluate "$run" --no-langevin --output "$run/evaluation-forward.json" &&
      { [ -z "$base" ] || further "$run" $asked --decodes 1; } &&
      { [ "$1" != base-seed0 ] || python -m ebm.interpret "$run" --puzzles 200; } &&
      python -m ebm.report keep "$run"
  } >"$run.txt" 2>&1 && return
  echo "$1 failed or was stopped, see $run.txt" >&2
  return 255 # xargs starts no more
}
further() { # RUN FLAGS...: the noise of true Langevin dynamics, and the other energies
  python -m ebm.evaluate "$@" --true-noise --output "$1/evaluation-true-noise.json" &&
    python -m ebm.evaluate "$@" --energy norm --output "$1/evaluation-norm.json" &&
    python -m ebm.evaluate "$@" --energy penalty --output "$1/evaluation-penalty.json"
}
export -f python one further

for seed in ${SEEDS:-0 1 2}; do
  for arm in ${ARMS:-base no-constraint no-unit-norm target-trained wrong-tensor run1 first-form}; do
    [ -s "results/ebm/$arm-seed$seed/summary.json" ] || echo "$arm-seed$seed ${FLAGS[$arm]} $*"
  done
done | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}' || exit 1
python -m ebm.report
