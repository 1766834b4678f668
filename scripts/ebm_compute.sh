#!/usr/bin/env bash
# scripts/ebm_compute.sh
# The picture of ebm/README.md: what networks solve for how much computing, all trained for about as long. Hardware: 2 CPU
# cores and nothing else on them, 20 to 35 minutes for each of three networks (ours is runs/ours/full-seed0), then 20.
# The numbers of steps are those of the machine that the picture was made on; summary.json says how long they took.
set -eu
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

python exp_speedrun.py --name equal-seed0 --steps 34000 --resume
python exp_cosine_no_sam.py --preset mini --data generated:30-62 --iterations 16 --batch 16 --steps 10000 \
  --name equal-seed0 --resume
python -m ebm.train --run 4 --preset mini --puzzles 500000 --name equal-seed0 --resume
python -m ebm.compute runs/ours/full-seed0 runs/exp_speedrun/equal-seed0 runs/exp_cosine_no_sam/equal-seed0 \
  runs/ebm/equal-seed0 --puzzles 100 --output results/ebm/compute.json
python -m ebm.report
