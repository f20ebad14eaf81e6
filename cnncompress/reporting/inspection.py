"""The layers of a network as a page and as a picture: where MACs and parameters sit, which methods apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from cnncompress.reporting.cells import NONE
from cnncompress.reporting.page import Cell, Page, Section, Table, Tile, with_bars
from cnncompress.reporting.palette import DARK, LIGHT
from cnncompress.terminal.words import counted, human, listed
from cnncompress.text import plain

ROW, NAMES, BAR, GAP = 22, 250, 230, 90  # pixels of a picture: a line, its name, a bar, the number beside it
ENERGY = "50/90/99 % energy: the rank that keeps this share of the squared singular values, of the full rank"
LONGEST = 32  # characters of a name in a picture


@dataclass
class Inspected:
    """One layer: what it is, what it costs, which methods apply, and the rank that keeps a share of its energy.

    `whole` says why it takes all its input channels, and is empty where the method select may leave fewer.
    """

    layer: str
    shape: str
    params: int
    macs: int
    methods: list[str]
    full_rank: int | None = None
    rank_at: dict[float, int] = field(default_factory=dict)
    note: str = ""
    whole: str = ""

    @property
    def ranks(self) -> str:
        """The ranks for its shares of energy, and the full one."""
        return "/".join(map(str, self.rank_at.values())) + f" of {self.full_rank}" if self.rank_at else NONE


def inspection_page(title: str, lead: str, layers: Sequence[Inspected]) -> str:
    """The layers as a page of HTML."""
    macs, params = _sums(layers)
    tiles = [
        Tile("MACs", human(macs), "of one image"),
        Tile("Parameters", human(params), "in these layers"),
        Tile("Layers", str(len(layers)), f"{sum(bool(layer.methods) for layer in layers)} that methods apply to"),
    ]
    letters = letters_of(layers)
    headers = ["layer", "MACs", "params", "shape", "50/90/99 % energy", "methods"]
    caption = "Layers in the order of their calls; bars are shares of the longest"
    cells = [_cells(layer, layers, letters) for layer in layers]
    table = Table(caption, headers, cells, ["", "", "", "l", "", "words" if any(x.note for x in layers) else "l"])
    section = Section("Layers", text=f"{ENERGY}.", tables=[table], sentences=told_of(layers))
    return Page(title, _summary(layers, macs), tiles, lead, (), [section]).html()


def letters_of(layers: Sequence[Inspected]) -> dict[str, str]:
    """A letter for each set of methods that apply to a layer, by their names."""
    sets = dict.fromkeys(", ".join(layer.methods) for layer in layers if not layer.note)
    return {methods: chr(ord("A") + i) for i, methods in enumerate(sets)}


def told_of(layers: Sequence[Inspected]) -> list[str]:
    """What letters stand for, and a line for each reason why layers take all their input channels."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.whole:
            reasons.setdefault(layer.whole, []).append(layer.layer)
    told = "no select for {}, whose input channels stay whole: {}"
    staying = [told.format(listed(names), reason) for reason, names in reasons.items()]
    return [*(f"{letter}: {methods}" for methods, letter in letters_of(layers).items()), *staying]


def _sums(layers: Sequence[Inspected]) -> tuple[int, int]:
    return sum(layer.macs for layer in layers), sum(layer.params for layer in layers)


def _cells(layer: Inspected, layers: Sequence[Inspected], letters: Mapping[str, str]) -> list[Cell]:
    cells: list[Cell] = [layer.layer]
    for key, total in zip(("macs", "params"), _sums(layers), strict=True):
        value, most = getattr(layer, key), max(getattr(one, key) for one in layers)
        text = human(value) + (f" {100 * value / total:.1f} %" if total else "")
        cells.append(with_bars(text, (value,), most))
    return [*cells, layer.shape, layer.ranks, layer.note or letters[", ".join(layer.methods)]]


def _summary(layers: Sequence[Inspected], total: int) -> list[str]:
    """How few layers hold half of the MACs."""
    left, most = total / 2, sorted((layer.macs for layer in layers), reverse=True)
    count = 0
    while left > 0 and count < len(most):
        left -= most[count]
        count += 1
    return [f"Half of the MACs are in {counted(count, 'layer')} of {len(layers)}."] if total else []


def inspection_picture(title: str, layers: Sequence[Inspected]) -> str:
    """The layers as an SVG file: bars of MACs and of parameters beside their names."""
    width, height = NAMES + 2 * (BAR + GAP), ROW * (len(layers) + 2)
    parts = [
        _word(8, 15, title, "start"),
        _word(NAMES, 15, "MACs", "start"),
        _word(NAMES + BAR + GAP, 15, "params", "start"),
    ]
    for i, layer in enumerate(layers, 1):
        foot = ROW * i + 15
        name = layer.layer if len(layer.layer) <= LONGEST else f"…{layer.layer[1 - LONGEST :]}"
        parts.append(_word(NAMES - 8, foot, name, "end"))
        for column, key in enumerate(("macs", "params")):
            most = max(getattr(one, key) for one in layers) or 1
            left, value = NAMES + column * (BAR + GAP), getattr(layer, key)
            long = BAR * value / most
            parts.append(f'<rect x="{left}" y="{foot - 12}" width="{long:.1f}" height="15"/>')
            parts.append(_word(left + long + 5, foot, human(value), "start"))
    name = escape(plain(title), quote=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{name}" viewBox="0 0 {width} {height}">'
    rules = [_rules(LIGHT), f"@media (prefers-color-scheme: dark) {{ {_rules(DARK)} }}"]
    back = f'<rect class="back" width="{width}" height="{height}"/>'
    return f"{head}<title>{name}</title><style>{' '.join(rules)}</style>{back}{''.join(parts)}</svg>\n"


def _rules(palette: dict[str, str]) -> str:
    return f"rect {{ fill: {palette['c0']} }} .back {{ fill: {palette['ground']} }} text {{ fill: {palette['text']} }}"


def _word(x: float, y: float, text: str, anchor: str) -> str:
    style = f'text-anchor="{anchor}" font-family="sans-serif" font-size="13"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(plain(text))}</text>'
