#!/usr/bin/env bash
# The log's best recipe on Modal: warm-up, cosine, without SAM, in 50K steps, with GELU.
# Hardware: five H200s at once. Expect about 4 hours until the last run is home and 13 GPU hours to pay, by the log's
# figures: 2 hours for 70K steps, 4 with SAM (exp_warmup, exp_cosine), 1.4 for 50K.
# Stopped or failed: the same command skips what is finished and resumes the rest. Flags go to every run.
set -u
cd "$(dirname "$0")/.." || exit 1
exec scripts/chain.sh modal exp_warmup.py exp_cosine.py exp_cosine_no_sam.py exp_cosine_50k.py exp_cosine_gelu.py -- "$@"
