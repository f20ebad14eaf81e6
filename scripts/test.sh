#!/usr/bin/env bash
# Everything that must hold: style, types, tests. Sets itself up from a bare clone.
source "$(dirname "$0")/setup.sh" "[dev]"
ruff check .
ruff format --check .
mypy
# one thread a worker: two workers with two threads each would fight for two cores
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_WORKERS:-2}" --durations=10 "$@"
