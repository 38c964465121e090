#!/usr/bin/env bash
# Makes .venv with r1 and the extras named, unless it is there and pyproject.toml has not changed since.
#   scripts/setup.sh dev,math,gym
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-math}"
stamp=".venv/.installed-$(cat pyproject.toml <(echo "$extras") | sha256sum | cut -c1-12)"
[ -f "$stamp" ] && exit 0

python=""
for candidate in python3.13 python3.12 python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
if [ -z "$python" ]; then
  echo "r1 needs Python 3.11 or newer; found $(python3 --version 2>&1 || echo none)" >&2
  exit 1
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing r1[$extras] into .venv (once) ..."
log=".venv/install.log"
if ! .venv/bin/python -m pip install --disable-pip-version-check -e ".[$extras]" >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "installation failed; the whole log is in $log" >&2
  exit 1
fi
touch "$stamp"
