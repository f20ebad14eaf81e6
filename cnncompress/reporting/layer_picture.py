"""Layers as a picture in a file of its own: bars of what each costs, one or, after a plan, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from cnncompress.reporting.inspection import Inspected
from cnncompress.reporting.palette import DARK, LIGHT
from cnncompress.reporting.rows import LayerRow
from cnncompress.terminal.words import human
from cnncompress.text import plain

ROW, NAMES, BAR, GAP = 22, 250, 200, 90  # pixels: a line, its name, a bar, the number beside it
LETTER = 8  # pixels of a letter
LONGEST = 32  # characters of a name in a picture


@dataclass(frozen=True)
class Barred:
    """A layer with its costs by their names, each as it is or as a pair of before and after; `words` stand beside."""

    layer: str
    costs: Mapping[str, Sequence[float]]
    words: str = ""


def of_network(layers: Sequence[Inspected]) -> list[Barred]:
    """The layers of a network; their times where these are known."""
    timed = any(layer.ms is not None for layer in layers)
    return [
        Barred(one.layer, {"MACs": (one.macs,), "params": (one.params,)} | ({"ms": (one.ms or 0.0,)} if timed else {}))
        for one in layers
    ]


def of_plan(layers: Sequence[LayerRow]) -> list[Barred]:
    """The layers that a plan changes, with what they become."""
    return [
        Barred(one.layer, {"MACs": one.macs, "params": one.params}, f"{one.method} {'×'.join(map(str, one.rank))}")
        for one in layers
    ]


def layer_picture(title: str, layers: Sequence[Barred]) -> str:
    """The layers as an SVG file, a line each, the longest bar of each cost as long as there is room for."""
    costs = list(layers[0].costs) if layers else []
    beside = max((len(plain(one.words)) for one in layers), default=0) * LETTER
    width, height = NAMES + len(costs) * (BAR + GAP) + beside, ROW * (len(layers) + 2)
    left = {cost: NAMES + i * (BAR + GAP) for i, cost in enumerate(costs)}
    when = ", before and now" * any(len(values) > 1 for one in layers for values in one.costs.values())
    parts = [_word(8, 15, title, "start"), *(_word(left[cost], 15 + ROW, cost + when, "start") for cost in costs)]
    for i, layer in enumerate(layers, 2):
        foot = ROW * i + 15
        name = layer.layer if len(layer.layer) <= LONGEST else f"…{layer.layer[1 - LONGEST :]}"
        parts.append(_word(NAMES - 8, foot, name, "end"))
        for cost in costs:
            most = max(max(one.costs[cost]) for one in layers) or 1
            parts += _bars(left[cost], foot, layer.costs[cost], most, cost)
        parts.append(_word(NAMES + len(costs) * (BAR + GAP), foot, layer.words, "start"))
    name = escape(plain(title), quote=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{name}" viewBox="0 0 {width} {height}">'
    rules = [_rules(LIGHT), f"@media (prefers-color-scheme: dark) {{ {_rules(DARK)} }}"]
    back = f'<rect class="back" width="{width}" height="{height}"/>'
    return f"{head}<title>{name}</title><style>{' '.join(rules)}</style>{back}{''.join(parts)}</svg>\n"


def _bars(left: float, foot: float, values: Sequence[float], most: float, cost: str) -> list[str]:
    """The bars of one cost, the last value beside them."""
    high = 15 / len(values)
    kinds = ["before"] * (len(values) - 1) + ["after"]
    drawn = [
        f'<rect class="{kind}" x="{left}" y="{foot - 12 + i * high:.1f}" width="{BAR * value / most:.1f}" '
        f'height="{high - (len(values) > 1):.1f}"/>'
        for i, (kind, value) in enumerate(zip(kinds, values, strict=True))
    ]
    told = f"{values[-1]:.3f}" if cost == "ms" else human(int(values[-1]))
    return [*drawn, _word(left + BAR * max(values) / most + 5, foot, told, "start")]


def _rules(palette: dict[str, str]) -> str:
    fills = {".before": "line", ".after": "c0", ".back": "ground", "text": "text"}
    return " ".join(f"{what} {{ fill: {palette[colour]} }}" for what, colour in fills.items())


def _word(x: float, y: float, text: str, anchor: str) -> str:
    style = f'text-anchor="{anchor}" font-family="sans-serif" font-size="13"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(plain(text))}</text>'
