"""A budget of MACs or parameters makes no network slower, unless it may, on a machine whose times are arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.errors import UnreachableError
from cnncompress.pipeline import guard
from tests.cli.arithmetic import results
from tests.marks import with_slow

pytestmark = pytest.mark.guarded
TIGHT = ("decompose", "digits_vgg", "--budget", "macs=0.2", "--runtime", "calls", "--threads", "1")
BUDGET = ("decompose", "digits_vgg", "--budget", "macs=0.5", "--runtime", "calls", "--threads", "1")


@pytest.mark.slow
def test_a_plan_that_is_no_slower_is_left_alone(machine, done):
    """Where MACs are time, a plan for half of them takes half the time; no chain is timed for that."""
    done(*BUDGET, "--out", "run")
    networks = machine.prepared
    (before, after), macs, plan = results()
    assert after / before == pytest.approx(macs[1] / macs[0])
    assert plan["achieved"]["latency"] == pytest.approx(after / before, rel=1e-3)
    assert networks <= 4
    done(*BUDGET, "--out", "other", "--allow-slower")
    assert results("other")[2]["layers"] == plan["layers"]


@pytest.mark.slow
def test_a_plan_that_would_be_slower_has_time_as_a_limit(machine, done):
    machine.a_call = 0.6
    done(*BUDGET, "--allow-slower", "--out", "free")
    (before, after), macs, _ = results("free")
    assert after > before
    assert macs[1] <= 0.5 * macs[0]
    text = done(*BUDGET, "--out", "run")
    (same, kept), macs, plan = results()
    assert same == before
    assert kept <= before
    assert macs[1] <= 0.5 * macs[0]
    assert plan["achieved"]["latency"] == pytest.approx(kept / before, rel=0.02)
    assert f"would take {after / before:.2f} of the original's time" in " ".join(text.split())
    assert "as --allow-slower permits" in " ".join(done("report", "free").split())


@pytest.mark.slow
@pytest.mark.parametrize("goal", with_slow([(), ("--dry-run",)], [("--dry-run",)]))
def test_where_nothing_meets_both_the_sentence_names_what_can_be_had(machine, refused, goal):
    machine.a_call = 2.0
    line = refused(*TIGHT, *goal, code=2)
    assert "every plan for macs=0.2 makes the network slower in calls" in line
    assert "--allow-slower" in line
    least = float(re.search(r"within it the least time is ([\d.]+) of the original's", line)[1])
    assert least > 1
    reach = float(re.search(r"go down to macs=([\d.]+)", line)[1])
    assert 0.2 < reach < 1


@pytest.mark.slow
def test_the_share_that_is_named_can_be_had(machine, refused, done):
    machine.a_call = 2.0
    reach = re.search(r"go down to macs=([\d.]+)", refused(*TIGHT, code=2))[1]
    budget = [f"macs={reach}" if word == "macs=0.2" else word for word in TIGHT]
    done(*budget, "--out", "run")
    (before, after), macs, _ = results()
    assert after <= before
    assert macs[1] <= float(reach) * macs[0]


@pytest.mark.slow
def test_so_can_one_where_chains_take_longer_in_the_network_than_alone(machine, refused, done):
    machine.a_call, machine.in_a_network = 1.5, 0.1
    reach = re.search(r"go down to macs=([\d.]+)", refused(*TIGHT, code=2))[1]
    done(*TIGHT[:3], f"macs={reach}", *TIGHT[4:], "--out", "run")
    (before, after), macs, _ = results()
    assert after <= before
    assert macs[1] <= float(reach) * macs[0]


@pytest.mark.slow
def test_where_every_chain_is_slower_that_is_said(machine, refused):
    machine.a_call = 1e4
    line = refused(*BUDGET, code=2)
    assert "no chain here is faster than its layer; --allow-slower" in line
    budget = ["params=0.5" if word == "macs=0.5" else word for word in BUDGET]
    assert "every plan for params=0.5" in refused(*budget, code=2)


@pytest.mark.slow
def test_a_config_and_a_plan_by_rank_may_be_slower(machine, done):
    machine.a_call = 1e4
    Path("job.yaml").write_text("model: digits_vgg\nbudget: macs=0.5\nallow_slower: true\nruntime: calls\n")
    done("decompose", "--config", "job.yaml", "--out", "run")
    assert results()[0][1] > results()[0][0]
    text = done("decompose", "digits_vgg", "--rank", "4", "--runtime", "calls", "--out", "rank")
    assert results("rank")[0][1] > results("rank")[0][0]
    assert "budget" not in text


def test_a_network_that_cannot_be_timed_is_planned_without(machine, done, monkeypatch):
    def fails(self, network, inputs, setting):
        raise cc.CompressError("no clock here")

    monkeypatch.setattr(machine, "prepare", fails)
    text = " ".join(done(*BUDGET, "--method", "spatial-svd", "--out", "run").split())
    assert "planned without regard to time, which was not measured: no clock here" in text
    assert json.loads(Path("run/plan.json").read_text())["achieved"]["macs"] <= 0.5


def test_in_python(monkeypatch):
    model = cc.load_model("digits_vgg").model
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shares = iter([1.5, 1.0])
    monkeypatch.setattr(guard.Guard, "_share", lambda self, plan: (None, next(shares), "contiguous"))

    def refuses(self, budget, timed, layout):
        raise UnreachableError("", {}, {"latency": 1.2, "macs": 0.8})

    monkeypatch.setattr(guard.Guard, "_within_time", refuses)
    given = (model, images, cc.Budget(macs=0.6))
    with pytest.raises(UnreachableError, match=r"slower in torch.* down to macs=0.800; --allow-slower"):
        cc.compress(*given, method="spatial-svd")
    plans = [cc.compress(*given, method="spatial-svd", allow_slower=slower).plan for slower in (False, True)]
    assert plans[0].layers == plans[1].layers
