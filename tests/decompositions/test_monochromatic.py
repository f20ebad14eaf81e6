"""Monochromatic filters: costs, ranks, planted colours, optimality where it is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, Permutation, chain_macs, chain_params, convolutions
from cnncompress.decompositions import get_method
from cnncompress.decompositions.refine import error_of, refine
from cnncompress.errors import UsageError
from cnncompress.metrics import layer_metrics
from tests.decompositions.helpers import (
    METRIC_NAMES,
    decide,
    factored,
    generator,
    images,
    made_up_statistics,
    randn,
    randomize,
    relative,
)
from tests.orders import never_rises

METHOD = get_method("monochromatic")


def approximate(weight: torch.Tensor, colours: int) -> torch.Tensor:
    F, C, kh, kw = weight.shape
    spec = ConvSpec(C, F, (kh, kw))
    return compose(METHOD.stages(spec, (colours,)), METHOD.factorize(weight, spec, (colours,), refine=0))


@pytest.mark.parametrize(("C", "F", "kernel", "colours"), [(3, 96, (7, 7), 6), (5, 12, (3, 5), 4), (8, 10, (1, 3), 10)])
def test_params_and_macs_are_those_of_the_paper(C, F, kernel, colours):
    """Table 2: CC' + XYF weights; Table 1: C'C at every input position, XYF at every output position."""
    spec = ConvSpec(C, F, kernel, stride=(2, 2))
    chain = METHOD.stages(spec, (colours,))
    assert chain_params(chain) == C * colours + kernel[0] * kernel[1] * F
    h, w = (20 - kernel[0]) // 2 + 1, (22 - kernel[1]) // 2 + 1
    assert chain_macs(chain, (20, 22)) == colours * C * 20 * 22 + kernel[0] * kernel[1] * F * h * w


@pytest.mark.parametrize(("colours", "speedup"), [(4, 2.97), (6, 2.95), (12, 2.91), (24, 2.82)])
def test_speedup_of_the_first_layer_of_the_paper(colours, speedup):
    """224×224 in, 110×110 out; an addition a filter for the bias, once."""
    spec = ConvSpec(3, 96, (7, 7), stride=(2, 2), padding=(1, 1), bias=True)
    assert spec.output_size((224, 224)) == (110, 110)
    assert spec.weights * 110**2 == 170_755_200
    macs = chain_macs(METHOD.stages(spec, (colours,)), (224, 224))
    assert round((170_755_200 + 96) / (macs + 96), 2) == speedup


def test_a_request_becomes_a_divisor_of_the_filters():
    spec = ConvSpec(3, 96, (7, 7))
    assert [METHOD.rank(spec, r) for r in (1, 5, 6, 95, 96)] == [(1,), (4,), (6,), (48,), (96,)]
    assert [METHOD.rank(spec, r) for r in (0.05, 0.25, 1.0)] == [(4,), (24,), (96,)]
    assert METHOD.rank(spec, (12,)) == (12,)
    with pytest.raises(UsageError, match="96 filters do not make 10 equal groups; next to it are 8 and 12"):
        METHOD.rank(spec, (10,))
    with pytest.raises(UsageError, match="not positive"):
        METHOD.rank(spec, 0)
    with pytest.raises(UsageError, match="equal groups"):
        METHOD.stages(spec, (97,))


def test_options_of_the_command_line():
    layer = nn.Conv2d(3, 96, 7, stride=2)
    decision = decide(layer, "monochromatic:colours=6,restarts=3")
    assert decision.rank == (6,)
    assert decision.options == {"restarts": 3, "seed": 0}
    assert "above its full rank" in decide(layer, "monochromatic:colours=97").reason
    with pytest.raises(UsageError, match="restarts"):
        decide(layer, "monochromatic:restarts=0")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(4, 4), "Linear"),
        (nn.Conv2d(4, 4, 1), "1×1"),
        (nn.Conv2d(1, 4, 3), "single input channel"),
        (nn.Conv2d(4, 8, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
    ],
)
def test_refusals(layer, reason):
    assert reason in decide(layer, "monochromatic").reason


@pytest.mark.parametrize(("C", "F", "colours"), [(3, 24, 4), (6, 24, 8), (16, 30, 5)])
def test_planted_colours_are_found(C, F, colours):
    owner = torch.arange(colours).repeat(F // colours)[torch.randperm(F, generator=generator(1))]
    weight = torch.einsum("fc,fij->fcij", randn(colours, C)[owner], randn(F, 3, 3, seed=2))
    spec = ConvSpec(C, F, (3, 3))
    chain, kernels = METHOD.stages(spec, (colours,)), METHOD.factorize(weight, spec, (colours,))
    assert relative(compose(chain, kernels), weight) < 1e-6
    found = kernels[2] // (F // colours)
    assert torch.equal(found[:, None] == found, owner[:, None] == owner)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize(("C", "F", "colours"), [(3, 24, 4), (16, 30, 5)])
def test_planted_colours_are_found_under_every_metric(C, F, colours, metric):
    owner = torch.arange(colours).repeat(F // colours)[torch.randperm(F, generator=generator(1))]
    weight = torch.einsum("fc,fij->fcij", randn(colours, C)[owner], randn(F, 3, 3, seed=2))
    spec = ConvSpec(C, F, (3, 3))
    metrics = layer_metrics(metric, spec, made_up_statistics(spec))
    for sweeps in (1, 3):
        kernels = METHOD.factorize(weight, spec, (colours,), metrics, sweeps)
        assert relative(compose(METHOD.stages(spec, (colours,)), kernels), weight) < 1e-6
        found = kernels[2] // (F // colours)
        assert torch.equal(found[:, None] == found, owner[:, None] == owner)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRIC_NAMES[1:])
def test_the_search_in_the_metric_beats_the_papers_clusters_refitted(metric):
    spec, weight = ConvSpec(3, 24, (5, 5)), randn(24, 3, 5, 5)
    metrics = layer_metrics(metric, spec, made_up_statistics(spec, rows=2000, decay=4.0))
    chain, form = METHOD.stages(spec, (4,)), METHOD.fitted_in(metrics[0])
    before = refine(chain, METHOD.factorize(weight, spec, (4,), metrics, 0), weight, form, 1)
    after = METHOD.factorize(weight, spec, (4,), metrics, 1)
    assert error_of(chain, after, weight, form) < 0.99 * error_of(chain, before, weight, form)


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker"])
def test_what_the_data_hardly_have_is_not_given_up(metric):
    """Half of the fit is the kernel itself: it stays nearer to it than the best coefficients in the metric alone."""
    spec, weight = ConvSpec(3, 24, (5, 5)), randn(24, 3, 5, 5)
    metrics = layer_metrics(metric, spec, made_up_statistics(spec, rows=2000, decay=8.0))
    chain = METHOD.stages(spec, (4,))
    found = METHOD.factorize(weight, spec, (4,), metrics)
    alone = refine(chain, found, weight, metrics[0], 1)
    assert error_of(chain, alone, weight, metrics[0]) < error_of(chain, found, weight, metrics[0])
    assert relative(compose(chain, found), weight) < relative(compose(chain, alone), weight)


def test_the_papers_own_procedure_does_not_search(monkeypatch):
    monkeypatch.setattr("cnncompress.decompositions.monochromatic.find_lines", None)
    spec, weight = ConvSpec(3, 12, (3, 3)), randn(12, 3, 3, 3)
    metrics = layer_metrics("data-covariance", spec, made_up_statistics(spec))
    METHOD.factorize(weight, spec, (4,), metrics, 0)
    refined = compose(METHOD.stages(spec, (4,)), METHOD.factorize(weight, spec, (4,), None, 1))
    torch.testing.assert_close(refined, approximate(weight, 4))
    with pytest.raises(TypeError):
        METHOD.factorize(weight, spec, (4,), metrics, 1)


def test_one_colour_is_the_optimal_one():
    weight = randn(6, 4, 3, 3)
    values = torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))
    assert relative(approximate(weight, 1), weight) == pytest.approx(
        float(1 - values[0] ** 2 / (values**2).sum()) ** 0.5
    )


def test_a_colour_a_filter_is_the_best_rank_one_fit_of_each():
    for weight in (randn(6, 4, 3, 3), randn(6, 12, 3, 1)):
        values = torch.linalg.svdvals(weight.flatten(2))
        expected = float((values[:, 1:] ** 2).sum() / (values**2).sum()) ** 0.5
        assert relative(approximate(weight, 6), weight) == pytest.approx(expected)


def test_more_colours_are_better_on_random_filters():
    weight = randn(24, 3, 5, 5)
    errors = [relative(approximate(weight, colours), weight) for colours in (1, 2, 4, 8, 24)]
    assert never_rises(errors)


def test_only_the_permutation_that_is_needed():
    spec = ConvSpec(3, 8, (3, 3), bias=True)
    for colours, permuted in [(1, False), (2, True), (8, False)]:
        chain = METHOD.stages(spec, (colours,))
        assert isinstance(chain[-1], Permutation) == permuted
        assert [s.bias for s in convolutions(chain)] == [False, True]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_the_layer_of_the_chain_computes_its_kernel(mode):
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=(2, 1), dilation=2, padding_mode=mode, bias=False).double()
    chain = factored(randomize(layer), decide(layer, "monochromatic", 4))
    x = images(layer)
    with torch.no_grad():
        got = chain(x)
        layer.weight.copy_(chain.to_dense())
        torch.testing.assert_close(got, layer(x))


def test_a_zero_weight_stays_zero():
    assert torch.equal(approximate(torch.zeros(6, 3, 3, 3), 3), torch.zeros(6, 3, 3, 3, dtype=torch.float64))
