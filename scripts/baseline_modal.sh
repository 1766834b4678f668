#!/usr/bin/env bash
# The log's first half on Modal: baseline, ablations, batch 512, SAM, curricula, the carried state.
# Hardware: an H200 for each run, all at once; SUDOKU_MODAL_GPU=L40S is enough for batch 512. The log's figures are an
# RTX 4090's: 2.3 hours for batch 128, 5 for batch 512, 6.3 with SAM (all from exp_sam on). Expect no more than that.
# Stopped or failed: the same command skips what is finished and resumes the rest. Flags go to every run.
set -u
shopt -s nullglob
cd "$(dirname "$0")/.." || exit 1
exec scripts/chain.sh modal sudoku.py sudoku_bs512.py ablation_*.py exp_sam.py train_mixed.py train_curriculum.py \
  train_curriculum_reverse.py exp_recur_add.py exp_no_x_after_init.py -- "$@"
