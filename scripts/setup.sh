# Sourced by the other scripts: a virtual environment with the project and the extras in $1 (such as "[dev]"), in the
# versions that $2 names (locked, oldest or newest: see environment.py), whose programs come first on the path.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if [ "${2:-}" = oldest ] && [ -z "${PYTHON:-}" ] && python3.11 -c pass 2> /dev/null; then
    python=python3.11 # the oldest versions of some packages have nothing for newer ones
fi
PATH="$("$python" scripts/environment.py "${1:-}" "${2:-locked}"):$PATH"
export PATH
