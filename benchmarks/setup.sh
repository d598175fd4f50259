#!/bin/sh
# Makes .venv/bench, with all contestants, and .venv/bench-arq. Beside .venv and not in it: what they
# bring along (uvloop, another parser for Redis) changes how others run.
set -eu
cd "$(dirname "$0")/.."

echo "Setting up .venv/bench (once; a minute or so)" >&2
rm -f .venv/bench/ready
if command -v uv >/dev/null; then
  uv venv --quiet --allow-existing --python .venv/bin/python .venv/bench
  uv venv --quiet --allow-existing --python .venv/bin/python .venv/bench-arq
  uv pip install --quiet --python .venv/bench/bin/python --require-hashes \
    -r requirements/build.txt -r requirements/bench.txt
  uv pip install --quiet --python .venv/bench/bin/python --no-deps --no-build-isolation -e ./client -e .
  uv pip install --quiet --python .venv/bench-arq/bin/python -r benchmarks/arq.txt
else
  .venv/bin/python -m venv .venv/bench
  .venv/bin/python -m venv .venv/bench-arq
  quiet="--quiet --disable-pip-version-check"
  # shellcheck disable=SC2086
  .venv/bench/bin/python -m pip install $quiet --require-hashes \
    -r requirements/build.txt -r requirements/bench.txt
  # shellcheck disable=SC2086
  .venv/bench/bin/python -m pip install $quiet --no-deps --no-build-isolation -e ./client -e .
  # shellcheck disable=SC2086
  .venv/bench-arq/bin/python -m pip install $quiet -r benchmarks/arq.txt
fi
touch .venv/bench/ready
