"""Pages and pictures that commands write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cnncompress.pipeline import page
from tests.cli.conftest import edit_json
from tests.reporting.pages import look_at

STAGES = ("in the original", "now")
EVIL = "<script>alert(1)<"  # a folder may be called so


def test_the_page_of_a_run_holds_all_that_it_shows(saved, done, tmp_path):
    shutil.copytree(saved, tmp_path / EVIL)
    edit_json(tmp_path / EVIL / "run.json", command=["cnncompress", "decompose", EVIL])
    epochs = [{"epoch": epoch, "train_loss": 0.5, "val_top1": 80 + epoch, "val_loss": 0.4} for epoch in range(3)]
    Path(tmp_path, EVIL, "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    done("report", EVIL, "--format", "html", "--output", "page.html")
    page = Path(tmp_path, "page.html").read_text()
    seen = look_at(page)
    assert seen.wrong == []
    assert EVIL not in page
    text = " ".join(seen.text)
    assert f"cnncompress decompose '{EVIL}'" in text
    assert "No accuracy was measured" in text
    assert "features.0" in text
    assert [a["alt"] for a in seen.named("img")] == [f"Filters of features.0 {when}: 16 of 3×3" for when in STAGES]
    assert any("from 80 to 82" in (a.get("aria-label") or "") for a in seen.named("svg"))
    assert f"cnncompress report '{EVIL}' --latency --format html" in text
    assert len(page) < 2_000_000


@pytest.mark.slow
def test_the_page_of_a_run_that_was_timed_shows_where_its_time_goes(done):
    done("decompose", "digits_vgg", "--budget", "macs=0.8", "--threads", "1", "--out", "run")
    (times,) = json.loads(Path("run/metrics.json").read_text())["layer_times"]
    assert times["layers"][0]["layer"] == "features.0"
    assert all(layer["after"] > 0 and layer["before"] > 0 for layer in times["layers"])
    assert sum(layer["after"] for layer in times["layers"]) < 2 * times["latency"]["median"]
    seen = look_at(done("report", "run", "--format", "html"))
    assert seen.wrong == []
    text = " ".join(seen.text)
    assert "planned ms" not in text  # no budget of latency
    assert "all else" in text


@pytest.mark.slow
def test_networks_are_built_once_for_a_page(done, monkeypatch):
    done("decompose", "digits_vgg", "--rank", "4", "--out", "run")
    built = []
    for name in ("open_run", "original_network"):
        build = getattr(page, name)
        monkeypatch.setattr(page, name, lambda *given, build=build, name=name: (built.append(name), build(*given))[1])
    done("report", "run", "--data", "digits", "--format", "html")
    assert built == ["open_run", "original_network"]


@pytest.mark.parametrize("line", ["[]", '{"epoch": "one"}', "{", '{"epoch": 1, "epoch": 2}'])
def test_a_damaged_history_is_named(line, run_copy, refused):
    Path("run/history.jsonl").write_text(line)
    assert "history.jsonl is damaged" in refused("report", run_copy, "--format", "html")


def test_layers_as_a_page_and_a_picture(done):
    page, picture = ("--format", "html", "--output", "layers.html"), ("--plot", "layers.svg")
    done("inspect", "digits_vgg", "--latency", "--threads", "1", *page, *picture)
    seen = look_at(Path("layers.html").read_text())
    assert seen.wrong == []
    assert "Half of the MACs are in 3 layers of 9." in seen.text
    assert any("features.0: rank 1 to 9, 90 % at" in (a.get("aria-label") or "") for a in seen.named("svg"))
    assert ">ms</text>" in Path("layers.svg").read_text()


def test_the_plan_of_a_run_as_a_picture(saved, done, refused):
    done("inspect", saved, "--plot", "plan.svg")
    text = look_at("<h1></h1>" + Path("plan.svg").read_text()).text
    assert {"features.0", "spatial-svd 4"} <= set(text)
    assert "profile" in refused("inspect", saved, "--latency", code=2)


def test_a_page_without_a_place_is_printed_and_a_table_has_none(done, refused):
    assert done("inspect", "digits_vgg", "--format", "html").startswith("<!doctype html>")
    assert "give --format html" in refused("inspect", "digits_vgg", "--output", "layers.html", code=2)


def test_options_of_pages_alone(done, refused):
    Path("peers.csv").write_text("name,macs,top1\nother,0.5,90\n")
    done("decompose", "digits_vgg", "--rank", "4", "--out", "run")
    for args, words in (
        (["--peers", "peers.csv"], "give --format html"),
        (["--thumbnails", "4", "--data", "digits"], "give --format html"),
        (["--thumbnails", "4", "--format", "html"], "give --data"),
        (["--thumbnails", "0", "--format", "html", "--data", "digits"], "from 1 to 48"),
        (["--peers", "none.csv", "--format", "html"], "cannot read the peers none.csv"),
    ):
        assert words in refused("report", "run", *args, code=2)
    done(
        "report",
        "run",
        *["--data", "digits", "--format", "html", "--thumbnails", "3", "--peers", "peers.csv", "--output", "page.html"],
    )
    seen = look_at(Path("page.html").read_text())
    assert seen.wrong == []
    assert len([a for a in seen.named("img") if "jpeg" in a["src"]]) == 3
    half = json.loads(Path("run/metrics.json").read_text())["rows"][0]["macs"] / 2
    told = f"other: {half / 1e6:.3f}M MACs, top-1 90.00 %"
    assert any(told in (a.get("aria-label") or "") for a in seen.named("svg"))
