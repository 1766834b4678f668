#!/usr/bin/env bash
# scripts/ep_sample.sh FOLDER [FLAGS...]
# The recipe of ep_c512 on a text of your own, FOLDER/train.txt and FOLDER/valid.txt, against BPTT and one ordinary layer
# at several rates. SEEDS="0 1 2", RATES="3e-3 5e-3 1e-2" of the ordinary layer. Hardware: 2 CPU cores, 10 minutes a run,
# two at a time; FLAGS go to every run. Evidence goes to results/ep_c512/ as each run ends; a run that has it there is
# left out.
set -uo pipefail
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

if [ $# -eq 0 ] || [ ! -f "$1/train.txt" ] || [ ! -f "$1/valid.txt" ]; then
  sed -n "2s/^# /usage: /p" scripts/ep_sample.sh >&2
  echo "FOLDER must hold train.txt and valid.txt" >&2
  exit 2
fi
text="--data $1/train.txt --validation-data $1/valid.txt"
shift
for seed in ${SEEDS:-0 1 2}; do
  arms=("sample-recipe --estimator tracking-2" "sample-bptt --estimator bptt")
  for rate in ${RATES:-3e-3 5e-3 1e-2}; do
    arms+=("sample-bp-lr$rate --estimator bp --lr $rate")
  done
  for arm in "${arms[@]}"; do
    name=${arm%% *}-seed$seed
    [ -s "results/ep_c512/$name/summary.json" ] || echo "$name --preset mini ${arm#* } $text $*"
  done
done | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}' || exit 1
python -m ep_c512.report
