"""What the documents show works: command lines are accepted as they stand, and the Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cnncompress.cli import cli as group
from tests.cli.conftest import listing

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
SMALL = {  # what a document says, and what stands for it in a test: the smallest network, few images
    '"resnet50"': '"digits_vgg"',
    '"resnet18"': '"digits_vgg"',
    '"imagenet/"': '"digits"',
    "preprocessing, 1000)": "preprocessing, 10)",
    "range(500)": "range(60)",
    "images=500": "images=60",
    "(1, 3, 224, 224)": "(1, 3, 32, 32)",
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every line of a block that calls the program, with the lines that it goes on in."""
    blocks = re.findall(r"```\w*\n(.*?)```", "\n".join(map(text_of, DOCUMENTS)), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [re.sub(r"^.*python -m (?=cnncompress )", "", line.strip()) for line in lines]
    calls = [re.sub(r"^torchrun .* -m (?=cnncompress )", "", line) for line in calls]
    return list(dict.fromkeys(line for line in calls if line.startswith("cnncompress ")))


@pytest.mark.parametrize("line", commands())
def test_a_command_line_is_accepted(line):
    """Its options and their values, by the parser of the command."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = group.get_command(click.Context(group), name)
    assert command is not None
    command.make_context(name, arguments)


def test_there_are_command_lines():
    assert len(commands()) > 30


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/usage.md"])
def test_python_runs_as_it_stands(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text_of(document), re.DOTALL)
    for shown, small in SMALL.items():
        code = code.replace(shown, small)
    assert "imagenet" not in code
    exec(compile(code, document, "exec"), {})
    assert any(path.endswith("plan.json") for path in listing("runs"))
