#!/usr/bin/env bash
# ./run.sh COMMAND...   runs a command in .venv, which is made from requirements.txt the first time and whenever
# that file has changed. An install that was cut short is noticed and done again.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
venv=$root/.venv
if [ $# -eq 0 ]; then
  sed -n '2,3s/^# //p' "$0"
  exit 2
fi
wanted=$(cksum <"$root/requirements.txt")
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  python=
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "run.sh: Python 3.11 or later is needed; install it, or name one: PYTHON=/path/to/python3 ./run.sh ..." >&2
    exit 1
  fi
  echo "run.sh: installing requirements.txt into .venv, once" >&2
  rm -f "$venv/installed"
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
  if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt" >&2; then
    echo "run.sh: the install failed; see above, then run the same command again: it goes on from there" >&2
    exit 1
  fi
  echo "$wanted" >"$venv/installed"
fi
PATH=$venv/bin:$PATH exec "$@"
