"""The rooms of the package: imports go one way, files and functions stay small, what the documents name is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnncompress

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "cnncompress").rglob("*.py"))
MOST_LINES, MOST_PARAMETERS = 300, 6


def test_rooms_import_only_what_lies_below_them():
    """The order is that of `[tool.importlinter]` in pyproject.toml, which names every room.

    In a process of its own: the linter turns off the loggers of the one that it runs in.
    """
    code = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_stay_short():
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {str(path): number for path, number in lines.items() if number > MOST_LINES} == {}


def functions(path):
    """The functions and methods of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_command(function):
    """True for a function whose parameters are the options of a command."""
    return any("command(" in ast.unparse(decorator) for decorator in function.decorator_list)


def parameters(function, public=False):
    """The names of a function's parameters; of a `public` one without the options that have defaults."""
    given = function.args
    options = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    named = [*given.posonlyargs, *given.args, *[o for o, default in options if default is None or not public]]
    rest = [extra for extra in (given.vararg, given.kwarg) if extra is not None]
    return [one.arg for one in (*named, *rest) if one.arg not in ("self", "cls")]


def test_functions_take_few_parameters():
    """Options of the public functions, each documented and with a default, do not count; nor do those of commands."""
    public = {(f"cnncompress.{home}", name) for name, home in cnncompress._HOME.items()}
    many = []
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        homes = {module, module.rpartition(".")[0]}  # a room tells of what is in its files
        for function in functions(path):
            seen = any((home, function.name) in public for home in homes)
            if not is_command(function) and len(parameters(function, seen)) > MOST_PARAMETERS:
                many.append(f"{module}.{function.name}: {', '.join(parameters(function))}")
    assert many == []


def test_options_of_public_functions_are_documented():
    """Every option is named in what the function says of itself."""
    silent = []
    for name in cnncompress.__all__:
        function = getattr(cnncompress, name)
        options = getattr(function, "__kwdefaults__", None) or {}
        silent += [f"{name}: {option}" for option in options if f"`{option}`" not in function.__doc__]
    assert silent == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/safety.md"])
def test_documents_name_files_that_are_there(document):
    """Paths under tests/ in the table of promises, relative links, and rooms in the contributor's guide."""
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {(ROOT / document).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    promised = {ROOT / "tests" / path for path in re.findall(r"`([\w/]+\.py)(?:::\w+)?`(?=[^|\n]*\|\n)", text)}
    named = {ROOT / path for path in re.findall(r"`((?:cnncompress|tests|scripts|docs)/[\w/.]*)`", text)}
    assert links | promised
    assert [str(path) for path in links | promised | named if not path.exists()] == []
