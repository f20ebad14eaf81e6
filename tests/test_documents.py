"""What the documents show works: command lines are accepted as they stand, and the Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cnncompress.chains.plan_schema import NarrowedEntry, StoredEntry, StoredPlan
from cnncompress.cli import cli as group
from cnncompress.files import schemas
from cnncompress.files.place import BEST, FILES, HISTORY, LAST, PREVIOUS, SECOND
from cnncompress.latency.table_file import LayerTimes, TableFile
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
    command.make_context(name, arguments, parent=click.Context(group, **group.context_settings))  # which gives it -h


def test_there_are_command_lines():
    assert len(commands()) > 30


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/usage.md", "docs/fine-tuning.md"])
def test_python_runs_as_it_stands(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text_of(document), re.DOTALL)
    for shown, small in SMALL.items():
        code = code.replace(shown, small)
    assert "imagenet" not in code
    exec(compile(code, document, "exec"), {})
    assert any(path.endswith("plan.json") for path in listing("runs"))


@pytest.mark.parametrize(
    ("schema", "heading"),
    [
        (schemas.Info, "### run.json"),
        (StoredPlan, "### plan.json"),
        (StoredEntry, "### plan.json"),
        (NarrowedEntry, "### plan.json"),
        (schemas.Metrics, "## A report"),
        (schemas.Row, "## A report"),
        (schemas.LayerRow, "## A report"),
        (schemas.Latency, "## A report"),
        (schemas.Explored, "## An exploration"),
        (schemas.ExploredPoint, "## An exploration"),
        (schemas.StepRow, "## A report"),
        (TableFile, "## Other files"),
        (LayerTimes, "## Other files"),
    ],
)
def test_the_formats_name_every_key(schema, heading):
    section = text_of("docs/formats.md").split(heading + "\n")[1].split("\n#")[0]
    keys = {field.alias or name for name, field in schema.model_fields.items()}
    assert keys - set(re.findall(r"`([\w.]+)`", section)) == set()


def test_the_formats_name_the_files_of_a_run():
    text = text_of("docs/formats.md")
    assert all(f"`{name}`" in text for name in (*FILES, LAST, PREVIOUS, BEST, SECOND, HISTORY))
