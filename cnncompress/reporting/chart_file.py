"""Charts as a picture in a file of its own, one below the other, in the colours of pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cnncompress.reporting import svg
from cnncompress.reporting.palette import DARK, LIGHT, SERIES

WIDTH, HEIGHT = 720, 380  # pixels of a chart


def chart_file(charts: Sequence[svg.Chart]) -> str:
    """The charts as an SVG file that names no other file and follows the reader's light or dark."""
    drawn = [
        svg.draw(svg.numbered(one) if len(one.series) > 1 else one, WIDTH, HEIGHT).replace(
            "<svg ", f'<svg y="{i * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1
        )
        for i, one in enumerate(charts)
    ]
    name = escape("; ".join(one.title for one in charts), quote=True)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT * len(charts)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{name}" {size}>'
    style = f"<style>{RULES} {_colours(LIGHT)} @media (prefers-color-scheme: dark) {{ {_colours(DARK)} }}</style>"
    back = f'<rect class="back" width="{WIDTH}" height="{HEIGHT * len(charts)}"/>'
    return f"{head}{style}{back}{''.join(drawn)}</svg>\n"


RULES = (
    ".grid { stroke-width: .5; stroke-dasharray: 2 3; fill: none } .axis { fill: none } "
    "text { font-family: sans-serif } "
    ".joined, .error { fill: none; stroke-width: 1.5; stroke: currentColor } .mark { fill: currentColor }"
)


def _colours(palette: dict[str, str]) -> str:
    series = " ".join(f".c{i} {{ color: {palette[f'c{i}']} }}" for i in range(SERIES))
    lines = f".grid, .axis {{ stroke: {palette['line']} }} text {{ fill: {palette['text']} }}"
    return f"{series} {lines} .back {{ fill: {palette['panel']} }}"
