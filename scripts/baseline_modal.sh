#!/usr/bin/env bash
# The log's first half on Modal: baseline, ablations, batch 512, SAM, curricula, recurrent state.
# Hardware: one H200 per run, all at once; SUDOKU_MODAL_GPU=L40S is enough for batch 512. On the log's RTX 4090
# sudoku.py took 2.3 hours in bf16 and exp_sam.py, as all runs after it with SAM, 6.3; an H200 is faster.
# Stopped or failed: the same command resumes what has not finished. Flags go to every run.
set -u
shopt -s nullglob
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
exec scripts/chain.sh modal sudoku.py sudoku_bs512.py ablation_*.py exp_sam.py train_mixed.py train_curriculum.py \
  train_curriculum_reverse.py exp_recur_add.py exp_no_x_after_init.py -- "$@"
