#!/bin/sh
# Makes .venv with the pinned dependencies, each checked against its hash: by uv where it is there, else by venv and pip.
set -eu
cd "$(dirname "$0")"

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }

python=
for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
  if command -v "$name" >/dev/null && fits "$name"; then python=$(command -v "$name"); break; fi
done
if [ -z "$python" ]; then
  found=$(python3 --version 2>/dev/null || echo "no python3")
  echo "registration-worker needs Python 3.11 to 3.14; found: $found." >&2
  echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
  exit 1
fi

echo "Setting up .venv with $("$python" --version) (once; a minute with uv, some minutes with pip)" >&2
rm -f .venv/ready
if command -v uv >/dev/null; then
  [ -x .venv/bin/python ] && fits .venv/bin/python || uv venv --quiet --clear --python "$python" .venv
  uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes \
    -r requirements/build.txt -r requirements/dev.txt
  uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e ./client -e .
else
  # One that uv made has no pip.
  if ! { [ -x .venv/bin/pip ] && fits .venv/bin/python; }; then
    rm -rf .venv
    "$python" -m venv .venv || {
      echo "This Python has no venv module (on Debian: apt install python3-venv)." >&2
      exit 1
    }
  fi
  pip=".venv/bin/python -m pip install --quiet --disable-pip-version-check"
  $pip --require-hashes -r requirements/build.txt -r requirements/dev.txt
  $pip --no-deps --no-build-isolation -e ./client -e .
fi
# Compiled once: a test starts many processes, and some environments forbid them to write what they compile.
.venv/bin/python -m compileall -q client sandbox worker
touch .venv/ready
