# Sourced by the scripts of ep_c512: `one NAME FLAGS...` trains and keeps the evidence; seed and name are in NAME.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python() {
  if [ -n "${PYTHON:-}" ]; then "$PYTHON" "$@"; else ./run.sh python "$@"; fi
}

one() { # NAME FLAGS...
  local run=runs/ep_c512/$1
  mkdir -p "$run"
  {
    python -m ep_c512.train --name "$1" --seed "${1##*-seed}" --resume "${@:2}" && python -m ep_c512.report keep "$run"
  } >"$run.txt" 2>&1 && return
  echo "$1 failed or was stopped, see $run.txt" >&2
  return 255 # xargs starts no more
}
export -f python one
