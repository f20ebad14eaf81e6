"""Pages as a browser lays them out, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from cnncompress.reporting import LayerRow, Report, Row
from cnncompress.reporting.classes import ClassChanges, ClassRow, Confusion
from cnncompress.reporting.embedded import Pixels
from cnncompress.reporting.examples import Example
from cnncompress.reporting.pictures import Filters, Pictures, Spectrum
from cnncompress.reporting.report_page import report_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 800, 1600)  # pixels
LONG = "features." + 12 * "denseblock" + ".conv"
SCRIPT = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement;
    const images = [...frame.contentDocument.images];
    return [page.clientWidth, page.scrollWidth, images.length, images.filter(image => image.naturalWidth > 0).length];
  });
  document.title = JSON.stringify(found);
});
</script>
"""


def page():
    """A page with a part of every kind, and names that are long."""
    rows = [
        Row(LONG, "original", 9, 10**9, 40, 90.0, 99.0, 500),
        Row("small", "decomposed", 5, 10**8, 9, 89.0, 99.0, 500),
    ]
    layers = [LayerRow(LONG, "channel-svd", (12,), (10, 5), (10**9, 10**8), 0.1, "3×3 3→8", 0.01)]
    lost, grown = ClassRow(LONG, 10, 90.0, 80.0, 9.0), Confusion(LONG, LONG, 1, 3)
    pixels = Pixels(96, 64)
    pixels.put(1, 1, (1.0, 0.5, 0.0))
    examples = [Example("small", LONG, "a", "b", pixels.png())] * 5
    changes = [ClassChanges("small", 10, (lost,), (grown,))]
    report = Report(rows, layers, {LONG: "it stays"}, ["a note"], changes=changes, examples=examples)
    spectra = tuple(Spectrum(LONG, "channel-svd", "2", ((1, 1.0), (2, 0.5), (3, 0.1)), 3, 2, 0.9) for _ in range(9))
    kernels = [[[[0.1, -0.2]], [[0.3, 0.4]], [[0.0, 1.0]]]] * 8
    now = [[[[0.1, -0.1]]] * 3] * 8
    return report_page(report, (), {"run": Pictures(spectra, Filters(LONG, kernels, now, (0.8, 0.9)))})


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_nothing_is_wider_than_the_screen_and_all_pictures_are_shown(tmp_path):
    frames = [f'<iframe width="{width}" height="900" srcdoc="{escape(page())}"></iframe>' for width in WIDTHS]
    (tmp_path / "frames.html").write_text(f"<!doctype html><title></title>{SCRIPT}{''.join(frames)}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(unescape(re.search(r"<title>([^<]*)</title>", done.stdout)[1]))
    assert len(found) == len(WIDTHS)
    for width, (inside, needed, images, shown) in zip(WIDTHS, found, strict=True):
        assert width - 20 <= inside <= width
        assert needed <= inside
        assert images == shown == 7  # five examples, and the filters before and now
