"""What `decompose` does where nothing says how much is to be kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnncompress.api import job_of, run_decompose
from cnncompress.chains.plan import Budget, Plan
from cnncompress.config import DecomposeSettings, merge
from cnncompress.errors import UnreachableError, UsageError
from cnncompress.pipeline.asked import Aim, ImagesAsked, Job, NetworkAsked
from cnncompress.pipeline.plan import within_reach
from cnncompress.pipeline.words import hint
from tests.pipeline.networks import write_factory, write_images

CONFIGS = Path(__file__).parents[2] / "configs"


def resolved(**settings):
    return DecomposeSettings.model_validate({"model": "net", **settings}).resolved()


@pytest.mark.parametrize(
    "settings", [{}, {"skip": ["head"]}, {"method": "spatial-svd"}, {"method": "cp:iterations=5"}, {"correct": "bias"}]
)
def test_images_and_nothing_else_plan_for_half_the_macs(settings):
    found = resolved(data="images", **settings)
    assert found.budget == Budget(macs=0.5)
    assert found.assumes_budget
    assert found.metric == "kronecker"
    assert found.correct == settings.get("correct", "refit")
    assert found.resolved() == found


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4},
        {"rank": 0.25},
        {"method": "monochromatic:colours=6"},
        {"method": "root:groups=8"},
        {"method": "bicluster-svd:G=2,H=2,K1=19,K2=24"},
        {"per_layer": {"one": {"rank": 3}}},
        {"plan": "plan.json"},
        {"max_drop": 1},
        {"budget": "params=0.3"},
    ],
)
def test_what_says_how_much_is_followed(settings):
    found = resolved(data="images", **settings)
    assert not found.assumes_budget
    assert found.budget == (Budget(params=0.3) if "budget" in settings else None)
    guided = bool({"plan", "max_drop", "budget"} & set(settings))
    assert found.correct == ("refit" if guided else "none")
    assert found.metric == ("kronecker" if guided else "frobenius")


def test_random_kernels_are_planned_by_rank():
    found = resolved(data="images", init="scratch", rank=4)
    assert (found.budget, found.metric, found.correct, found.init) == (None, "frobenius", "none", "scratch")
    assert found.resolved() == found


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"budget": "macs=0.5"}, "--budget"), ({"correct": "refit"}, "--correct refit"), ({"refine": 2}, "--refine")],
)
def test_random_kernels_have_no_errors_to_look_at(settings, flag):
    with pytest.raises(UsageError, match=f"--init scratch has random kernels, so there is no error for {flag};"):
        resolved(data="images", init="scratch", **settings)


def test_without_images_every_layer_has_a_quarter_of_its_rank():
    found = resolved()
    assert (found.budget, found.rank, found.metric, found.correct) == (None, 0.25, "frobenius", "none")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*20*_*.yaml")), ids=lambda path: path.stem)
def test_the_papers_say_their_ranks(path):
    assert merge(DecomposeSettings, path, {"data": "images"}).resolved().budget is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--data FOLDER (fifty or more images, labels not needed)"),
        ({"rank": 0.25}, "--data FOLDER (fifty or more images, labels not needed)"),
        ({"data": "images"}, "no budget was given, so the plan is for macs=0.5"),
        ({"data": "images", "rank": 0.25}, "--correct refit fits them to the images of --data too"),
    ],
)
def test_a_hint_says_what_could_be_asked_for(settings, words):
    assert words in hint(job_of(resolved(**settings)))


@pytest.mark.parametrize(
    "settings",
    [{"data": "images", "budget": "macs=0.5"}, {"data": "images", "rank": 4, "correct": "refit"}, {"init": "scratch"}],
)
def test_no_hint_where_images_are_made_use_of_or_nothing_is_fitted(settings):
    assert hint(job_of(resolved(**settings))) == ""


def planned(budget):
    """A plan within any budget from a share of 0.7 on."""
    if budget.macs < 0.7:
        raise UnreachableError("no plan meets the budget", {"macs": 0.7})
    return Plan(achieved={"macs": budget.macs})


def test_a_budget_out_of_reach_that_nobody_asked_for_is_raised_halfway():
    half = Budget(macs=0.5)
    aim, plan = within_reach(planned, Aim(half, assumed=True), half)
    assert plan.achieved["macs"] == 0.85
    assert aim.budget == Budget(macs=0.85)
    assert "the plan is for macs=0.85" in hint(Job(NetworkAsked("net"), ImagesAsked("images"), aim))
    with pytest.raises(UnreachableError):
        within_reach(planned, Aim(half), half)


def test_a_folder_of_images_is_all_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"model": write_factory(tmp_path), "data": write_images(tmp_path / "images"), "input_size": 8}
    done = run_decompose(DecomposeSettings.model_validate({**asked, "dry_run": True}), [])
    before, after = done.report.rows
    assert after.macs <= 0.5 * before.macs
    assert done.plan.metric == "kronecker"
    assert "the plan is for macs=0.5" in done.hint
