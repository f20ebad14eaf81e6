"""The network of a run as one file, checked before it is in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnncompress.errors import UsageError
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.opened import open_run
from cnncompress.programs.export import EXPORTERS, ExportReport
from cnncompress.terminal.console import Steps


def export_of_run(
    run: Path, format_: str, output: Path | None, force: bool, trust_code: bool = False, opset: int | None = None
) -> ExportReport:
    """Export the network of a run, checked against it before the file appears; `opset` is for ONNX alone."""
    if opset is not None and format_ != "onnx":
        raise UsageError(f"--opset is for --format onnx, not {format_}")
    steps = Steps(["load", "export"])
    steps.announce("load", f"load {run}")
    opened = open_run(run, NetworkAsked(trust_code=trust_code))
    target = output or _named(run).with_name(f"{_named(run).name}.{format_}")
    steps.announce("export", f"write {target}, run it and compare")
    options: dict[str, Any] = {} if opset is None else {"opset": opset}
    return EXPORTERS[format_](opened.model, opened.example(2), target, force=force, **options)


def _named(path: Path) -> Path:
    """The path with a name at its end: `.`, `..` and `/` have none."""
    return path if path.name not in ("", "..") else path.resolve()
