#!/usr/bin/env bash
# scripts/ep.sh [FLAGS...]
# The arms of ep_c512/EXPERIMENTS.md at the mini preset, three seeds each, two at a time with one thread each (JOBS=4 on
# more cores). Hardware: 2 CPU cores, 5 to 40 minutes a run. Evidence goes to results/ep_c512/ as each run ends; a run
# that has it there is left out, so the same command goes on after any interruption. SEEDS="0 1" for fewer seeds,
# ARMS="bp energy" for these arms in place of those of MAIN. FLAGS go to every run; ep_c512.report refuses to average
# seeds of different settings.
set -uo pipefail
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

CONTROLLED="--jacreg 0.1 --jr-floor 0.1 --jr-max 16 --gate-change 0.1" # the log's penalty, with its controller
RECIPE="--penalty spectral --cap 0.8 --jacreg 10 --jr-floor 10 --jr-max 10 --radius 0.01 --gate-change 0.1"
LONG="--steps 6000 --save-every 500"
declare -A FLAGS=(
  [bp]="--estimator bp --lr 1e-2"                    # one ordinary layer, at the best of the rates below
  [bptt]="--estimator bptt $CONTROLLED"              # the equilibrium block by BPTT
  [frozen]="--estimator frozen-2 $CONTROLLED"        # EP as the log began
  [tracking]="--estimator tracking-2 $CONTROLLED"    # from random weights
  [first-phase]="--estimator frozen-2 --steps 1000 --schedule constant $CONTROLLED"
  [two-phase]="--estimator tracking-2 --steps 1000 --warmup 0 $CONTROLLED" # from where its first phase ended
  [recipe]="--estimator tracking-2 $RECIPE"          # ours
  [recipe-bptt]="--estimator bptt $RECIPE"
  [recipe-frozen]="--estimator frozen-2 $RECIPE"
  [recipe-long]="--estimator tracking-2 $RECIPE $LONG"
  [recipe-bptt-long]="--estimator bptt $RECIPE $LONG"
  [bp-long]="--estimator bp --lr 1e-2 $LONG"
  [wsd]="--estimator tracking-2 --schedule wsd $RECIPE"
  [freeze-floor]="--estimator bptt --jacreg 0.1 --jr-floor 0.1 --jr-max 0.1"
  [specnorm]="--estimator bptt --jacreg 0 --specnorm --rho 0.9"
  [no-penalty]="--estimator bptt --jacreg 0"
  [energy]="--estimator bptt --attn-mode energy $CONTROLLED"
  [mono]="--estimator bptt --attn-mode mono $CONTROLLED"
  [nemon]="--estimator bptt --attn-mode nemon $CONTROLLED"
  [diagonal]="--estimator tracking-2 --penalty diagonal $CONTROLLED"
  [bounded]="--estimator tracking-2 --penalty-bound 0.3 $CONTROLLED"
)
for rate in 1e-3 3e-3 2e-2 4e-2; do
  FLAGS[bp-lr$rate]="--estimator bp --lr $rate"
done
MAIN="bp recipe recipe-bptt bptt frozen tracking two-phase recipe-long"
for arm in ${ARMS:-$MAIN}; do
  [ -n "${FLAGS[$arm]:-}" ] || { echo "ARMS: $arm is no arm; expected some of ${!FLAGS[*]}" >&2; exit 2; }
done

arm() { # NAME FLAGS...: the second phase follows the first
  case $1 in
    two-phase-*)
      first=${1/two/first}
      one "$first" --preset mini $FIRST $MORE || return
      if grep -q '"diverged_at"' "runs/ep_c512/$first/summary.json"; then
        echo "$first did not come to its end, so there is no second phase" >&2
      else
        one "$@" --warm "runs/ep_c512/$first"
      fi
      ;;
    *) one "$@" ;;
  esac
}
export -f arm
export FIRST=${FLAGS[first-phase]} MORE=$*

for seed in ${SEEDS:-0 1 2}; do
  for arm in ${ARMS:-$MAIN}; do
    [ -s "results/ep_c512/$arm-seed$seed/summary.json" ] || echo "$arm-seed$seed --preset mini ${FLAGS[$arm]} $*"
  done
done | xargs -P "${JOBS:-2}" -I{} bash -c 'arm {}' || exit 1
python -m ep_c512.report
