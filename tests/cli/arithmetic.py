"""A machine whose times are arithmetic, and what the runs that were planned for it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cnncompress.latency import chains, network
from cnncompress.latency.clock import Rounds
from cnncompress.latency.runtimes import REGISTRY, Runtime, register
from cnncompress.network.counting import counting_macs
from cnncompress.network.kinds import is_layer
from cnncompress.pipeline import guard
from cnncompress.planning import whole

LAYERS = 9  # of `digits_vgg`
FEW = Rounds(warmup=0, least=1, seconds=0.0)


@pytest.fixture
def machine(monkeypatch, tmp_path_factory):
    """A runtime that needs a millisecond for a million multiply-accumulates and `a_call` for each layer.

    A network with chains takes `in_a_network` more for each.
    """
    for module in (network, whole, guard):
        monkeypatch.setattr(module, "ROUNDS", FEW)
    monkeypatch.setattr(chains, "last_cache_bytes", lambda device: 64)
    monkeypatch.setenv("CNNCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))

    @register
    class Calls(Runtime):
        name = "calls"
        a_call, in_a_network, prepared = 0.0, 0.0, 0

        def version(self):
            return "1"

        def prepare(self, network, inputs, setting):
            type(self).prepared += 1
            with counting_macs() as counter, torch.no_grad():
                network(inputs)
            calls = sum(is_layer(module) for module in network.modules())
            a_call = self.a_call + self.in_a_network * (calls > LAYERS)
            return lambda: counter.total / 1e6 + a_call * calls

        def milliseconds(self, call, setting):
            return call()

    yield Calls
    del REGISTRY["calls"]


def results(run="run"):
    """Of the two networks of a run the milliseconds and the MACs, and its plan."""
    rows = json.loads(Path(run, "metrics.json").read_text())["rows"]
    plan = json.loads(Path(run, "plan.json").read_text())
    return [row["latency_ms"]["median"] for row in rows], [row["macs"] for row in rows], plan
