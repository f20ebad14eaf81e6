"""Runs that somebody else made to do more than be read: one line or a plain report, and nothing else happens."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

import cnncompress.cli
from cnncompress.reporting import FORMATS
from tests.cli.conftest import listing

EVIL = "\x1b]0;gone\x07\x1b[2J\x9b31m\u202e\u2066=cmd()|\r\nfake: ok\t"


def edit(name, change):
    path = Path("run", name)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def printable(text):
    return all(c.isprintable() or c == "\n" for c in text)


def put_evil_text():
    """Into every text of a run that is free."""

    def measured(values):
        for row in values["rows"]:
            row["name"] = f"={EVIL}{row['kind']}"
        values["notes"] = [EVIL]
        for layer in values["layers"]:
            layer["method"] = EVIL

    edit("metrics.json", measured)
    edit("plan.json", lambda v: v["kept"].update({f"@{EVIL}": f"-{EVIL}"}))
    edit("run.json", lambda v: v.update(name=EVIL))


@pytest.mark.parametrize("format_", FORMATS)
def test_no_text_of_a_run_reaches_the_terminal_as_it_is(format_, run_copy, cli):
    put_evil_text()
    for layers in ([], ["--layers"]):
        result = cli("report", "run", "--format", format_, *layers)
        assert result.code == 0
        assert printable(result.out)
        assert printable(result.err)
        assert "fake: ok" in result.out


def test_no_cell_of_a_spreadsheet_is_a_formula(run_copy, done):
    put_evil_text()
    for layers in ([], ["--layers"]):
        done("report", "run", "--format", "csv", *layers, "--output", "table.csv")
        text = Path("table.csv").read_text()
        assert printable(text)
        for row in csv.reader(io.StringIO(text)):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)


def test_names_in_other_commands_are_plain_too(run_copy, cli):
    put_evil_text()
    for command in (["evaluate", "--data", "digits"], ["profile"], ["inspect"]):
        result = cli(command[0], "run", *command[1:])
        assert printable(result.out)
        assert printable(result.err)
        assert result.code == 0
    edit("run.json", lambda v: v["source"].update(kind="factory", name=f"{EVIL}:f"))
    result = cli("report", "run", "--data", "digits")
    assert result.code == 1
    assert printable(result.err)
    assert result.err.splitlines()[-1].startswith("error: ")


def test_everything_is_printed_in_one_place():
    folder = Path(cnncompress.cli.__file__).parent
    found = {path.name: path.read_text().count("click.echo(") for path in folder.glob("*.py")}
    assert {name: count for name, count in found.items() if count} == {"__init__.py": 1, "options.py": 1}


# --- runs that are made to run, write, fetch or exhaust something ---


def source(**values):
    return lambda: edit("run.json", lambda v: v["source"].update(values))


def in_json(name, text):
    return lambda: Path("run", name).write_text(text)


def value(name, *path, to):
    def change(values):
        *inner, last = path
        for part in inner:
            values = values[part]
        values[last] = to

    return lambda: edit(name, change)


def first_stage(**values):
    def change(plan):
        entry = next(iter(plan["layers"].values()))
        entry["stages"][0].update(values)

    return lambda: edit("plan.json", change)


def link(name, target):
    def make():
        Path("run", name).unlink()
        Path("run", name).symlink_to(target)

    return make


def pipe(name):
    def make():
        Path("run", name).unlink()
        os.mkfifo(Path("run", name))

    return make


ATTACKS = {
    "command": source(kind="factory", name="os:system", kwargs={"command": "touch opened"}),
    "deletion": source(kind="factory", name="shutil:rmtree", kwargs={"path": "victim"}),
    "module here": source(kind="factory", name="loud:build"),
    "file here": source(kind="factory", name="loud.py:build"),
    "file elsewhere": source(kind="factory", name="../../loud.py:build"),
    "nested name": source(kind="factory", name="loud.py:os.system", kwargs={"command": "touch opened"}),
    "hub": source(kind="timm", name="hf-hub:timm/resnet18.a1_in1k"),
    "hub, older spelling": source(kind="timm", name="hf_hub:timm/resnet18.a1_in1k"),
    "folder as a network": source(kind="timm", name="local-dir:."),
    "downloaded weights": source(kind="torchvision", name="resnet18", kwargs={"weights": "DEFAULT"}),
    "pretrained": source(kind="timm", name="resnet18", kwargs={"pretrained": True}),
    "checkpoint": source(kind="timm", name="resnet18", kwargs={"checkpoint_path": "run/model.safetensors"}),
    "other configuration": source(kind="timm", name="resnet18", kwargs={"pretrained_cfg": "x"}),
    "features only": source(kind="timm", name="resnet18", kwargs={"features_only": True}),
    "function as an argument": source(kind="torchvision", name="resnet18", kwargs={"norm_layer": "os.system"}),
    "a billion classes": source(kwargs={"num_classes": 10**9}),
    "kind": source(kind="shell"),
    "names as lists": source(name=["digits_vgg"]),
    "arguments as a list": source(kwargs=["num_classes"]),
    "deep": in_json("plan.json", "[" * 100_000),
    "duplicate": in_json("plan.json", '{"layers": {}, "kept": {}, "metric": "a", "metric": "b"}'),
    "infinite": in_json("metrics.json", '{"schema": 1, "rows": [], "layers": [], "kept": {}, "x": 1e999}'),
    "binary": lambda: Path("run", "metrics.json").write_bytes(b"\xff\xfe\x00"),
    "huge number": value("metrics.json", "rows", 0, "macs", to=10**400),
    "negative": value("metrics.json", "rows", 0, "params", to=-1),
    "text for a number": value("metrics.json", "rows", 0, "size_bytes", to="1"),
    "pixels": value("run.json", "preprocessing", "size", to=[10**9, 10**9]),
    "no deviation": value("run.json", "preprocessing", "std", to=[0.0, 0.0, 0.0]),
    "wide stage": first_stage(out_channels=10**12),
    "broken chain": first_stage(out_channels=3),
    "far padding": first_stage(padding=[10**9, 0]),
    "wide padding": first_stage(padding=[3000, 3000]),
    "stride": first_stage(stride=[3, 1]),
    "dilation": first_stage(dilation=[60_000, 1]),
    "another layer": value("plan.json", "layers", "features.3", "layer", "padding_mode", to="reflect"),
    "many groups": first_stage(groups=10**9),
    "unknown key": value("plan.json", "code", to="import os"),
    "format": value("run.json", "format", to=True),
}
if hasattr(os, "mkfifo"):
    ATTACKS |= {f"pipe for {name}": pipe(name) for name in ("run.json", "plan.json", "metrics.json")}
    ATTACKS |= {
        "zeros without end": link("metrics.json", "/dev/zero"),
        "link to itself": link("plan.json", "plan.json"),
    }

LOUD = """
import os
from pathlib import Path
Path(__file__).with_name("opened").touch()
def build(**_):
    raise SystemExit(0)
"""


@pytest.fixture
def trapped(run_copy, monkeypatch):
    """A run in a folder where anything that is executed or fetched is noticed."""
    Path("loud.py").write_text(LOUD)
    Path("victim").mkdir()
    monkeypatch.setattr("os.system", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: pytest.fail("a folder was deleted"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something was fetched"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was fetched"))
    return run_copy


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("command", [["report"], ["evaluate", "--data", "digits"]], ids=lambda c: c[0])
def test_a_hostile_run_is_refused(attack, command, trapped, cli):
    ATTACKS[attack]()
    before = listing()
    result = cli(command[0], "run", *command[1:])
    assert listing() == before
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.err
    assert max(map(len, result.err.splitlines()), default=0) < 1000
    if command == ["report"]:  # what needs no network may be printed all the same
        assert (result.code, len(errors)) in [(0, 0), (1, 1)]
    else:
        assert (result.code, len(errors)) == (1, 1)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", ".", "", "a/b", "a\\b", EVIL, "x" * 500])
def test_a_name_leads_nowhere(name, trapped, done):
    edit("run.json", lambda v: v.update(name=name))
    Path("here").mkdir()
    shutil.move("run", "here/run")
    done("decompose", "here/run", "--rank", "3")
    (made,) = Path("runs").iterdir()
    assert (made / "run.json").is_file()
    assert sorted(os.listdir()) == ["here", "loud.py", "runs", "victim"]


def test_a_hostile_plan_file_is_refused(trapped, refused):
    for text in ("[" * 100_000, '{"layers": {"a": {"method": "svd", "rank": 1e999}}}', '{"layers": {}, "layers": {}}'):
        Path("plan.json").write_text(text)
        assert "plan.json" in refused("decompose", "digits_vgg", "--plan", "plan.json", "--dry-run", code=2)
    shutil.copy("run/metrics.json", "plan.json")
    assert "plan.json" in refused("decompose", "digits_vgg", "--plan", "plan.json", "--dry-run", code=2)


def test_no_row_of_a_table_is_forged(run_copy, done):
    lines = done("report", "run").splitlines()
    edit("metrics.json", lambda v: v["rows"][0].update(name="net\nforged original 1"))
    found = done("report", "run").splitlines()
    assert len(found) == len(lines)
    assert not any(line.startswith("forged") for line in found)
