"""The network of a run as one file, checked before it is in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnncompress.errors import UsageError
from cnncompress.files.publish import check_file
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.opened import open_run
from cnncompress.programs.export import ENDINGS, EXPORTERS, ExportReport
from cnncompress.terminal.console import Steps


def export_of_run(
    run: Path, format_: str, output: Path | None, force: bool, trust_code: bool = False, opset: int | None = None
) -> ExportReport:
    """Export the network of a run, checked against it before the file appears; `opset` is for ONNX alone."""
    if opset is not None and format_ == "pt2":
        raise UsageError("--opset is for --format onnx, not pt2")
    steps = Steps(["load", "export"])
    steps.announce("load", f"load {run}")
    opened = open_run(run, NetworkAsked(trust_code=trust_code))
    target = target_of(run, format_, output, force)
    steps.announce("export", f"write {target}, run it and compare")
    options: dict[str, Any] = {} if opset is None else {"opset": opset}
    return EXPORTERS[format_](opened.model, opened.example(2), target, force=force, **options)


def target_of(run: Path, format_: str, output: Path | None, force: bool) -> Path:
    """The file to write, by default beside the run; RunError where it cannot be written."""
    target = output or _named(run).with_name(f"{_named(run).name}.{ENDINGS[format_]}")
    check_file(target, force)
    return target


def _named(path: Path) -> Path:
    """The path with a name at its end: `.`, `..` and `/` have none."""
    return path if path.name not in ("", "..") else path.resolve()
