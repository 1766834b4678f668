#!/usr/bin/env bash
# scripts/ep_rounds.sh
# Rounds A, B and D of ep_c512/EXPERIMENTS.md, and what a step costs: trains a block without a penalty for STEPS steps,
# which takes it near its stability limit, and compares every estimator there. blowup.json says how near. Hardware: 2 CPU
# cores, with nothing else running, as times are measured; about 20 minutes in all.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

one edge-seed0 --preset mini --lr 3e-3 --radius 0.05 --feedback 1 --refine 0 --jacreg 0 --penalty full --schedule constant \
  --steps "${STEPS:-500}" || exit 1
at="--step-size 0.1 --free-steps 150 --nudged-steps 40"
python -m ep_c512.plateau_ablation runs/ep_c512/edge-seed0 $at --output results/ep_c512/plateau.json &&
  python -m ep_c512.navg_sweep runs/ep_c512/edge-seed0 $at --output results/ep_c512/navg.json &&
  python -m ep_c512.blowup_diag runs/ep_c512/edge-seed0 $at --output results/ep_c512/blowup.json &&
  python -m ep_c512.cost --output results/ep_c512/cost.json &&
  python -m ep_c512.bench --output results/ep_c512/speed.json &&
  python -m ep_c512.report
