"""A page of every kind, with parts of every kind, and names that are long."""

from __future__ import annotations

from dataclasses import replace

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting import LayerRow, Report, Row, merge
from cnncompress.reporting.classes import ClassChanges, ClassRow, Confusion
from cnncompress.reporting.curve import Measured, Point
from cnncompress.reporting.embedded import Pixels
from cnncompress.reporting.evidence import Epoch, Evidence
from cnncompress.reporting.examples import Example
from cnncompress.reporting.exploration import Exploration, render_exploration
from cnncompress.reporting.inspection import Inspected, inspection_page
from cnncompress.reporting.layer_times import LayerTime, LayerTimes
from cnncompress.reporting.peers import Peer
from cnncompress.reporting.pictures import Filters, Pictures, Spectrum
from cnncompress.reporting.report_page import report_page

LONG = "features." + 12 * "denseblock" + ".conv"
TIME = Latency(8.0, 7.0, 9.5, TimingSetting(dtype="float32", threads=2, memory_format="contiguous"))
ORIGINAL = Row(LONG, "original", 9, 10**9, 40, 90.0, 99.0, 500, TIME)
SMALL = Row("small", "decomposed", 5, 10**8, 9, 89.0, 99.0, 500, replace(TIME, median=9.0, original=8.0))
SHOWN_IMAGES = 7  # on a page of `sample_run`: five examples, and the filters before and now


def _report(name: str) -> Report:
    layers = [LayerRow(name, "channel-svd", (12,), (10, 5), (10**9, 10**8), 0.1, "3×3 3→8", 0.01)]
    lost, grown = ClassRow(name, 10, 90.0, 80.0, 9.0), Confusion(name, name, 1, 3)
    pixels = Pixels(96, 64)
    pixels.put(1, 1, (1.0, 0.5, 0.0))
    examples = [Example("small", name, "a", "b", pixels.png())] * 5
    changes = [ClassChanges("small", 10, (lost,), (grown,))]
    rows = [replace(ORIGINAL, name=name), SMALL]
    taken = (LayerTime(name, "3×3 3→8", "channel-svd 12", 3.0, 2.0, (2.5, 1.5)), LayerTime("head", "8→2", "", 1.0, 1.0))
    times = [LayerTimes(name, SMALL.latency, taken)]
    told = {"changes": changes, "examples": examples, "layer_times": times}
    return Report(rows, layers, {name: "it stays"}, ["a note"], **told)


def _evidence(path: str, report: Report) -> Evidence:
    info = {"versions": {"torch": "2.11"}, "command": ["cnncompress", "decompose", path], "seed": 0, "created": "today"}
    plan = {"rises": {path: 0.002}, "achieved": {"macs": 0.5, "latency": 0.8}}
    return Evidence(path, report, info, plan, (Epoch(0, 80.0, 0.7, None), Epoch(1, 85.0, 0.5, 0.6), Epoch(2, 86.0)))


def sample_run(name: str = LONG) -> str:
    """The page of one run."""
    report = _report(name)
    spectra = tuple(Spectrum(name, "channel-svd", "2", ((1, 1.0), (2, 0.5), (3, 0.1)), 3, 2, 0.9) for _ in range(9))
    kernels = [[[[0.1, -0.2]], [[0.3, 0.4]], [[0.0, 1.0]]]] * 8
    now = [[[[0.1, -0.1]]] * 3] * 8
    pictures = {name: Pictures(spectra, Filters(name, kernels, now, (0.8, 0.9)))}
    return report_page(report, [_evidence(name, report)], pictures, [Peer("a peer", 0.5, 88.0, 6.0)])


def sample_runs() -> str:
    """The page of several runs."""
    reports = {f"runs/{letter}": _report(f"{letter}.{LONG}") for letter in "ab"}
    return report_page(merge(reports), [_evidence(path, report) for path, report in reports.items()])


def sample_exploration() -> str:
    """The page of an exploration over two costs."""
    points = []
    for cost in ("macs", "latency"):
        found = [Point(cost, share, {"macs": share, "params": share}, 0.1 / share, 3) for share in (0.3, 0.5, 0.7)]
        found[0] = replace(found[0], measured=Measured(replace(SMALL, name=LONG), 0.3))
        found[1] = replace(found[1], measured=Measured(SMALL, 0.2))
        points += found
    command = ("cnncompress", "decompose", LONG, "--weights", f"{LONG}.safetensors")
    return render_exploration(Exploration(LONG, tuple(points), ORIGINAL, command, ("a note",)), "html")


def sample_layers() -> str:
    """The page of the layers of a network."""
    layers = [
        Inspected(
            LONG, "3×3 3→64", 100, 3000, ["svd", "cp"], 8, {0.9: 2}, ms=1.25, energies=((1, 0.5), (2, 0.9), (8, 1.0))
        ),
        Inspected("b", "3×3", 200, 1000, [], note="it stays"),
    ]
    return inspection_page(LONG, f"{LONG}, weights", layers)
