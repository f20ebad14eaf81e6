"""Memory formats: what a network runs in, what it is fastest in, what shares of latency are of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cnncompress.api import run_decompose
from cnncompress.chains.plan import Budget, Plan
from cnncompress.config import DecomposeSettings
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.network.copying import clone
from cnncompress.network.memory_format import memory_format_of, to_memory_format
from cnncompress.network.subject import look_at
from cnncompress.pipeline import timing
from cnncompress.pipeline.asked import Aim, NetworkAsked
from cnncompress.pipeline.formats import beside, converted, fastest, in_formats, in_words
from cnncompress.pipeline.latencies import measure_latency
from cnncompress.pipeline.opened import open_run
from cnncompress.planning import Guide, make_candidates
from tests.pipeline.networks import write_factory
from tests.timing import took

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Viewing(nn.Sequential):
    """Most networks before torch.flatten: only contiguous features can be viewed so."""

    def forward(self, x):
        x = self[0](x)
        return self[1](x.view(x.shape[0], -1))


class Volumes(nn.Sequential):
    """A convolution over three dimensions, whose kernel cannot be in channels_last."""

    def forward(self, x):
        return self[1](self[0](x)[:, :, None]).mean((2, 3, 4))


def viewing():
    return Viewing(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 2)).eval()


def volumes():
    return Volumes(nn.Conv2d(3, 4, 3), nn.Conv3d(4, 2, 1)).eval()


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


@pytest.mark.parametrize(
    ("build", "formats"),
    [(viewing, ["contiguous"]), (volumes, ["contiguous"]), (plain, ["contiguous", "channels_last"])],
)
def test_what_fails_drops_out(build, formats):
    model = build()
    found = in_formats(model, IMAGE)
    assert list(found) == formats
    assert found["contiguous"] is model
    assert {name: memory_format_of(one) for name, one in found.items()} == {name: name for name in formats}
    if build is not plain:
        with pytest.raises(CompressError) as raised:
            converted(model, IMAGE, "channels_last")
        assert "\n" not in str(raised.value)
    assert memory_format_of(model) == "contiguous"


def test_a_network_is_first_in_its_own_format():
    assert list(in_formats(to_memory_format(plain(), "channels_last"), IMAGE)) == ["channels_last", "contiguous"]


def test_kernels_that_are_in_both_orders_at_once():
    """1×1 kernels and depthwise ones have the same strides in both: only what is written down tells."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    assert memory_format_of(to_memory_format(model, "channels_last")) == "channels_last"
    assert memory_format_of(to_memory_format(model, "contiguous")) == "contiguous"
    mixed = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3))
    to_memory_format(mixed, "channels_last").to(memory_format=torch.contiguous_format)
    assert memory_format_of(mixed) == "contiguous"  # strides that can be in one order only count first


def test_the_fastest_format_is_a_networks_own_unless_another_is_worth_it():
    one = took(10.0)
    assert fastest({"contiguous": one, "channels_last": took(9.8)}) == "contiguous"
    assert fastest({"contiguous": one, "channels_last": took(7.0)}) == "channels_last"
    assert fastest({"channels_last": one}) == "channels_last"
    assert beside(one, took(4.0)) == replace(took(4.0), original=10.0)
    assert in_words({"contiguous": one}) == []
    assert in_words({"contiguous": one, "channels_last": took(8.0)}) == [
        "the original takes 0.80 of its time in channels_last instead of contiguous; shares of latency are of that"
    ]


@pytest.mark.parametrize(("asked", "planned"), [("", "channels_last"), ("contiguous", "contiguous")])
def test_shares_of_latency_are_of_the_original_in_its_fastest_format(monkeypatch, asked, planned):
    """100 ms as it came and 70 in channels_last: half of it is 35, whichever format is asked for."""
    taken = {"contiguous": 100.0, "channels_last": 70.0}
    times = {name: took(ms, name) for name, ms in taken.items()}
    monkeypatch.setattr(timing, "settled_table", lambda *_: LatencyTable(TimingSetting(), None))
    subject, setting = look_at(plain(), IMAGE), TimingSetting()
    timed = timing.TimedFormats(timing.originals_in(subject, setting, asked), times)
    found = make_candidates(subject, {}, Guide())
    model = timing.latency_model(found, timed, setting, asked, 1.0)
    assert (model.original_ms, model.reference_ms) == (taken[planned], 70.0)
    found = replace(found, times=model)
    assert (found.totals["latency"], found.references["latency"]) == (taken[planned], 70.0)


@pytest.mark.parametrize("build", [viewing, volumes])
def test_a_format_that_was_asked_for_is_checked(build):
    with pytest.raises(UsageError, match="does not run in the memory format channels_last") as raised:
        timing.check_format(build(), IMAGE, "channels_last")
    assert "\n" not in str(raised.value)


def test_a_budget_that_is_not_of_latency_needs_no_time(monkeypatch):
    def fails(*args, **how):
        raise UsageError("no clock here")

    monkeypatch.setattr(timing, "latency", fails)
    model = plain()
    given = model, clone(model), Plan(), IMAGE
    found = timing.time_result(*given, Aim(Budget(macs=0.5)), [TimingSetting()])
    assert found.times == ()
    assert [note.text for note in found.notes] == ["the latency was not measured: no clock here"]
    with pytest.raises(UsageError):
        timing.time_result(*given, Aim(Budget(latency=1)), [TimingSetting()])


def test_a_format_that_no_stride_tells_survives_a_reload(tmp_path, monkeypatch):
    """Kernels of 1×1 are in both orders at once: the run's plan tells, and its latency is labelled so."""
    monkeypatch.chdir(tmp_path)
    write_factory(tmp_path)
    asked = {"model": "net.py:pointwise", "input_size": 8, "rank": 2, "memory_format": "channels_last", "out": "run"}
    run_decompose(DecomposeSettings.model_validate(asked), [])
    run = open_run(Path("run"), NetworkAsked(trust_code=True))
    assert memory_format_of(run.model) == "channels_last"
    found = measure_latency(run, TimingSetting(threads=1))
    assert [latency.setting.memory_format for latency in found.values()][-1] == "channels_last"
