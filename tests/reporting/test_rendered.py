"""Pages as a browser lays them out, where there is one: widths, pictures, and what axe-core says of them."""

from __future__ import annotations

import shutil
from importlib import resources

import pytest

from tests.reporting.samples import SHOWN_IMAGES, sample_exploration, sample_layers, sample_run, sample_runs
from tests.reporting.test_pages import EVIL

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 800, 1600)  # pixels
PAPER = 718  # pixels of a line on A4 with margins of 1 cm
PAGES = {"run": sample_run, "runs": sample_runs, "exploration": sample_exploration, "layers": sample_layers}
WAYS = {"light": ("screen", "light"), "dark": ("screen", "dark"), "print": ("print", "light")}
VIOLATIONS = """
axe.run({resultTypes: ["violations"]}).then(found =>
  found.violations.map(one => [one.id, one.help, ...one.nodes.map(node => node.html)].join("\\n")))
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of HTML from the disk in a way; what it says, asks or fetches is a failure in the end."""
    said = []

    def open_page(html, way="light"):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        media, scheme = WAYS[way]
        page = browser.new_page(color_scheme=scheme)
        page.emulate_media(media=media)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    assert said == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_and_axe_finds_no_violation(kind, way, opened):
    page = opened(PAGES[kind](), way)
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(VIOLATIONS) == [], width
        needed = page.evaluate("document.documentElement.scrollWidth")
        assert way == "print" or needed <= width


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_is_cut_off_on_paper(kind, opened):
    page = opened(PAGES[kind](), "print")
    page.set_viewport_size({"width": PAPER, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER


def test_all_pictures_are_shown(opened):
    page = opened(sample_run())
    assert page.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == SHOWN_IMAGES
    assert page.locator("img").count() == SHOWN_IMAGES


def test_a_script_in_a_name_does_nothing(opened):
    page = opened(sample_run(EVIL))
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == SHOWN_IMAGES
    assert EVIL in page.locator("main").inner_text()


def test_wide_tables_scroll_by_the_keyboard(opened):
    page = opened(sample_run())
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    page.keyboard.press("ArrowRight")
    moved = (page.evaluate("document.activeElement.scrollLeft") or page.wait_for_timeout(50) for _ in range(100))
    assert any(moved)
