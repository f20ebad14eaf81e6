"""A metric registered in this file alone works in statistics, fit, plan and on the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.chains.compose import compose
from cnncompress.chains.plan import Budget
from cnncompress.chains.spec import ConvSpec
from cnncompress.cli import main
from cnncompress.decompositions import get_method
from cnncompress.errors import UsageError
from cnncompress.fitting import decompose
from cnncompress.metrics import REGISTRY, Metric, Moment, layer_metrics, register
from cnncompress.network.provenance import provenance
from cnncompress.planning import plan
from cnncompress.runs import load_run
from cnncompress.statistics import collect_statistics
from tests.decompositions.helpers import made_up_statistics, randn

NAME = "input-variance"


@pytest.fixture(autouse=True)
def variance():
    """The metric, registered for one test."""

    @register
    class InputVariance(Metric):
        """Σ_p σ_p² Σ_f Δ_fp², σ_p² the variance of input p."""

        name = NAME
        source = "this test"
        needs = ("moment",)
        centred = True

        @classmethod
        def of(cls, spec, statistics):
            variances = statistics.moment.double().diagonal(dim1=1, dim2=2)
            return [cls(Moment(v.diag()), mean=m) for v, m in zip(variances, statistics.mean, strict=True)]

    yield InputVariance
    del REGISTRY[NAME]


@dataclass(frozen=True)
class Mixed(Metric):
    """tr(Δ Σ Δᵀ) + Σ_p (α_p Δ_p)²: neither separable nor by element."""

    parts: tuple[Metric, ...] = ()
    separable = False

    def apply(self, delta):
        return sum(part.apply(delta) for part in self.parts)

    def squared_error(self, delta):
        return sum(part.squared_error(delta) for part in self.parts)

    def reordered(self, index):
        return Mixed(parts=tuple(part.reordered(index) for part in self.parts))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def test_statistics_are_those_that_it_needs():
    x = torch.randn(8, 3, 6, 6)
    found = collect_statistics(network(), [x], NAME, positions=None, progress=False)["6"]
    assert found.moment is not None
    assert found.gradient is found.sensitivity is None


def test_the_fit_is_the_optimum_of_its_form():
    """Against numpy: W̃ = [W·diag(σ)]_K · diag(σ)⁻¹."""
    spec, rank = ConvSpec(12, 7, linear=True), 3
    weight, statistics = randn(*spec.weight_shape), made_up_statistics(spec)
    metrics = layer_metrics(NAME, spec, statistics)
    fit = get_method("svd")
    found = compose(fit.stages(spec, (rank,)), fit.factorize(weight, spec, (rank,), metrics))
    sigma = statistics.moment[0].diagonal().double().sqrt().numpy()
    U, S, Vh = np.linalg.svd(weight.flatten(1).numpy() * sigma, full_matrices=False)
    np.testing.assert_allclose(found.flatten(1).numpy(), (U[:, :rank] * S[:rank]) @ Vh[:rank] / sigma, atol=1e-8)
    assert metrics[0].squared_error(weight - found) == pytest.approx(float(np.sum(S[rank:] ** 2)))


@pytest.mark.parametrize("method", ["svd", "channel-svd", "spatial-svd", "tucker2", "cp", "monochromatic"])
def test_a_form_of_another_kind_is_fitted_by_descent(method):
    """It offers no whitener: every stage is improved by the gradient of the form, from the Frobenius norm's fit."""
    spec = ConvSpec(8, 6, linear=True) if method == "svd" else ConvSpec(4, 6, (3, 3))
    weight, statistics = randn(*spec.weight_shape), made_up_statistics(spec)
    forms = [layer_metrics(name, spec, statistics)[0] for name in ("data-covariance", "mahalanobis")]
    metric, fit = Mixed(parts=tuple(forms)), get_method(method)
    rank = fit.rank(spec, 2)
    chain = fit.stages(spec, rank)

    def error(metrics, refine: int) -> float:
        dense = compose(chain, fit.factorize(weight, spec, rank, metrics, refine))
        return sum(form.squared_error(weight - dense) for form in forms)

    plain, once, often = error(None, 0), error([metric], 1), error([metric], 4)
    assert often <= once < plain
    predicted = fit.errors(weight, spec, [rank], [metric])
    assert float(predicted[0]) == pytest.approx(once, rel=1e-6)


def test_a_budget_is_planned_and_fitted_in_it():
    model, x = network(), torch.randn(32, 3, 6, 6)
    statistics = collect_statistics(model, [x], NAME, progress=False)
    planned = plan(model, x[:1], budget=Budget(macs=0.6), metric=NAME, statistics=statistics, multiple=1)
    assert planned.metric == NAME
    assert planned.layers
    assert all(layer.chain[-1].bias for layer in planned.layers.values())  # it is centred
    small = decompose(model, planned, statistics=statistics, progress=False)
    assert all(0 < error < 1 for error in provenance(small).errors.values())
    assert provenance(small).rises == {}  # its errors are no nats


def command(*options: str) -> int:
    """The exit status of a small `decompose`."""
    images = "--data", "digits", "--calibration-images", "50"
    with pytest.raises(SystemExit) as exit_:
        main(["decompose", "digits_vgg", *images, "--layers", "features.3", "--rank", "0.3", *options])
    return exit_.value.code


def test_the_command_line_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("--metric", NAME, "--out", "run") == 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["metric"] == NAME
    assert NAME in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["report", "run", "--format", "json"])
    assert exit_.value.code == 0
    (row,) = json.loads(capsys.readouterr().out)["layers"]
    assert 0 < row["error"] < 1
    assert command("--metric", "input-varianc", "--out", "other") == 2
    assert f"did you mean '{NAME}'" in capsys.readouterr().err


def test_a_run_opens_where_it_is_not_registered(tmp_path, monkeypatch, variance):
    monkeypatch.chdir(tmp_path)
    assert command("--metric", NAME, "--out", "run") == 0
    del REGISTRY[NAME]
    try:
        assert load_run(tmp_path / "run").plan.metric == NAME
        with pytest.raises(UsageError, match=f"unknown metric '{NAME}'"):
            layer_metrics(NAME, ConvSpec(3, 4, linear=True), None)
    finally:
        register(variance)
