#!/usr/bin/env bash
# The log's best recipe on Modal, one change a run: warm-up, cosine, no SAM, 50K steps, GELU.
# Hardware: five H200s at once. Expect about 15 hours until the last run ends and 50 GPU hours to pay, a rough estimate
# from the one reliable time in the log: 2.7 hours for 50K steps at batch 2048 without SAM, which doubles the time.
# Stopped or failed: the same command resumes what has not finished. Flags go to every run.
exec "$(dirname -- "$0")/chain.sh" modal exp_warmup.py exp_cosine.py exp_cosine_no_sam.py \
  exp_cosine_50k.py exp_cosine_gelu.py -- "$@"
