#!/usr/bin/env bash
# scripts/cosine.sh local|modal FLAGS...
# The log's best recipe, one change a run: warm-up, cosine, no SAM, 50K steps, GELU.
# Hardware: local, one H200 (batch 4096 with 16 iterations needs most of its 141 GB); modal, five at once. Expect about
# 50 GPU hours, on Modal 15 hours until the last run ends; a rough estimate from a later run of the log's project: 2.7
# hours for 50K steps at batch 2048 without SAM, which doubles it. --preset mini takes minutes a run on two CPU cores.
# Stopped or failed: the same command resumes what has not finished. Flags go to every run.
exec "$(dirname -- "$0")/chain.sh" "${1:-}" exp_warmup.py exp_cosine.py exp_cosine_no_sam.py exp_cosine_50k.py \
  exp_cosine_gelu.py -- "${@:2}"
