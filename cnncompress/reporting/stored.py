"""The reports that runs hold, read without building a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnncompress.errors import CompressError, RunError
from cnncompress.files.place import CORE, METRICS
from cnncompress.reporting.rows import Report, merge
from cnncompress.runs.record import read_info, read_metrics, read_plan
from cnncompress.runs.snapshot import snapshot


def stored_report(path: Path) -> Report:
    """The measurements stored in a run; RunError where it is damaged or holds none."""
    with snapshot(path) as files:
        read_info(files)
        read_plan(files)
        metrics = read_metrics(files)
        if missing := [name for name in CORE if name not in files]:
            raise RunError(f"{path} is incomplete: {missing[0]} is missing")
    try:
        report = Report.from_json(metrics)
    except CompressError as error:
        raise RunError(f"{path} is damaged: {METRICS}: {error}") from error
    if not report.rows:
        raise RunError(f"{path} holds no measurements; write it with `cnncompress decompose`")
    return report


def stored_reports(paths: Sequence[Path]) -> Report:
    """The report of one or more runs as it was stored."""
    return merge({str(path): stored_report(path) for path in paths})
