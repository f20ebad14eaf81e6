"""Times in a file: measured on one machine, planned with on another, which measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnncompress.latency.runtimes import REGISTRY
from tests.cli.arithmetic import results

pytestmark = pytest.mark.guarded
MODEL = ("digits_vgg", "--threads", "1")
PLAN = ("decompose", "digits_vgg", "--latency-table", "table.json")


@pytest.fixture
def table(machine, done):
    """A table of `digits_vgg` in a runtime that nobody has any more."""
    machine.a_call = 0.6
    text = done("profile", *MODEL, "--runtime", "calls", "--latency-table", "table.json")
    assert "params" in text
    own = REGISTRY.pop("calls")
    yield Path("table.json")
    REGISTRY["calls"] = own


def test_the_plan_is_that_of_the_machine_the_table_is_of(machine, table, done):
    prepared = machine.prepared
    text = " ".join(done(*PLAN, "--budget", "latency=0.8", "--method", "spatial-svd", "--out", "there").split())
    assert machine.prepared == prepared
    assert "planned with the times of digits_vgg in calls on " in text
    there = json.loads(Path("there/plan.json").read_text())
    assert [row["latency_ms"] for row in json.loads(Path("there/metrics.json").read_text())["rows"]] == [None, None]
    REGISTRY["calls"] = machine()
    budget = ("--budget", "latency=0.8", "--method", "spatial-svd", "--runtime", "calls", "--threads", "1")
    done("decompose", "digits_vgg", *budget, "--out", "here")
    (before, after), _, here = results("here")
    assert after / before == pytest.approx(there["achieved"]["latency"], abs=0.02)
    assert set(there["layers"]) == set(here["layers"])


@pytest.mark.slow
def test_the_time_of_the_table_is_a_limit_beside_other_budgets(table, done, refused):
    done(*PLAN, "--budget", "macs=0.5", "--out", "run")
    achieved = json.loads(Path("run/plan.json").read_text())["achieved"]
    assert achieved["macs"] <= 0.5
    assert 0.5 < achieved["latency"] <= 1
    values = json.loads(table.read_text())
    for layer in values["layers"]:
        own, *chains = layer["times"]
        layer["times"] = {own: layer["times"][own], **dict.fromkeys(chains, 1e6)}
    table.write_text(json.dumps(values))
    assert "no chain here is faster than its layer" in refused(*PLAN, "--budget", "macs=0.5", code=2)
    done(*PLAN, "--budget", "macs=0.5", "--allow-slower", "--out", "free")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("factor"), "not a table of times, as `profile --latency-table` writes: it lacks factor"),
        (lambda v: v.update(schema=2), "it is wrong at schema"),
        (lambda v: v.update(rows=3), "it has an unknown key rows"),
        (lambda v: v["layers"][0].update(size=[0, 3]), "it is wrong at layers.0.size.0"),
        (lambda v: v["layers"][0]["times"].update(x=0.0), "it is wrong at layers.0.times.x"),
        (lambda v: v.update(layers=v["layers"][1:]), "has no times of a layer"),
        (lambda v: [x.update(times=dict(list(x["times"].items())[:1])) for x in v["layers"]], "has no times of"),
    ],
)  # fmt: skip
def test_tables_that_are_none_are_refused_in_a_line(table, refused, change, words):
    values = json.loads(table.read_text())
    change(values)
    table.write_text(json.dumps(values))
    assert words in refused(*PLAN, "--budget", "latency=0.9", code=2)


def test_what_cannot_be_read_or_written_is_said_before_any_work(refused):
    assert "cannot read the table of times table.json" in refused(*PLAN, "--budget", "latency=0.9", code=2)
    assert "--latency-table is for budgets" in refused(*PLAN, "--rank", "4", code=2)
    Path("folder").mkdir()
    assert "it is a folder" in refused("profile", *MODEL, "--latency-table", "folder")
