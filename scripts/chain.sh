#!/usr/bin/env bash
# scripts/chain.sh local|modal FILE.py... -- FLAGS...
# Runs experiments, one after the other here or all at once on Modal, each with these flags. Finished runs are skipped,
# the others get --resume. A run that fails does not stop the rest; it is listed at the end and the exit status is 1.
set -u
cd "$(dirname "$0")/.." || exit 1

where=$1
shift
files=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  files+=("$1")
  shift
done
[ $# -gt 0 ] && shift

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

if [ "$where" = modal ]; then
  python -m plumbing.remote fan "${files[@]}" -- "$@"
  exit $?
fi

# The run's folder is runs/<experiment>/<name>; without --name it is called after the preset and the seed.
runs=runs name='' preset=full seed=0
for ((i = 1; i <= $#; i++)); do
  flag=${!i} next=$((i + 1))
  case $flag in
    *=*) value=${flag#*=} ;;
    *) value=${!next:-} ;;
  esac
  case ${flag%%=*} in
    --runs) runs=$value ;;
    --name) name=$value ;;
    --preset) preset=$value ;;
    --seed) seed=$value ;;
  esac
done

failed=()
for file in "${files[@]}"; do
  experiment=$(basename "$file" .py)
  folder=$runs/$experiment/${name:-$preset-seed$seed}
  if [ -e "$folder/summary.json" ]; then
    echo "# $folder is finished already"
    continue
  fi
  python "$file" "$@" --resume
  status=$?
  case $status in
    0) ;;
    130 | 143) # Ctrl-C, or the machine is going down: that is meant for the whole chain
      echo "# stopped in $file; the same command goes on from there" >&2
      exit $status
      ;;
    *) failed+=("$file (status $status)") ;;
  esac
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "# failed; the same command runs only these again:" >&2
  printf '#   %s\n' "${failed[@]}" >&2
  exit 1
fi
