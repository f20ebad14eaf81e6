"""A runtime that one file adds works everywhere, the command line included."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch

from cnncompress.latency import chains
from cnncompress.latency.runtimes import REGISTRY, Runtime, register
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.network.counting import counting_macs
from cnncompress.planning import whole
from tests.timing import FEW


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """A runtime that needs a millisecond for a million multiply-accumulates."""
    monkeypatch.setattr(whole, "ROUNDS", FEW)
    monkeypatch.setattr(chains, "last_cache_bytes", lambda device: 64)
    monkeypatch.setenv("CNNCOMPRESS_CACHE", "cache")

    @register
    class Counted(Runtime):
        name = "counted"

        def version(self):
            return "1"

        def prepare(self, network, inputs, setting):
            with counting_macs() as counter, torch.no_grad():
                network(inputs)
            return lambda: counter.total / 1e6

        def milliseconds(self, call, setting):
            return call()

    yield Counted
    del REGISTRY["counted"]


def test_a_profile_in_it_beside_torch(done):
    text = done("profile", "digits_vgg", "--runtime", "torch", "--runtime", "counted:fp32", "--threads", "1")
    macs = int(re.search(r"^MACs +([\d,]+)$", text, re.MULTILINE)[1].replace(",", ""))
    ms = f"{macs / 1e6:.3g}"
    assert re.search(rf"^counted +{ms} \[{ms}–{ms}\] +\d+\.\d\d$", text, re.MULTILINE)
    assert re.search(r"^torch +[\d.]+ \[[\d.]+–[\d.]+\] +1\.00$", text, re.MULTILINE)
    assert re.match(r"(counted is .* than eager PyTorch|eager PyTorch is the fastest of these runtimes)\.\n", text)
    assert "latency in counted: batch 1, cpu, 1 thread, float32\n" in text


def test_a_budget_of_latency_is_planned_in_it_and_reported(done):
    """As its times are MACs, the network has the share of MACs that was asked for of the time; torch comes second."""
    budget = ("--budget", "latency=0.6", "--method", "spatial-svd", "--out", "run")
    done("decompose", "digits_vgg", *budget, "--runtime", "counted", "--runtime", "torch", "--threads", "1")
    rows = json.loads(Path("run/metrics.json").read_text())["rows"]
    for row in rows:
        assert row["latency_ms"]["median"] == pytest.approx(row["macs"] / 1e6)
        assert (row["latency_ms"]["runtime"], row["latency_ms"]["memory_format"]) == ("counted", "")
        assert [one["runtime"] for one in row["further_latency_ms"]] == ["torch"]
    assert rows[1]["latency_ms"]["original"] == rows[0]["latency_ms"]["median"]
    assert 0.57 < rows[1]["latency_ms"]["median"] / rows[0]["latency_ms"]["median"] <= 0.6
    stored = list(Path("cache").rglob("*.json"))
    identities = [json.loads(path.read_text())["identity"] for path in stored]
    assert {(one["runtime"], one["version"], one["dtype"]) for one in identities} == {("counted", "1", "float32")}

    assert re.search(r"^counted +[\d.]+ \[.*\] +[\d.]+ \[.*\] +0\.(5|6)\d×", done("report", "run"), re.MULTILINE)
    again = done("report", "run", "--latency", "--runtime", "counted", "--format", "csv")
    records = list(csv.DictReader(io.StringIO(again)))
    assert [one["runtime"] for one in records] == ["counted", "counted"]
    assert float(records[1]["latency_ratio"]) == pytest.approx(
        rows[1]["latency_ms"]["median"] / rows[0]["latency_ms"]["median"]
    )
    assert "in counted" in done("report", "run", "--latency", "--runtime", "counted")


def test_each_runtime_has_its_own_times():
    keys = {LatencyTable(TimingSetting(runtime, threads=1), None).identity["runtime"] for runtime in REGISTRY}
    assert keys == set(REGISTRY)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["profile", "digits_vgg", "--runtime", "countd"], 2, "unknown runtime 'countd'"),
        (["profile", "digits_vgg", "--runtime", "countd"], 2, "did you mean 'counted'"),
        (["profile", "digits_vgg", "--runtime", "counted:bf16"], 2, "has no precision 'bf16' (it has fp32)"),
        (
            ["profile", "digits_vgg", "--runtime", "counted", "--layers"],
            2,
            "counted: what layers take does not show there; leave out --layers",
        ),
        (["decompose", "digits_vgg", "--runtime", "counted:int8"], 2, "has no precision 'int8'"),
        (["report", "run", "--runtime", "counted"], 2, "give --latency with it"),
    ],
)
def test_what_it_does_not_have_is_said(args, code, words, refused):
    assert words in refused(*args, code=code)


def test_one_that_is_not_installed_says_so_before_any_work(counted, refused):
    counted.missing = lambda self: "counted is not installed: pip install counted"
    for args in (["profile", "digits_vgg"], ["decompose", "digits_vgg", "--budget", "latency=0.5"]):
        assert "pip install counted" in refused(*args, "--runtime", "counted")


def test_a_config_names_it(refused):
    Path("job.yaml").write_text("model: digits_vgg\nruntime: [counted, counter]\n")
    assert "job.yaml: runtime: unknown runtime 'counter'" in refused("decompose", "--config", "job.yaml", code=2)
