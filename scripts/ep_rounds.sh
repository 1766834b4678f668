#!/usr/bin/env bash
# scripts/ep_rounds.sh
# Rounds A, B and D of ep_c512/EXPERIMENTS.md: trains a block until it is near its stability limit, then compares every
# estimator there. Hardware: 2 CPU cores, about 20 minutes in all.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

one edge-seed0 --preset mini --lr 3e-3 --radius 0.05 --feedback 1 --refine 0 --jacreg 0 --penalty full --schedule constant \
  --steps "${STEPS:-500}" || exit 1
at="--step-size 0.1 --free-steps 150 --nudged-steps 40"
python -m ep_c512.plateau_ablation runs/ep_c512/edge-seed0 $at --output results/ep_c512/plateau.json &&
  python -m ep_c512.navg_sweep runs/ep_c512/edge-seed0 $at --output results/ep_c512/navg.json &&
  python -m ep_c512.blowup_diag runs/ep_c512/edge-seed0 $at --output results/ep_c512/blowup.json &&
  python -m ep_c512.report
