"""Spectra of layers as small charts, with the rank that was chosen."""

from __future__ import annotations

from html import escape

from cnncompress.reporting.page import Drawn, Section
from cnncompress.reporting.pictures import Pictures, Spectrum
from cnncompress.text import plain

WIDTH, HEIGHT, EDGE = 200, 90, 4  # pixels of a chart and around it
WHAT = (
    "Singular values of a layer's weight in the matrix that its method truncates, as shares of the largest, from the "
    "first to the last. What lies left of the line is kept; a method that truncates no matrix has no line, and the "
    "values are those that spatial-svd or channel-svd would truncate. The plan counts errors as images show them, so "
    "that a rank need not follow from the spectrum of the weight alone."
)


def spectra_section(found: Pictures, run: str = "") -> list[Section]:
    """The spectra of the layers of a run as a section; `run` names it where there are several."""
    drawn = [spectrum_chart(one) for one in found.spectra if one.values]
    title = f"Spectra{f', {run}' if run else ''}"
    return [Section(title, WHAT, small=drawn)] if drawn else []


def energy_chart(one: Spectrum) -> Drawn:
    """The energy of a layer by rank, filled up to the rank that keeps `energy` of it."""
    kept = f", {100 * one.energy:.0f} % at {one.rank}" if one.rank is not None and one.energy is not None else ""
    return _chart(one, f"{one.layer}: rank 1 to {one.full}{kept}")


def spectrum_chart(one: Spectrum) -> Drawn:
    """The values of a layer over their index, with the kept ones filled."""
    return _chart(one, told_of(one))


def _chart(one: Spectrum, told: str) -> Drawn:
    from markupsafe import Markup

    x = [EDGE + (WIDTH - 2 * EDGE) * (i - 1) / max(1, one.full - 1) for i, _ in one.values]
    y = [HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * value for _, value in one.values]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    foot = HEIGHT - EDGE
    parts = [f'<path class="axis" d="M{EDGE} {EDGE}V{foot}H{WIDTH - EDGE}"/>']
    if one.rank is not None:
        end = EDGE + (WIDTH - 2 * EDGE) * (one.rank - 1) / max(1, one.full - 1)
        inside = [(a, b) for a, b in zip(x, y, strict=True) if a <= end + 0.05]
        area = "L".join(f"{a:.1f} {b:.1f}" for a, b in [(EDGE, foot), *inside, (end, inside[-1][1]), (end, foot)])
        parts.append(f'<path class="area c0" d="M{area}z"/>')
        parts.append(f'<path class="joined c1" d="M{end:.1f} {EDGE}V{foot}"/>')
    parts.append(f'<path class="joined c0" d="M{line}"/>')
    name = escape(plain(told), quote=True)
    head = f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{name}">'
    return Drawn(Markup(f"{head}{''.join(parts)}</svg>"), "", told)


def told_of(one: Spectrum) -> str:
    """A spectrum in words: the layer, its rank and what that keeps."""
    if one.rank is None:
        return f"{one.layer}: {one.method}, rank {one.ranks}"
    kept = "" if one.energy is None else f", {100 * one.energy:.1f} % of the energy"
    return f"{one.layer}: {one.method}, rank {one.ranks} of {one.full}{kept}"
