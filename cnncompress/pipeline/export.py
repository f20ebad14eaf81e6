"""The network of a run as one file, checked before it is in its place."""

from __future__ import annotations

from pathlib import Path

from cnncompress.errors import UsageError
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.opened import open_run
from cnncompress.programs.export import ExportReport, export_onnx, export_pt2
from cnncompress.terminal.console import Steps

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}


def export_of_run(
    run: Path, format_: str, output: Path | None, force: bool, trust_code: bool = False, opset: int | None = None
) -> ExportReport:
    """Export the network of a run, checked against it before the file appears; `opset` is for ONNX alone."""
    if opset is not None and format_ != "onnx":
        raise UsageError(f"--opset is for --format onnx, not {format_}")
    steps = Steps(["load", "export"])
    steps.announce("load", f"load {run}")
    opened = open_run(run, NetworkAsked(trust_code=trust_code))
    target = output or _named(run).with_name(_named(run).name + SUFFIXES[format_])
    steps.announce("export", f"write {target}, run it and compare")
    if format_ == "pt2":
        return export_pt2(opened.model, opened.example(2), target, force=force)
    return export_onnx(opened.model, opened.example(2), target, force=force, opset=opset)


def _named(path: Path) -> Path:
    """The path with a name at its end: `.`, `..` and `/` have none."""
    return path if path.name not in ("", "..") else path.resolve()
