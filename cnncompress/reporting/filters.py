"""The filters of a first layer as pictures, and their colours (Denton et al. 2014, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from cnncompress.reporting.embedded import Pixels, picture
from cnncompress.reporting.page import Drawn, Section
from cnncompress.reporting.pictures import Kernels, Pictures
from cnncompress.text import plain

WIDE = 1.6  # a mosaic is about so many times as wide as high
GAP = 1  # pixels between filters
SIDE, REACH = 300, 118  # pixels of a scatter, and from its middle to a weight of the largest size
POINTS = 2400  # weights of a scatter at most
AXES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
TURN = 137.508  # degrees between the hues of filters that follow each other


def filters_section(found: Pictures, run: str = "") -> list[Section]:
    """The first layer of a run as a section; `run` names it where there are several."""
    filters = found.filters
    if filters is None:
        return []
    title = f"First layer{f', {run}' if run else ''}"
    times = {"in the original": filters.before}
    if filters.now is None:
        text = f"The filters of {filters.layer} in the original; no kernel of their size does what stands for them now."
    elif filters.now == filters.before:
        text = f"The filters of {filters.layer}, which stayed as they were."
    else:
        text = f"The filters of {filters.layer} in the original, and what stands for them now."
        times["now"] = filters.now
    sizes = [_largest(kernel) for kernel in filters.before]
    charts = [mosaic(kernels, sizes, f"Filters of {filters.layer} {when}") for when, kernels in times.items()]
    if filters.lines is not None:
        for (when, kernels), share in zip(times.items(), filters.lines, strict=False):
            charts.append(scatter(kernels, max(sizes, default=0.0), share, f"Colours of {filters.layer} {when}"))
    return [Section(title, text, small=charts)]


def _largest(kernel: Sequence[Sequence[Sequence[float]]]) -> float:
    return max((abs(v) for plane in kernel for row in plane for v in row), default=0.0)


def mosaic(kernels: Kernels, sizes: Sequence[float], title: str) -> Drawn:
    """The filters side by side; grey is zero, and the ends of a colour are the largest weight of the original's."""
    high, wide = len(kernels[0][0]), len(kernels[0][0][0])
    across = max(1, min(len(kernels), math.ceil(math.sqrt(len(kernels) * WIDE * high / wide))))
    down = math.ceil(len(kernels) / across)
    pixels = Pixels(across * (wide + GAP) - GAP, down * (high + GAP) - GAP)
    for place, kernel in enumerate(kernels):
        size = (sizes[place] if place < len(sizes) else _largest(kernel)) or 1.0
        left, top = (place % across) * (wide + GAP), (place // across) * (high + GAP)
        planes = kernel if len(kernel) == 3 else [kernel[0]] * 3
        for y in range(high):
            for x in range(wide):
                pixels.put(left + x, top + y, [0.5 + plane[y][x] / (2 * size) for plane in planes])
    told = f"{title}: {len(kernels)} of {high}×{wide}"
    return Drawn(picture(pixels.png(), told, pixelated=True), "", told)


def scatter(kernels: Kernels, size: float, line: float, title: str) -> Drawn:
    """Every weight by its red, green and blue part, seen along their diagonal; the weights of a filter have one hue."""
    from markupsafe import Markup

    spots = sum(len(kernel[0]) * len(kernel[0][0]) for kernel in kernels)
    step = max(1, math.ceil(spots / POINTS))
    parts = [_axis(name, direction) for name, direction in AXES.items()]
    for place, kernel in enumerate(kernels):
        weights = [*zip(*([v for row in plane for v in row] for plane in kernel), strict=True)]
        dots = "".join("M{:.0f} {:.0f}h0".format(*_seen(weight, size)) for weight in weights[place % step :: step])
        parts.append(f'<path class="dots" style="stroke:hsl({place * TURN % 360:.0f} 65% 50%)" d="{dots}"/>')
    told = f"{title}: each weight in the space of red, green and blue, a hue for each filter"
    told += f"; one line through the middle holds {100 * line:.0f} % of a filter's squares, on average"
    name = escape(plain(told), quote=True)
    head = f'<svg class="chart" role="img" viewBox="0 0 {SIDE} {SIDE}" aria-label="{name}">'
    return Drawn(Markup(f"{head}{''.join(parts)}</svg>"), "", told)


def _seen(weight: Sequence[float], size: float) -> tuple[float, float]:
    """The pixel of a weight (red, green, blue): the three axes are 120 degrees apart."""
    red, green, blue = (v / (size or 1.0) for v in weight)
    across, up = (green - red) * math.sqrt(0.75), blue - (red + green) / 2
    return SIDE / 2 + REACH * across, SIDE / 2 - REACH * up


def _axis(name: str, direction: Sequence[float]) -> str:
    """An axis from the middle, and its name at its end."""
    x, y = _seen(direction, 1.0)
    beyond = _seen([1.15 * v for v in direction], 1.0)
    middle = SIDE / 2
    word = f'<text x="{beyond[0]:.0f}" y="{beyond[1] + 4:.0f}" text-anchor="middle" font-size="12">{name}</text>'
    return f'<path class="axis" d="M{middle:.0f} {middle:.0f}L{x:.0f} {y:.0f}"/>{word}'
