#!/usr/bin/env bash
# Everything that must hold: style, types, tests. Sets itself up from a bare clone.
#   --all      the slow tests too
#   --oldest   only the tests, in an environment of the lowest versions that pyproject.toml allows
#   --newest   only the tests, in an environment of the versions that pip finds today
# Whatever else is given goes to pytest.
versions=locked tests=(-m "not slow")
while [ $# -gt 0 ]; do
    case "$1" in
        --all) tests=() ;;
        --oldest | --newest) versions="${1#--}" ;;
        *) break ;;
    esac
    shift
done
source "$(dirname "$0")/setup.sh" "[dev]" "$versions"
if [ "$versions" = locked ]; then
    ruff check .
    ruff format --check .
    mypy
fi
# one thread a worker: two workers with two threads each would fight for two cores
export OMP_NUM_THREADS=1
python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal --durations=10 ${tests[@]+"${tests[@]}"} "$@"
