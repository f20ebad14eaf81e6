"""`explore`: plans of many budgets, a few networks, and what is kept of both."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import pytest

from cnncompress.api import run_decompose, run_explore
from cnncompress.config import DecomposeSettings, ExploreSettings
from cnncompress.errors import RunError
from cnncompress.pipeline import calibration, explore
from cnncompress.pipeline.plan import plan_within
from cnncompress.reporting.exploration import render_exploration
from tests.pipeline.networks import write_factory, write_images

ASKED = {"input_size": 8, "batch_size": 16, "method": "spatial-svd", "calibration_images": 16}
BUDGETS = ["macs=0.1,0.6,0.75,0.9"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network whose weights stay, and images."""
    monkeypatch.chdir(tmp_path)
    write_factory(tmp_path)
    code = Path("net.py").read_text()
    Path("net.py").write_text(code.replace("    return Net(", "    torch.manual_seed(0)\n    return Net("))
    return {**ASKED, "model": "net.py:build", "data": write_images(tmp_path / "images")}


def explored(place, **settings):
    asked = {"budgets": BUDGETS, "measure": 2, **place, **settings}
    return run_explore(ExploreSettings.model_validate(asked), ["cnncompress", "decompose", "net.py:build"])


@pytest.fixture
def made(monkeypatch):
    """The budgets whose networks are made."""
    budgets, measure = [], explore._measure
    monkeypatch.setattr(explore, "_measure", lambda bench, point: budgets.append(point.share) or measure(bench, point))
    return budgets


def test_plans_for_all_and_measurements_of_some(place, made):
    found = explored(place).exploration
    (curve,) = found.curves
    assert [point.share for point in curve.points] == [0.1, 0.6, 0.75, 0.9]
    assert "no plan meets the budget macs=0.1" in curve.points[0].refused
    assert all(point.rise > 0 and point.layers for point in curve.reached)
    assert all(point.left["macs"] <= point.share for point in curve.reached)
    measured = [point.share for point in curve.points if point.measured]
    assert measured == sorted(made)
    assert len(measured) == 2
    row = next(point.measured.row for point in curve.points if point.measured)
    assert row.macs < found.original.macs
    assert row.top1_error is not None


def test_an_interrupted_exploration_goes_on(place, made, monkeypatch):
    whole = explored(place, out="whole").exploration
    made.clear()
    measure, planned = explore._measure, explore._point

    def stopped(bench, point):
        if made:
            raise KeyboardInterrupt
        return measure(bench, point)

    monkeypatch.setattr(explore, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        explored(place)
    assert len(made) == 1
    monkeypatch.setattr(explore, "_measure", measure)
    monkeypatch.setattr(explore, "_point", lambda *_: pytest.fail("the plans are known"))
    again = explored(place).exploration
    assert len(made) == 2
    assert [p.measured and p.measured.row for p in again.points] == [
        p.measured and p.measured.row for p in whole.points
    ]
    explored(place)
    assert len(made) == 2
    monkeypatch.setattr(explore, "_point", planned)
    assert len(explored(place, budgets=["macs=0.6,0.75,0.8"], measure=0).exploration.points) == 3


def test_another_exploration_is_not_mixed_in(place):
    explored(place, measure=0)
    with pytest.raises(RunError, match="another network, or with other images"):
        explored(place, measure=0, method="channel-svd")
    explored(place, measure=0, method="channel-svd", force=True)
    Path("files").mkdir()
    Path("files/notes.txt").write_text("mine")
    with pytest.raises(RunError, match="a folder of other files"):
        explored(place, out="files")
    Path("explorations/build/exploration.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        explored(place)


@pytest.mark.slow
def test_its_command_makes_the_same_network_with_its_statistics(place, monkeypatch):
    found = explored(place, measure=1).exploration
    point = next(point for point in found.points if point.measured)
    words = shlex.split(found.command_of(point))
    assert words[:3] == ["cnncompress", "decompose", "net.py:build"]
    assert "--allow-slower" in words
    out = words[words.index("--out") + 1]
    collect = calibration.collect_statistics

    def of_one_example(network, batches, *args, positions=0, **options):
        return collect(network, batches, *args, positions=positions, **options) if positions else pytest.fail("again")

    monkeypatch.setattr(calibration, "collect_statistics", of_one_example)  # which tries whether gradients come
    monkeypatch.setattr("cnncompress.pipeline.plan.make_candidates", lambda *_, **__: pytest.fail("again"))
    settings = {**place, "budget": words[words.index("--budget") + 1], "allow_slower": True, "out": out}
    done = run_decompose(DecomposeSettings.model_validate(settings), words)
    assert "the statistics are those in explorations/build/statistics.safetensors" in done.report.notes
    assert "the plan is that in explorations/build: no candidates were tried" in done.report.notes
    assert sum(done.plan.rises.values()) == pytest.approx(point.rise)
    assert done.plan.achieved == point.left
    made, then = done.report.rows[1], point.measured.row
    assert (made.macs, made.params, made.top1) == (then.macs, then.params, then.top1)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: "{", "plans.json is not used: it is not JSON"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "plans.json is not used"),
        (lambda text: text.replace('"key": "', '"key": "0')[:-2] + "}", "plans.json is not used"),
        (lambda text: text.replace('"two": {"layer"', '"six": {"layer"'), "the network calls no layer 'six'"),
        (lambda text: json.dumps(json.loads(text) | {"key": 64 * "0"}), ""),
    ],
)
def test_plans_that_are_damaged_or_of_something_else_are_made_anew(damage, told, place, caplog):
    explored(place, measure=0)
    kept = Path("explorations/build/plans.json")
    text = kept.read_text()
    kept.write_text(damage(text))
    assert kept.read_text() != text
    settings = {**place, "budget": "macs=0.6", "allow_slower": True, "dry_run": True}
    done = run_decompose(DecomposeSettings.model_validate(settings), [])
    assert not any("the plan is that in" in note for note in done.report.notes)
    assert done.plan.achieved["macs"] <= 0.6
    assert told in caplog.text


@pytest.mark.parametrize("changes", [{"allow_slower": False}, {"budget": "macs=0.61"}, {"calibration_images": 15}])
def test_only_the_very_same_question_has_a_known_answer(changes, place, monkeypatch):
    explored(place, measure=0)
    settings = {**place, "budget": "macs=0.6", "allow_slower": True, "dry_run": True}
    asked = DecomposeSettings.model_validate(settings)
    assert any("the plan is that in" in note for note in run_decompose(asked, []).report.notes)
    asked = DecomposeSettings.model_validate(settings | changes)
    assert not any("the plan is that in" in note for note in run_decompose(asked, []).report.notes)


def test_a_budget_is_planned_once(place, monkeypatch):
    planned = []

    def counted(work, planning, budget, steps):
        planned.append(budget)
        return plan_within(work, planning, budget, steps)

    monkeypatch.setattr("cnncompress.pipeline.explore.plan_within", counted)
    points = explored(place, measure=1).exploration.points
    assert any(point.measured for point in points)
    assert planned == [point.budget for point in points]


def test_as_table_csv_and_json(place):
    found = explored(place).exploration
    table = render_exploration(found, "table", 80)
    lines = [line for line in table.splitlines() if not line.startswith("cnncompress ")]
    assert max(len(line) for line in lines if " " in line) <= 80  # a path alone in its line is not broken
    assert "no plan" in table
    rows = list(csv.DictReader(io.StringIO(render_exploration(found, "csv"))))
    assert [row["budget"] for row in rows] == ["macs=0.1", "macs=0.6", "macs=0.75", "macs=0.9"]
    values = json.loads(render_exploration(found, "json"))
    assert [point["predicted_rise"] for point in values["points"]] == [point.rise for point in found.points]
