"""The rooms of the package: imports go one way, and what the documents name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_rooms_import_only_what_lies_below_them():
    """The order is that of `[tool.importlinter]` in pyproject.toml, which names every room.

    In a process of its own: the linter turns off the loggers of the one that it runs in.
    """
    code = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/safety.md"])
def test_documents_name_files_that_are_there(document):
    """Paths under tests/ in the table of promises, relative links, and rooms in the contributor's guide."""
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {(ROOT / document).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    promised = {ROOT / "tests" / path for path in re.findall(r"`([\w/]+\.py)(?:::\w+)?`(?=[^|\n]*\|\n)", text)}
    named = {ROOT / path for path in re.findall(r"`((?:cnncompress|tests|scripts|docs)/[\w/.]*)`", text)}
    assert links | promised
    assert [str(path) for path in links | promised | named if not path.exists()] == []
