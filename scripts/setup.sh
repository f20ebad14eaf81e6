# Sourced by the other scripts: a virtual environment in .venv with the project and the extras in $1 (such as "[dev]").
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${1:-}"
stamp=".venv/.installed$(printf '%s' "$extras" | tr -cd 'a-z')"
wanted="$(cksum < pyproject.toml)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    echo "installing cnncompress$extras into .venv (about two minutes the first time)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$extras"
    printf '%s\n' "$wanted" > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
