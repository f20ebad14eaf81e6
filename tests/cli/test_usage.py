"""Help, start-up and bad usage."""

import os
import subprocess
import sys

import click
import pytest

from cnncompress import __version__
from cnncompress.cli import COMMANDS
from cnncompress.cli import cli as group
from cnncompress.cli.frame import GROUPS
from tests.marks import with_slow

WITHOUT = """
import sys
sys.modules["torch"] = None  # an import of it fails
from cnncompress.cli import main
try:
    main(sys.argv[1:])
finally:
    slow = {"torchvision", "numpy", "scipy", "sklearn", "tensorly", "accelerate", "onnx", "timm"} & set(sys.modules)
    assert not slow, slow
"""


def without_torch(*args, cwd=None):
    """A command in a process that cannot import torch, and fails where it imports another package that takes long."""
    command = [sys.executable, "-c", WITHOUT, *args]
    # The environment as Python sees it: a library may have set COLUMNS for child processes behind its back.
    return subprocess.run(command, cwd=cwd, env=dict(os.environ), capture_output=True, text=True, check=False)


def test_help_needs_nothing_but_click():
    code = "import sys; import cnncompress.cli.decompose; assert not {'pydantic', 'yaml', 'tqdm'} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("args", [[], ["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_no_torch(args):
    found = without_torch(*args)
    assert found.returncode == 0, found.stderr
    assert found.stdout
    assert not found.stderr


@pytest.mark.parametrize("format_", ["table", "markdown", "csv", "json"])
def test_what_is_stored_is_printed_without_torch(format_, saved, done):
    found = without_torch("report", str(saved), "--format", format_, "--layers")
    assert found.returncode == 0, found.stderr
    assert found.stdout == done("report", saved, "--format", format_, "--layers")
    assert "features.0" in found.stdout
    assert found.stderr == ""


def test_a_stored_report_goes_to_a_file_without_torch(saved, tmp_path):
    found = without_torch("report", str(saved), str(saved), "--output", "table.txt", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "digits_vgg" in (tmp_path / "table.txt").read_text()


def test_the_methods_are_listed_without_torch(done):
    found = without_torch("methods")
    assert found.returncode == 0, found.stderr
    assert found.stdout == done("methods")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["compress"], 2, "did you mean 'decompose'?"),
        (["decompose"], 2, "give MODEL"),
        (["decompose", "resnet5"], 2, "did you mean 'resnet50'?"),
        (["decompose", "resnet18", "--rank", "0"], 2, "makes no sense"),
        (["decompose", "resnet18", "--budget", "macs=2"], 2, "macs=2.0"),
        (["decompose", "resnet18", "--rank", "4", "--budget", "macs=0.5"], 2, "exclude each other"),
        (["evaluate", "none.py:build", "--data", "digits"], 2, "no such file"),
        (["finetune", "runs/none", "--data", "digits"], 1, "no run at runs/none"),
        (["report", "runs/none"], 1, "no run at runs/none"),
        (["evaluate", "resnet18"], 2, "nothing to evaluate on; give --data"),
        (["finetune", "run"], 2, "nothing to train on; give --data"),
        (["decompose", "resnet18", "--method", "svdd"], 2, "did you mean 'svd'?"),
        (["decompose", "resnet18", "--method", "cp+svdd"], 2, "did you mean 'svd'?"),
        (["decompose", "resnet18", "--out", "."], 1, "contains the current folder"),
        (["report", "runs/none", "--latency"], 1, "no run at runs/none"),
        (["export", "runs/none", "--format", "onnx"], 1, "no run at runs/none"),
        (["profile", "runs/none"], 1, "no run at runs/none"),
        (["inspect", "timm/resnet18"], 2, "timm:resnet18"),
        (["evaluate", "digits_vgg", "--data", "none"], 1, "no such folder: none"),
        (["evaluate", "digits_vgg", "--data", "mnst:none"], 2, "did you mean 'mnist'?"),
        (["decompose", "digits_vgg", "--data", "mnist:none"], 1, "no such folder"),
        (["evaluate", "digits_vgg", "--weights", "none.pth", "--data", "digits"], 1, "no such weights file: none.pth"),
        (["decompose", "digits_vgg", "--metric", "kroneker", "--data", "digits"], 2, "did you mean 'kronecker'?"),
    ],
)
def test_what_is_plainly_wrong_is_answered_without_torch(args, code, words, tmp_path):
    found = without_torch(*args, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (code, "")
    assert words in found.stderr
    assert found.stderr.count("\n") == 1


def test_without_arguments_the_help_is_printed(done):
    text = done()
    assert text == done("--help")
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "..." not in text.partition("Commands:")[2]  # no description is cut


def test_version(done, monkeypatch):
    from importlib import metadata

    from cnncompress.latency.runtimes.openvino_cpu import OpenVino

    monkeypatch.setattr(OpenVino, "package", "no-such-package")
    first, *others = done("--version").splitlines()
    assert first == f"cnncompress {__version__}"
    assert f"torch {metadata.version('torch')}" in others
    assert f"onnxruntime {metadata.version('onnxruntime')}" in others[-1]
    assert "openvino (no-such-package not installed)" in others[-1]


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, width, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = done(command, "--help")
    assert text == done(command, "-h")
    assert text.startswith(f"Usage: cnncompress {command}")
    assert max(map(len, text.partition("Examples:")[0].splitlines())) <= width
    assert "INTEGER" not in text
    assert "RANGE" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_groups_and_an_example_that_parses(name, done):
    command = group.get_command(click.Context(group), name)
    grouped = {option for options in GROUPS.values() for option in options}
    own = {p.name for p in command.params if isinstance(p, click.Option)}
    assert own <= grouped
    assert {"verbose", "quiet", "log", "json"} <= own
    assert "\nGeneral:\n" in done(name, "--help")
    assert command.examples
    for example in command.examples:
        called, *args = example.split()
        assert called == name
        command.make_context(name, args, parent=click.Context(group, **group.context_settings))


@pytest.mark.parametrize("where", with_slow(["before", "after"], ["after"]))
def test_quiet_and_verbose_go_before_or_after_the_command(where, saved, cli):
    for flag, lines in (("-q", 0), ("-v", 3)):
        args = ["profile", saved, flag] if where == "after" else [flag, "profile", saved]
        assert cli(*args).err.count("\n") == lines


COMPLETIONS = {
    "pro": ["profile"],
    "decompose digits_v": ["digits_vgg"],
    "inspect vgg16_": ["vgg16_bn"],
    "explore net --method auto+spatial": ["auto+spatial-svd"],
    "decompose net --metric k": ["kronecker"],
    "evaluate net --data photo": ["photodigits"],
    "decompose net --weights n": ["none"],
    "profile net --runtime onnx": ["onnxruntime"],
    "report --format ht": ["html"],
}


def completed(line, shell="bash"):
    words = f"cnncompress {line}".split()
    asked = {"_CNNCOMPRESS_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words)}
    asked["COMP_CWORD"] = str(len(words) - 1) if shell == "bash" else words[-1]
    return subprocess.run(
        [sys.executable, "-m", "cnncompress"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("line", with_slow(COMPLETIONS, [*COMPLETIONS][1:]))
def test_the_shell_completes(line):
    found = completed(line)
    plain = [item.removeprefix("plain,") for item in found.stdout.splitlines() if item.startswith("plain,")]
    assert (plain, found.stderr) == (COMPLETIONS[line], "")


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script_and_nothing_else(shell, done):
    source = {**os.environ, "_CNNCOMPRESS_COMPLETE": f"{shell}_source"}
    command = [sys.executable, "-m", "cnncompress"]
    script = subprocess.run(command, env=source, capture_output=True, text=True, check=False)
    assert f"_CNNCOMPRESS_COMPLETE={shell}_complete" in script.stdout
    assert script.stderr == ""
    assert f"_CNNCOMPRESS_COMPLETE={shell}_source" in done("--help")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--nope"], "--nope"),
        (["decompos"], "did you mean 'decompose'?"),
        (["xyz"], "known: explore, decompose"),
        (["help"], "did you mean '--help'?"),
        (["-v", "decompose", "digits_vgg", "-q"], "--verbose and --quiet exclude each other"),
        (["prune", "vgg16"], "did you mean 'decompose'?"),
        (["train", "run"], "did you mean 'finetune'?"),
        (["eval", "run"], "did you mean 'evaluate'?"),
        (["benchmark", "run"], "did you mean 'profile'?"),
        (["convert", "run"], "did you mean 'export'?"),
        (["decompose", "digits_vgg", "-v", "-q"], "--verbose and --quiet exclude each other"),
        (["decompose", "--nope"], "see `cnncompress decompose --help`"),
        (["decompose"], "give MODEL"),
        (["decompose", "digits_vgg", "more"], "more"),
        (["report"], "RUNS"),
        (["export", "run"], "--format"),
        (["export", "run", "--format", "tflite"], "'tflite'"),
        (["report", "run", "--format", "xml"], "'xml'"),
        (["finetune", "run", "--schedule", "some"], "'some'"),
        (["finetune", "run", "--lr", "fast"], "'fast'"),
        (["evaluate", "digits_vgg"], "give --data"),
        (["evaluate", "digits_vgg", "--data", "digits", "--batch-size", "0"], "--batch-size: 0 should be"),
        (["evaluate", "digits_vgg", "--data", "digits", "--workers", "-1"], "--workers: -1 should be"),
        (["evaluate", "digits_vgg", "--data", ""], "--data: ''"),
        (["profile", "digits_vgg", "--batch-size", "0"], "batch size is 0"),
        (["profile", "digits_vgg", "--threads", "0"], "threads is 0"),
        (["decompose", "digits_vgg", "--seed", "-1"], "--seed: -1 should be"),
        (["decompose", "digits_vgg", "--seed", str(2**63)], "--seed"),
        (["decompose", "digits_vgg", "--num-classes", "0"], "--num-classes: 0 should be"),
        (["decompose", "digits_vgg", "--input-size", "0"], "--input-size: '0'"),
        (["decompose", "digits_vgg", "--input-size", "bigxsmall"], "such as 224"),
        (["decompose", "digits_vgg", "--mean", "nan"], "--mean: 'nan'"),
        (["decompose", "digits_vgg", "--mean", "1,2"], "--mean has 2 numbers for a network of 3 channels"),
        (["decompose", "digits_vgg", "--std", "0"], "--std: a standard deviation is positive"),
    ],
)
def test_bad_usage(args, words, refused):
    assert words in refused(*args, code=2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rank", "0"], "rank '0'"),
        (["--rank=-1"], "rank '-1'"),
        (["--rank", "nan"], "rank 'nan'"),
        (["--rank", "inf"], "rank 'inf'"),
        (["--rank", "1e400"], "rank '1e400'"),
        (["--rank", "1.5"], "rank '1.5'"),
        (["--rank", "0.0"], "rank '0.0'"),
        (["--rank", "abc"], "'abc' is not a number"),
        (["--rank", "1,2"], "'1,2' is not a number"),
        (["--rank", ""], "'' is not a number"),
        (["--layers", "conv*"], "--layers 'conv*' matches no layer"),
        (["--skip", "features.00"], "did you mean 'features.0'?"),
        (["--method", "spatialsvd"], "did you mean 'spatial-svd'?"),
        (["--method", ""], "unknown method ''"),
        (["--method", "auto:K=3"], "auto takes no options"),
        (["--method", "spatial-svd:k=3"], "did you mean 'K'?"),
        (["--method", "spatial-svd:K"], "takes a whole number"),
        (["--method", "spatial-svd:K=0"], "at least 1"),
        (["--method", "tucker2:K1=3"], "missing K2"),
        (["--method", "tucker2:algorithm=hosv"], "hosvd"),
        (["--method", "cp:iterations=-1"], "at least 1"),
        (["--metric", "frobenus"], "did you mean 'frobenius'?"),
        (["--device", "gpu"], "'gpu'"),
    ],
)
def test_bad_decompositions(args, words, refused):
    assert words in refused("decompose", "digits_vgg", "--out", "out", *args, code=2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rank", "100000"], "above its full rank"),
        (["--rank", "1.0"], "would not be cheaper"),
        (["--skip", "*"], "skipped on request"),
        (["--input-size", "7"], "1×3×7×7"),
    ],
)
def test_nothing_to_do(args, words, refused):
    assert words in refused("decompose", "digits_vgg", "--out", "out", *args)


@pytest.mark.parametrize(
    "args", [["decompose", "digits_vgg"], ["evaluate", "digits_vgg", "--data", "digits"], ["profile", "digits_vgg"]]
)
def test_no_gpu(args, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "sees no CUDA GPU" in refused(*args, "--device", "cuda")
