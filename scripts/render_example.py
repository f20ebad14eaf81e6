"""Run docs/example.py cell by cell and write what it says and prints as docs/example.md.

python scripts/render_example.py [OUTPUT]
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "docs" / "example.py"
PROSE = "[markdown]"


def cells(text: str) -> list[tuple[str, str]]:
    """The cells of a script in the percent format: their kind, "" for code, and what is in them."""
    parts = re.split(r"^# %%[ ]*(.*)\n", text, flags=re.MULTILINE)[1:]
    return [(kind, body.strip("\n")) for kind, body in zip(parts[::2], parts[1::2], strict=True)]


def render(text: str) -> str:
    """The script as Markdown, each cell of code followed by what it prints."""
    names: dict[str, object] = {}
    done = []
    for kind, body in cells(text):
        if kind == PROSE:
            done.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines()))
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, str(SOURCE), "exec"), names)
        done.append(f"```python\n{body}\n```")
        if printed.getvalue().strip():
            done.append(f"```\n{printed.getvalue().rstrip()}\n```")
    return "\n\n".join(done) + "\n"


if __name__ == "__main__":
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.with_suffix(".md")
    output.write_text(render(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
