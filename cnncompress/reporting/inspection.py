"""The layers of a network as a page and as a picture: where MACs and parameters sit, which methods apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cnncompress.reporting.cells import NONE
from cnncompress.reporting.page import Cell, Page, Section, Table, Tile, with_bars
from cnncompress.reporting.pictures import Spectrum
from cnncompress.reporting.spectra import energy_chart
from cnncompress.terminal.words import counted, human, listed

ENERGY = "50/90/99 % energy: the rank that keeps this share of the squared singular values, of the full rank"
SHOWN_ENERGY = 0.9  # share whose rank stands out in a chart
BY_RANK = (
    "The share of the squared singular values that a rank keeps, from the first to the full one, in the matrix that "
    "--method auto truncates. The line is where it is 90 %."
)


@dataclass
class Inspected:
    """One layer: what it is, what it costs, which methods apply, and the rank that keeps a share of its energy.

    `whole` says why it takes all its input channels, and is empty where the method select may leave fewer. `ms` are its
    milliseconds where they were measured, and `energies` pairs of a rank and the share of the energy that it keeps.
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
    ms: float | None = None
    energies: tuple[tuple[int, float], ...] = ()

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
    timed = any(layer.ms is not None for layer in layers)
    headers = ["layer", "MACs", "params", *["ms"] * timed, "shape", "50/90/99 % energy", "methods"]
    caption = "Layers in the order of their calls; bars are shares of the longest"
    cells = [_cells(layer, layers, letters) for layer in layers]
    last = "words" if any(layer.note for layer in layers) else "l"
    table = Table(caption, headers, cells, ["", "", "", *[""] * timed, "l", "", last])
    sections = [Section("Layers", text=f"{ENERGY}.", tables=[table], sentences=told_of(layers)), *_energies(layers)]
    return Page(title, _summary(layers, macs), tiles, lead, (), sections).html()


def _energies(layers: Sequence[Inspected]) -> list[Section]:
    """A chart for each layer of the energy by rank."""
    charts = []
    for one in layers:
        if one.energies and one.full_rank is not None:
            rank = one.rank_at.get(SHOWN_ENERGY)
            shown = Spectrum(one.layer, "", "", one.energies, one.full_rank, rank, SHOWN_ENERGY)
            charts.append(energy_chart(shown))
    return [Section("Energy by rank", BY_RANK, small=charts)] if charts else []


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
    times = [one.ms for one in layers if one.ms is not None]
    if times:
        cells.append(NONE if layer.ms is None else with_bars(f"{layer.ms:.3f}", (layer.ms,), max(times)))
    return [*cells, layer.shape, layer.ranks, layer.note or letters[", ".join(layer.methods)]]


def _summary(layers: Sequence[Inspected], total: int) -> list[str]:
    """How few layers hold half of the MACs."""
    left, most = total / 2, sorted((layer.macs for layer in layers), reverse=True)
    count = 0
    while left > 0 and count < len(most):
        left -= most[count]
        count += 1
    return [f"Half of the MACs are in {counted(count, 'layer')} of {len(layers)}."] if total else []
