#!/bin/sh
# Makes .venv with the pinned dependencies: by uv where it is there, else by venv and pip.
set -eu
cd "$(dirname "$0")"

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

python=
for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
  if command -v "$name" >/dev/null && fits "$name"; then python=$(command -v "$name"); break; fi
done
if [ -z "$python" ]; then
  found=$(python3 --version 2>/dev/null || echo "no python3")
  echo "registration-worker needs Python 3.11, 3.12 or 3.13; found: $found." >&2
  echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
  exit 1
fi

echo "Setting up .venv with $("$python" --version) (once; a minute or so)" >&2
rm -f .venv/ready
if command -v uv >/dev/null; then
  [ -x .venv/bin/python ] && fits .venv/bin/python || uv venv --quiet --python "$python" .venv
  uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[dev]'
else
  if ! { [ -x .venv/bin/python ] && fits .venv/bin/python; }; then
    rm -rf .venv
    "$python" -m venv .venv || {
      echo "This Python has no venv module (on Debian: apt install python3-venv)." >&2
      exit 1
    }
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
fi
touch .venv/ready
