#!/usr/bin/env bash
# scripts/addition.sh [FLAGS...]
# The sweeps of addition/EXPERIMENTS.md, each a process with one thread, two at a time (JOBS=4 on more cores). Hardware:
# 2 CPU cores, 5 to 20 minutes a sweep. Evidence goes to results/addition/ as each ends; a sweep that has it there is left
# out, so the same command goes on after any interruption. ARMS="starts-456p" for these only. FLAGS go to every sweep.
set -uo pipefail
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

LOW="--pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 --use-rmsnorm --tie-qkv shareA_tieKV"
declare -A FLAGS=(
  [starts-456p]="reliable $LOW --seeds 1000-1039"
  [log-512p-long]="train --pos-rank 3 --qkv-rank 3 --attn-out-rank 3 --ffn-rank 3 --seeds 42-49 --train-steps 100000"
)
# The recipe less one thing, 16 single starts each.
less() { FLAGS[less-$1]="reliable $LOW --budget 0 --seeds 2000-2015 ${*:2}"; }
less nothing
less stage --first-stage 0 --rehearse 0
less rehearsal --rehearse 0
less mastery --mastery 0
less carries --carry 0
less softening --soften 1
less decay --weight-decay 0
less decay-end --decay-until 0
less large-start --init-std 0.02
less high-rate --lr 0.02
# Ever fewer parameters, 64 starts each.
small() { FLAGS[smallest-$1p]="smallest --seeds 1000-1063 ${*:2}"; }
small 30 --no-centred --final __0 --up __/__/__ --down ___/___
small 24
small 21 --gate _0/00/__
small 20 --gate 00/00/__
small 19 --gate 00/00/__ --joined 0__/___
small 18 --gate 00/00/__ --joined 0__/___ --up 11/_A/_a
small 16 --gate 00/00/__ --joined 0__/0_0 --up 11/0_/__
small 12 --gate 00/00/_1 --joined 0__/0_0 --up 00/01/11 --radius 1
# Parameters taken out of what reached 99 % in smallest-19p; each goes on from the models of the one that is named first.
SEEDS="1002 1020 1034 1062"
CHAIN="shrunk-16p shrunk-12p shrunk-11p shrunk-9p shrunk-8p shrunk-7p" # in this order
declare -A SHRUNK=(
  [shrunk-16p]="smallest-19p --joined 0__/0_0 --up 11/0_/__ --gate 00/00/__"
  [shrunk-12p]="shrunk-16p --joined 0__/0_0 --up 00/01/11 --gate 00/00/_1"
  [shrunk-11p]="shrunk-12p --joined 0__/0-0 --up 00/01/11 --gate 00/00/_1 --radius 0.08"
  [shrunk-9p]="shrunk-11p --joined 0__/0-0 --up 00/01/11 --gate 00/00/_1 --radius 0.08 --span 1 --scale 40"
  [shrunk-8p]="shrunk-9p --joined 0__/0-0 --up 00/01/11 --gate 00/00/71 --radius 0.08 --span 1 --scale 40"
  [shrunk-7p]="shrunk-8p --joined 0__/0-0 --up 00/01/11 --gate 00/00/71 --down __0/_10 --radius 0.08 --span 1 --scale 40"
)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

logged() { # NAME COMMAND...
  mkdir -p results/runs
  "${@:2}" >"results/runs/$1.txt" 2>&1 && return
  echo "$1 failed or was stopped, see results/runs/$1.txt" >&2
  return 255 # xargs starts no more
}
sweep() { # NAME RECIPE FLAGS...
  python -m addition.fast.sweep "$2" --run-name "$1" --resume "${@:3}" && python -m addition.report keep "results/runs/$1"
}
one() { # NAME RECIPE FLAGS...
  logged "$1" sweep "$@"
}
shrink() { # NAME SEED PARENT FLAGS...
  local start=results/runs/$3-seed$2/checkpoints/best.pt
  [ "$3" = smallest-19p ] && start=results/runs/$3/checkpoints/seed$2.pt
  logged "$1-seed$2" python -m addition.shrink --run-name "$1-seed$2" --seed "$2" --start "$start" --resume "${@:4}"
}
export -f python logged sweep one shrink

ARMS=${ARMS:-$(printf '%s\n' "${!FLAGS[@]}" | sort -r) $CHAIN}
for arm in $ARMS; do
  [ -n "${FLAGS[$arm]+known}${SHRUNK[$arm]+known}" ] && continue
  echo "ARMS: $arm is no arm; expected some of ${!FLAGS[*]} $CHAIN" >&2
  exit 2
done
for arm in $ARMS; do
  [ -z "${FLAGS[$arm]+known}" ] || [ -s "results/addition/$arm/summary.json" ] || echo "$arm ${FLAGS[$arm]} $*"
done | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}' || exit 1
for arm in $CHAIN; do
  [[ " $(echo $ARMS) " = *" $arm "* ]] && [ ! -s "results/addition/$arm/summary.json" ] || continue
  [ -e results/runs/smallest-19p/summary.json ] || one smallest-19p ${FLAGS[smallest-19p]} || exit 1
  printf '%s\n' $SEEDS | xargs -P "${JOBS:-2}" -I{} bash -c "shrink $arm {} ${SHRUNK[$arm]} $*" || exit 1
  python -m addition.report keep $(printf "results/runs/$arm-seed%s " $SEEDS) || exit 1
done
python -m addition.report
