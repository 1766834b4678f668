#!/usr/bin/env bash
# scripts/baseline.sh local|modal FLAGS...
# The log's first half: baseline, two ablations, batch 512, SAM, curricula, recurrent state.
# Hardware: local, one GPU with 24 GB; modal, one H200 per run, all at once (SUDOKU_MODAL_GPU=L40S is enough for batch
# 512). On the log's RTX 4090 sudoku.py took 2.3 hours in bf16 and exp_sam.py 6.3; the runs after it use SAM too, so
# expect about 55 hours in all on such a card. --preset mini takes minutes a run on two CPU cores.
# Stopped or failed: the same command resumes what has not finished. Flags go to every run.
exec "$(dirname -- "$0")/chain.sh" "${1:-}" sudoku.py ablation_no_iteration.py \
  ablation_no_intermediate.py sudoku_bs512.py exp_sam.py train_mixed.py train_curriculum.py \
  train_curriculum_reverse.py exp_recur_add.py exp_no_x_after_init.py -- "${@:2}"
