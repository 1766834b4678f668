#!/usr/bin/env bash
# ./run.sh COMMAND...   runs a command with the packages of requirements.txt. They are installed into .venv the first
# time, and again when requirements.txt has changed, an install was cut short, .venv is damaged or the folder has moved.
set -euo pipefail

script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do
  link=$(readlink -- "$script")
  [[ $link = /* ]] || link=$(dirname -- "$script")/$link
  script=$link
done
root=$(unset CDPATH && cd -P -- "$(dirname -- "$script")" && pwd)
venv=$root/.venv
wanted=$(cksum <"$root/requirements.txt")

fail() { echo "run.sh: $*" >&2 && exit 1; }

# The first line of .venv/installed: where .venv was made, and the version of its Python. After a complete install the
# checksum of requirements.txt and the folders of all packages follow.
place() { "$venv/bin/python" -ISc 'import sys; print(sys.argv[1], *sys.version_info[:2])' "$root"; }

state() { # new: make .venv from nothing; outdated: install into it; ready
  local here line
  here=$(place) || { echo new && return; }
  {
    IFS= read -r line && [ "$line" = "$here" ] || { echo new && return; }
    IFS= read -r line && [ "$line" = "$wanted" ] || { echo outdated && return; }
    while IFS= read -r line; do [ -d "$venv/$line" ] || { echo new && return; }; done
    echo ready
  } <"$venv/installed" || echo new
} 2>/dev/null

lock() { # one install at a time; the lock ends with this shell
  [ -w "$root" ] || fail "$root is read-only and its .venv is not complete; clone the repository to another place"
  if command -v flock >/dev/null; then
    exec 9>>"$root/requirements.txt" # nothing is written to it
    flock -n 9 || { echo "run.sh: another process is installing; waiting for it" >&2 && flock 9; }
    return
  fi
  local link=$root/.venv.lock owner said=
  until ln -s $$ "$link" 2>/dev/null; do # a link that names this process is made in one step
    owner=$(readlink "$link") && [ ! "$said" ] && said=yes && echo "run.sh: process $owner is installing; waiting" >&2
    [ ! "$owner" ] || ps -p "$owner" >/dev/null || rm -f "$link" # that process was killed
    sleep 1
  done
  trap 'rm -f "$root/.venv.lock"' EXIT
}

install() {
  local before python folders='lib/python*/site-packages/*/'
  before=$(state)
  [ "$before" != ready ] || return 0 # the process that held the lock has installed
  echo "run.sh: installing requirements.txt into .venv" >&2
  if [ "$before" = new ]; then
    for python in "${PYTHON:-false}" python3 python3.13 python3.12 python3.11 python ''; do
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    [ "$python" ] || fail "Python 3.11 or later is needed; install it, or name it: PYTHON=/path/to/python3 ./run.sh ..."
    "$python" -m venv --clear "$venv" >&2 || fail "cannot make .venv; see above (Debian: apt install python3-venv)"
  fi
  place >"$venv/installed"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt" >&2 ||
    fail "the install failed; see above, then run the same command again: it goes on from there"
  (place && echo "$wanted" && cd "$venv" && ls -d $folders | grep -v -e info/ -e __) >"$venv/installed"
}

[ $# -gt 0 ] || { sed -n '2,3s/^# //p' "$script" && exit 2; }
[ "$(state)" = ready ] || (lock && install)
PATH=$venv/bin:$PATH exec "$@"
