"""A report as terminal table, Markdown, CSV, JSON or a page of HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cnncompress.errors import unknown
from cnncompress.files.reading import finite
from cnncompress.reporting.layers import LAYER_FORMS, kept_table, layer_records, layer_table
from cnncompress.reporting.layout import AS_NEEDED, fill, fitting, table
from cnncompress.reporting.networks import fitting_networks, in_several, network_records, network_table, notes_of
from cnncompress.reporting.rows import Report
from cnncompress.reporting.steps import step_table
from cnncompress.reporting.summary import summaries
from cnncompress.reporting.times import Beside, headline, time_table
from cnncompress.text import csv_cell, escaped_json, markdown, plain

FORMATS = ("table", "markdown", "csv", "json", "html")


def render(report: Report, format: str = "table", layers: bool = False, width: int | None = None) -> str:
    """The report as text, without a final newline.

    Tables and Markdown round; CSV and JSON have the full numbers. `layers` adds the decomposed and the kept layers;
    as CSV is one table, it then has these instead of the networks. JSON always has all, after its schema, and so has a
    page of HTML. Tables keep to `width` characters a line, if need be by fewer columns; the others have all columns.
    Raises UsageError for an unknown format.
    """
    if format == "json":
        return escaped_json(json.dumps(finite(report.to_json()), indent=2, ensure_ascii=False, allow_nan=False))
    if format == "csv":
        return _csv(layer_records(report) if layers else network_records(report))
    if format == "html":
        from cnncompress.reporting.report_page import report_page

        return report_page(report)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    narrow = width if format == "table" else None
    notes = notes_of(report)
    timings = in_several(report.rows)
    said = [f"{sentence}." for sentence in summaries(report)] + [
        headline(name if len(timings) > 1 else "this plan", times) for name, times in timings.items() if len(times) > 1
    ]
    if format == "markdown":
        parts = [table(*network_table(report.rows), format), "\n".join(f"- {markdown(note)}" for note in notes)]
        said = list(map(markdown, said))
    else:
        parts = [fitting_networks(report.rows, narrow), "\n".join(fill(plain(note), narrow) for note in notes)]
        said = [fill(plain(text), narrow) for text in said]
    if report.steps:
        parts[1:1] = [table(*step_table(report.steps), format, [None, 40], narrow)]
    if timings:
        parts.insert(1, _times(timings, format, narrow))
    parts[:0] = ["\n".join(said)] * bool(said)
    if layers and report.layers:
        layouts = [layer_table(report)] if narrow is None else [layer_table(report, form) for form in LAYER_FORMS]
        drawn = [partial(table, *columns, format) for columns in layouts]
        parts += [fitting([*drawn, partial(drawn[-1], [AS_NEEDED], narrow)], narrow)]
    if layers and report.kept:
        parts += [table(*kept_table(report.kept), format, [40, None, 60], narrow)]
    return "\n\n".join(parts)


def _times(timings: Mapping[str, Sequence[Beside]], format: str, width: int | None) -> str:
    layouts = [partial(table, *time_table(timings, percentiles), format) for percentiles in (True, False)]
    return fitting(layouts, width)


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: csv_cell(value) for key, value in record.items()} for record in records)
    return text.getvalue().rstrip("\n")
