"""The tables of layers: the decomposed ones, and the kept ones by reason."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from cnncompress.reporting.cells import NONE, divide, share, with_share
from cnncompress.reporting.rows import Report
from cnncompress.terminal.words import human, listed
from cnncompress.text import plain

NUMBER = re.compile(r"(?<![\w.])\d[\d,×.]*\b")
LAYER_FORMS = ("whole", "after", "shares", "fewest")


def layer_records(report: Report) -> list[dict[str, Any]]:
    """One record a layer, decomposed or kept."""
    records: list[dict[str, Any]] = []
    for layer in report.layers:
        values: dict[str, Any] = {"layer": layer.layer, "was": layer.was or None, "method": layer.method}
        values["rank"] = "×".join(map(str, layer.rank))
        for key, (before, after) in (("params", layer.params), ("macs", layer.macs)):
            values |= {f"{key}_before": before, f"{key}_after": after, f"{key}_ratio": divide(after, before)}
        records.append(values | {"error": layer.error, "kept": None})
    columns = ("was", "method", "rank", "params_before", "params_after", "params_ratio")
    empty = dict.fromkeys((*columns, "macs_before", "macs_after", "macs_ratio", "error"))
    return records + [{"layer": name} | empty | {"kept": reason} for name, reason in report.kept.items()]


def layer_table(report: Report, form: str = "whole") -> tuple[list[str], list[list[str]], str]:
    """The decomposed layers: with costs before and after, with those after, or with shares alone, in fewer columns."""
    headers = ["decomposed layer", "was", "method", "rank", "params", "MACs", "relative error", "predicted rise"]
    if form != "whole":
        headers[0], headers[-2:] = "layer", ["error", "rise"]
    cells = []
    for layer in report.layers:
        costs = [_cost(*pair, form) for pair in (layer.params, layer.macs)]
        error = NONE if layer.error is None or not math.isfinite(layer.error) else f"{layer.error:.4f}"
        rise = NONE if layer.rise is None else f"{layer.rise:.5f}"
        rank = "×".join(map(str, layer.rank))
        cells.append([plain(layer.layer), layer.was or NONE, layer.method, rank, *costs, error, rise])
    hidden = {"was"} if form in ("shares", "fewest") else set()
    if form == "fewest" or all(layer.rise is None for layer in report.layers):
        hidden.add(headers[-1])
    shown = [i for i, header in enumerate(headers) if header not in hidden]
    return [headers[i] for i in shown], [[c[i] for i in shown] for c in cells], "".join("lllrrrrr"[i] for i in shown)


def _cost(before: int, after: int, form: str) -> str:
    ratio = divide(after, before)
    if form in ("shares", "fewest") and ratio is not None:
        return share(ratio)
    return with_share(f"{human(before)} → {human(after)}" if form == "whole" else human(after), ratio)


def kept_table(kept: dict[str, str]) -> tuple[list[str], list[list[str]], str]:
    """Layers kept for the same reason in one line."""
    groups: dict[str, dict[str, str]] = {}
    for name, reason in kept.items():
        groups.setdefault(NUMBER.sub("…", reason), {})[name] = reason
    cells = []
    for members in groups.values():
        cells.append([listed(list(members)), str(len(members)), _common(list(members.values()))])
    return ["kept layers", "number", "because"], cells, "lrl"


def _common(reasons: Sequence[str]) -> str:
    """Reasons that are alike but for their numbers, as one: `…` for a number that is not the same in all."""
    columns = zip(*map(NUMBER.findall, reasons), strict=True)
    shown = iter([column[0] if len(set(column)) == 1 else "…" for column in columns])
    return NUMBER.sub(lambda _: next(shown), reasons[0])
