#!/usr/bin/env bash
# scripts/ebm_compute.sh
# The picture of ebm/README.md: what networks solve for how much computing, all trained for about as long, and what the
# log's model does in the end. Hardware: 2 CPU cores and nothing else on them, about 25 minutes for each of three networks
# (ours is runs/ours/full-seed0), then 30. The numbers of steps are those that took 25 minutes on the machine that the
# picture was made on; summary.json says how long they took.
set -eu
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

python exp_iterate.py --name equal-seed0 --steps 34000 --resume
python exp_cosine_no_sam.py --preset mini --data generated:30-62 --iterations 16 --batch 16 --steps 6500 \
  --name equal-seed0 --resume
python -m ebm.train --run 4 --preset mini --puzzles 600000 --name equal-seed0 --resume
python -m ebm.compute runs/ours/full-seed0 runs/exp_iterate/equal-seed0 runs/exp_cosine_no_sam/equal-seed0 \
  runs/ebm/equal-seed0 --puzzles 100 --output results/ebm/compute.json
for run in exp_iterate exp_cosine_no_sam; do python report.py keep "runs/$run/equal-seed0"; done
run=runs/ebm/equal-seed0
python -m ebm.evaluate $run --puzzles 300 --chains 4 --output $run/evaluation.json
python -m ebm.evaluate $run --no-langevin --output $run/evaluation-forward.json
for energy in penalty norm; do
  python -m ebm.evaluate $run --puzzles 300 --chains 4 --decodes 1 --energy $energy --output $run/evaluation-$energy.json
done
python -m ebm.report keep $run
python report.py
python -m ebm.report
