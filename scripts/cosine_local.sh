#!/usr/bin/env bash
# The log's best recipe on this machine: warm-up, cosine, without SAM, in 50K steps, with GELU.
# Hardware: one H200 (batch 4096 with 16 iterations needs most of its 141 GB). Expect about 13 hours, by the log's
# figures: 2 hours for 70K steps, 4 with SAM (exp_warmup, exp_cosine), 1.4 for 50K. --preset mini takes minutes a run
# on two CPU cores, --preset smoke seconds.
# Stopped or failed: the same command skips what is finished and resumes the rest. Flags go to every run.
set -u
cd "$(dirname "$0")/.." || exit 1
exec scripts/chain.sh local exp_warmup.py exp_cosine.py exp_cosine_no_sam.py exp_cosine_50k.py exp_cosine_gelu.py -- "$@"
