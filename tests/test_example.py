"""The example of the documentation: the page shows the script as it is, and the script runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example.py"
RENDER = runpy.run_path(str(ROOT / "scripts" / "render_example.py"))


def test_the_page_shows_the_script():
    page, position = EXAMPLE.with_suffix(".md").read_text(encoding="utf-8"), 0
    cells = RENDER["cells"](EXAMPLE.read_text(encoding="utf-8"))
    assert len(cells) > 6
    for kind, body in cells:
        lines = [line.removeprefix("#").removeprefix(" ") for line in body.splitlines()]
        shown = "\n".join(lines) if kind == RENDER["PROSE"] else f"```python\n{body}\n```"
        assert shown in page[position:]
        position = page.index(shown, position) + len(shown)


def test_cells_are_run_in_order_and_what_they_print_is_shown():
    page = RENDER["render"]("# %% [markdown]\n# # Sum\n#\n# Two numbers.\n\n# %%\na = 2\n\n# %%\nprint(a + 3)\n")
    assert page == "# Sum\n\nTwo numbers.\n\n```python\na = 2\n```\n\n```python\nprint(a + 3)\n```\n\n```\n5\n```\n"


@pytest.mark.slow
def test_the_example_runs():
    """Its own assertions hold: the share of the MACs, the accuracy, the same outputs after loading."""
    assert "bytes" in RENDER["render"](EXAMPLE.read_text(encoding="utf-8")).splitlines()[-2]
