#!/usr/bin/env bash
# The log's first half on this machine: baseline, ablations, batch 512, SAM, curricula, the carried state.
# Hardware: one GPU with 24 GB; the log's was an RTX 4090, and its figures are 2.3 hours for batch 128, 5 for batch 512,
# 6.3 with SAM (all from exp_sam on): expect about 45 hours in all, a little more with the ablations. --preset mini takes
# minutes a run on two CPU cores, --preset smoke seconds.
# Stopped or failed: the same command skips what is finished and resumes the rest. Flags go to every run.
set -u
shopt -s nullglob
cd "$(dirname "$0")/.." || exit 1
exec scripts/chain.sh local sudoku.py sudoku_bs512.py ablation_*.py exp_sam.py train_mixed.py train_curriculum.py \
  train_curriculum_reverse.py exp_recur_add.py exp_no_x_after_init.py -- "$@"
