#!/usr/bin/env bash
# scripts/watch_arms.sh runs/ep_c512/NAME...
# Waits until each of these runs has ended (its summary.json is there), telling every minute how far each is. Then the
# picture of their losses over steps and over the sum of their learning rates, and the evidence of all in results/.
# Hardware: any; it reads what the runs write.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1
. scripts/ep_one.sh

if [ $# -eq 0 ]; then
  sed -n "2s/^# /usage: /p" scripts/watch_arms.sh >&2
  exit 2
fi
for run in "$@"; do
  [ -d "$run" ] || { echo "$run is no folder; give those of runs" >&2; exit 2; }
done
left=("$@")
while [ ${#left[@]} -gt 0 ]; do
  now=()
  for run in "${left[@]}"; do
    [ -s "$run/summary.json" ] && { echo "# $run has ended: $(tail -n 1 "$run/log.txt")"; continue; }
    now+=("$run")
    echo "$run: $(grep '^step' "$run/log.txt" 2>/dev/null | tail -n 1)"
  done
  left=("${now[@]}")
  [ ${#left[@]} -eq 0 ] || sleep "${EVERY:-60}"
done
python -m ep_c512.report keep "$@" &&
  python -m ep_c512.lr_overlay "$@" --output results/ep_c512/watched.json &&
  python -m ep_c512.report
