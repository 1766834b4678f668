#!/usr/bin/env bash
# The log's first half on this machine: baseline, ablations, batch 512, SAM, curricula, recurrent state.
# Hardware: one GPU with 24 GB. On the log's RTX 4090 sudoku.py took 2.3 hours in bf16 and exp_sam.py 6.3; the runs
# after exp_sam.py use SAM too, so expect about 50 hours in all. --preset mini takes minutes a run on two CPU cores.
# Stopped or failed: the same command resumes what has not finished. Flags go to every run.
set -u
shopt -s nullglob
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
exec scripts/chain.sh local sudoku.py sudoku_bs512.py ablation_*.py exp_sam.py train_mixed.py train_curriculum.py \
  train_curriculum_reverse.py exp_recur_add.py exp_no_x_after_init.py -- "$@"
