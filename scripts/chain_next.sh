#!/usr/bin/env bash
# scripts/chain_next.sh [FLAGS...]
# After bptt_rescue.sh: its best pair, trained from new weights for 12,000 steps (the log's architecture ceiling), with
# SEEDS="0 1 2". FLAGS go to every run and must be those of the grid, but for --steps. Hardware: as bptt_rescue.sh; a GPU
# takes hours a seed (not run), 2 CPU cores at --preset mini --steps 6000 half an hour.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

best=$(python -m ep_c512.report winner rescue) || exit 1
echo "# the best pair of the grid: $best"
case " $* " in *" --steps "*) steps= ;; *) steps="--steps 12000" ;; esac
for seed in ${SEEDS:-0 1 2}; do
  name=ceiling-seed$seed
  [ -s "results/ep_c512/$name/summary.json" ] ||
    echo "$name --estimator bptt --feedback 1 $best --penalty full --jacreg 0.1 --jr-floor 0.1 $steps $*"
done | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}' || exit 1
python -m ep_c512.report
