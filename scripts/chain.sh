#!/usr/bin/env bash
# scripts/chain.sh local|modal FILE.py... -- FLAGS..., or scripts/cosine.sh local|modal FLAGS...
# Runs experiments with these flags, one after the other here or all at once on Modal. Each gets --resume, so one that
# has finished ends at once. A failed run does not stop the rest; it is listed at the end, and the exit status is 1.
set -u
CDPATH= cd -- "$(dirname -- "$0")/.." || exit 1

where=${1:-}
shift
files=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  files+=("$1")
  shift
done
if [[ $where != @(local|modal) ]] || [ ${#files[@]} -eq 0 ]; then
  sed -n '2s/^# /usage: /p' scripts/chain.sh >&2
  exit 2
fi
[ $# -eq 0 ] || shift

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

if [ "$where" = modal ]; then
  python -m plumbing.remote fan "${files[@]}" -- "$@"
  exit
fi

stop() {
  echo "# stopped in $file; the same command continues from there" >&2
  exit "$1"
}
trap 'stop 130' INT # Ctrl-C reaches the run too; this line takes effect after it has saved and ended

failed=()
for file in "${files[@]}"; do
  python "$file" "$@" --resume
  status=$?
  case $status in
    0) ;;
    129 | 130 | 143) stop $status ;; # the run got SIGHUP, Ctrl-C or SIGTERM: stop the whole chain
    *) failed+=("$file (status $status)") ;;
  esac
done

[ ${#failed[@]} -gt 0 ] || exit 0
echo "# failed; the same command runs these again:" >&2
printf '#   %s\n' "${failed[@]}" >&2
exit 1
