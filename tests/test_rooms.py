"""The rooms of the package: imports go one way, and what the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_rooms_import_only_what_lies_below_them(monkeypatch):
    """The order is that of `[tool.importlinter]` in pyproject.toml, which names every room."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_files_that_are_there(document):
    """Paths under tests/ in the README's table of promises, relative links, and rooms in the contributor's guide."""
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {ROOT / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    promised = {ROOT / "tests" / path for path in re.findall(r"`([\w/]+\.py)(?:::\w+)?`(?=[^|\n]*\|\n)", text)}
    named = {ROOT / path for path in re.findall(r"`((?:cnncompress|tests|scripts|docs)/[\w/.]*)`", text)}
    assert links
    assert [str(path) for path in links | promised | named if not path.exists()] == []
