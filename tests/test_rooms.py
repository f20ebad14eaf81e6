"""The rooms of the package: imports go one way, and what the documents name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_rooms_import_only_what_lies_below_them(monkeypatch):
    """The order is that of `[tool.importlinter]` in pyproject.toml, which names every room."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_the_command_line_calls_only_the_api():
    """A command parses, calls one function and prints: it reaches no other room, not even below the API.

    Runtimes are known by the registry that they are in, which imports nothing.
    """
    allowed = {"api", "cli", "config", "errors", "text", "terminal", "names", "reporting", "__version__"}
    registry = {"cnncompress.latency.runtimes", "cnncompress.latency.setting"}
    found = set()
    for path in (ROOT / "cnncompress" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnncompress"):
                names = [alias.name for alias in node.names] if node.module == "cnncompress" else [node.module]
                found |= {
                    (path.name, name.removeprefix("cnncompress.").partition(".")[0])
                    for name in names
                    if name not in registry
                }
            elif isinstance(node, ast.Import):
                found |= {(path.name, alias.name) for alias in node.names if alias.name.startswith("cnncompress")}
    assert {("decompose.py", "api"), ("report.py", "reporting")} <= found
    assert {(file, room) for file, room in found if room not in allowed} == set()


def test_settings_end_at_the_api():
    """Below it, functions take small values."""
    rooms = [path for path in (ROOT / "cnncompress").iterdir() if path.name not in ("api.py", "cli", "config")]
    files = [file for room in rooms for file in ([room] if room.suffix == ".py" else room.rglob("*.py"))]
    assert len(files) > 100
    assert [str(f) for f in files if "cnncompress.config" in f.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_files_that_are_there(document):
    """Paths under tests/ in the README's table of promises, relative links, and rooms in the contributor's guide."""
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {ROOT / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    promised = {ROOT / "tests" / path for path in re.findall(r"`([\w/]+\.py)(?:::\w+)?`(?=[^|\n]*\|\n)", text)}
    named = {ROOT / path for path in re.findall(r"`((?:cnncompress|tests|scripts|docs)/[\w/.]*)`", text)}
    assert links
    assert [str(path) for path in links | promised | named if not path.exists()] == []
