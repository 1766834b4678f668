#!/usr/bin/env bash
# scripts/ep.sh [FLAGS...]
# The arms of ep_c512/EXPERIMENTS.md at the mini preset, three seeds each, two at a time with one thread each (JOBS=4 on
# more cores). Hardware: 2 CPU cores, 5 to 40 minutes a run. Evidence goes to results/ep_c512/ as each run ends; a run
# that has it there is left out, so the same command goes on after any interruption. SEEDS="0 1" for fewer seeds,
# ARMS="recipe energy" for these arms in place of those of MAIN, ARMS=all for every one. FLAGS go to every run;
# ep_c512.report refuses to average seeds of different settings.
set -uo pipefail
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

# The preset is our recipe: tracking EP, feedback that rises from 0 to 1, a spectral penalty, radius 1e-3, a rate of
# 2e-2. The log's own is this instead:
LOG="--lr 3e-3 --radius 0.05 --feedback 1 --refine 0"
# With its penalty and controller. Its target of 1.5e-3 is of a step of 0.1: 7.5e-3 is the same at the preset's of 0.5.
FULL="$LOG --penalty full --jacreg 0.1 --jr-floor 0.1 --jr-max 16 --res-target 7.5e-3"
# The same time in steps that do not overshoot large negative eigenvalues, and the target of such a step.
SMALL="--step-size 0.15 --free-steps 100 --res-target 2.25e-3"
LONG="--steps 6000 --save-every 500"
declare -A FLAGS=(
  [recipe]="--estimator tracking-2"
  [recipe-bptt]="--estimator bptt"
  [recipe-frozen]="--estimator frozen-2"
  [recipe-long]="--estimator tracking-2 $LONG"
  [recipe-bptt-long]="--estimator bptt $LONG"
  [recipe-wsd]="--schedule wsd"
  [closed]="--feedback 1" # the recipe with all feedback from the start, with larger radii, a larger cap, the log's rate
  [radius-0.05]="--radius 0.05"
  [radius-0.01]="--radius 0.01"
  [cap-1.6]="--cap 1.6"
  [rate-3e-3]="--lr 3e-3"
  [bp-long]="--estimator bp --lr 5e-3 $LONG" # one ordinary layer, at the best of the rates below
  [bptt]="--estimator bptt $FULL"
  [frozen]="--estimator frozen-2 $FULL"     # EP as the log began
  [tracking]="--estimator tracking-2 $FULL" # from random weights
  [first-phase]="--estimator frozen-2 --steps 1000 --schedule constant $FULL"
  [two-phase]="--estimator tracking-2 --steps 1000 --warmup 0 $FULL" # from where its first phase ended
  [diagonal]="--penalty diagonal --estimator tracking-2 ${FULL/--penalty full/}"
  [bounded]="--estimator tracking-2 --penalty-bound 0.3 $FULL"
  [freeze-floor]="--estimator bptt ${FULL/--jr-max 16/--jr-max 0.1}"
  [strict]="--estimator bptt ${FULL/7.5e-3/1.5e-3}" # a target that the controller has to work for
  [specnorm]="--estimator bptt $LOG --jacreg 0 --specnorm --rho 0.9"
  [no-penalty]="--estimator bptt $LOG --jacreg 0"
  [energy]="--estimator bptt --attn-mode energy $FULL"
  [mono]="--estimator bptt --attn-mode mono $FULL $SMALL"
  [nemon]="--estimator bptt --attn-mode nemon $FULL $SMALL"
)
for steps in 1 2 4 8; do # BPTT over so few steps that nothing settles: what does an equilibrium cost?
  FLAGS[unrolled-$steps]="--estimator bptt --jacreg 0 --feedback 1 --free-steps $steps --gate 1000 --abort 1000"
done
for rate in 1e-3 3e-3 5e-3 1e-2 2e-2 4e-2; do
  FLAGS[bp-lr$rate]="--estimator bp --lr $rate"
done
for rate in 3e-3 1e-2; do # the layer with embeddings as large as the block's
  FLAGS[bp-unit-lr$rate]="--estimator bp --embedding 1 --lr $rate"
done
MAIN="bp-lr5e-3 recipe recipe-bptt bptt frozen tracking two-phase recipe-long"
if [ "${ARMS:-}" = all ]; then # but for first phases, which their second phases train
  ARMS=$(printf '%s\n' "${!FLAGS[@]}" | grep -v '^first-phase$' | sort | tr '\n' ' ')
fi
for arm in ${ARMS:-$MAIN}; do
  [ -n "${FLAGS[$arm]+known}" ] || { echo "ARMS: $arm is no arm; expected some of ${!FLAGS[*]}" >&2; exit 2; }
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
