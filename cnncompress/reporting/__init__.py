"""Reports: rows of measurements, and their rendering as terminal table, Markdown, CSV, JSON or HTML."""

from cnncompress.reporting.render import FORMATS, render
from cnncompress.reporting.rows import Kind, LayerRow, Report, Row, layer_rows, merge

__all__ = ["FORMATS", "Kind", "LayerRow", "Report", "Row", "layer_rows", "merge", "render"]
