#!/usr/bin/env bash
# Make the lock files anew: requirements.lock (the newest versions) and requirements-oldest.lock (the lowest that
# pyproject.toml allows), each for every Python and system at once. Keeps to the constraints that pip is set to.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .venv-lock
.venv-lock/bin/python -m pip install -qq --disable-pip-version-check --upgrade uv
constraint="$(.venv-lock/bin/python -m pip config list | sed -n "s/^.*\.constraint='\(.*\)'$/\1/p" | head -n 1)"
compile() { # FILE RESOLUTION [OPTIONS]
    .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --upgrade \
        --no-emit-index-url --no-header --no-annotate ${constraint:+--constraint "$constraint"} \
        --extra dev --output-file "$1" --resolution "$2" pyproject.toml "${@:3}"
}
compile requirements.lock highest
# what accelerate and timm need in its newest version would keep click from its lowest
compile requirements-oldest.lock lowest-direct --constraint <(echo "huggingface-hub<1")
rm -r .venv-lock
