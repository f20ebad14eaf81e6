"""What the metrics say about a layer's outputs, against what layers really put out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.chains.compose import extract_groups
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.fitting import Fitting, fit_layer
from cnncompress.metrics import get_metric, layer_metrics, squared_error
from cnncompress.network.kinds import spec_of
from cnncompress.planning import Choice, Kept, plan_layer
from cnncompress.statistics import collect_statistics
from tests.decompositions.helpers import made_up_statistics, randn, randomize, relative

LINEAR = ConvSpec(12, 7, linear=True)


class Layer(nn.Module):
    """A layer, its outputs flattened into logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).flatten(1)


def smooth_images(layer: nn.Module, n: int = 12) -> torch.Tensor:
    """Correlated inputs with a mean far from zero."""
    if isinstance(layer, nn.Linear):
        return randn(60, layer.in_features) @ randn(layer.in_features, layer.in_features, seed=1) + 2
    C = layer.in_channels
    x = torch.einsum("nchw,cd->ndhw", randn(n, C, 13, 14), randn(C, C, seed=1))
    return nn.functional.avg_pool2d(x, 3, 1) + torch.arange(C)[:, None, None]


LAYERS = {
    "padded": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided, no bias": lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "uneven": lambda: nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    "reflected": lambda: nn.Conv2d(4, 8, 3, padding=2, padding_mode="reflect", bias=False),
    "same, circular": lambda: nn.Conv2d(4, 8, (4, 3), padding="same", padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False),
    "1x1": lambda: nn.Conv2d(5, 6, 1, stride=2),
    "linear": lambda: nn.Linear(10, 6, bias=False),
}
METHODS = [
    "spatial-svd",
    "channel-svd",
    "svd",
    "tucker2",
    "cp",
    "monochromatic",
    "bicluster-svd",
    "bicluster-outer",
    "root",
    "composite",
]


def oas_share(S: np.ndarray, count: int) -> float:
    """Chen et al. 2010, equation 23."""
    n, trace, energy = len(S), np.trace(S), np.sum(S**2)
    return min(1.0, ((1 - 2 / n) * energy + trace**2) / ((count + 1 - 2 / n) * (energy - trace**2 / n)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_data_covariance_is_the_mean_squared_output_error(name, method):
    """And the mean output stays, whether the layer has a bias or not, and wherever the filters were sorted to."""
    layer = randomize(LAYERS[name]().double(), 5)
    model, x = Layer(layer), smooth_images(layer)
    spec = spec_of(layer)
    size = (x.shape[-2], x.shape[-1]) if x.dim() == 4 else (1, 1)
    decision = plan_layer(Call(0, spec, (size,)), Choice(method, 2), force=True, centred=True)
    if isinstance(decision, Kept):
        return
    found = collect_statistics(model, [x], "data-covariance", positions=None, progress=False)["layer"]
    fitted = fit_layer("layer", layer, decision, Fitting("data-covariance", found))
    with torch.no_grad():
        error, output = layer(x) - fitted.chain(x), layer(x)
    error = error.movedim(1, -1).reshape(-1, spec.out_channels)
    output = output.movedim(1, -1).reshape(-1, spec.out_channels)
    assert len(error) == found.rows
    scale = float(output.abs().max())
    assert float(error.mean(0).abs().max()) < 1e-6 * scale
    dense = extract_groups(fitted.chain.to_dense(), spec.groups)
    delta = (layer.weight.detach().reshape(spec.weight_shape) - dense).chunk(spec.groups)
    expected = 0.0
    for g, (moment, part) in enumerate(zip(found.moment.double().numpy(), delta, strict=True)):
        share, level = oas_share(moment, found.counted), np.trace(moment) / len(moment)
        mean_square = float(error.chunk(spec.groups, dim=1)[g].square().sum(1).mean())
        expected += (1 - share) * mean_square + share * level * float(part.square().sum())
    metrics = layer_metrics("data-covariance", spec, found)
    assert squared_error(metrics, torch.cat(delta)) == pytest.approx(expected, rel=1e-4)
    assert 0 < fitted.error < 1


def test_shrinkage_fades_with_many_rows():
    """With enough positions the metric is the mean squared output error itself, relative to the outputs' variance."""
    layer = randomize(nn.Conv2d(2, 6, 3, bias=False).double())
    x = smooth_images(layer, n=600)
    found = collect_statistics(Layer(layer), [x], positions=None, progress=False)["layer"]
    decision = plan_layer(Call(0, spec_of(layer), ((11, 12),)), Choice("channel-svd", 2), force=True, centred=True)
    fitted = fit_layer("layer", layer, decision, Fitting("data-covariance", found))
    with torch.no_grad():
        output = layer(x)
        error = float((output - fitted.chain(x)).square().mean((0, 2, 3)).sum())
        variance = float(output.movedim(1, 0).flatten(1).var(1).sum())
    assert fitted.error == pytest.approx((error / variance) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_half_the_kronecker_form_is_the_rise_of_the_loss(seed):
    """A softmax layer with small logits, where inputs and output gradients are close to independent.

    The second moment of 4000 drawn gradients is known to some 3 %; independence holds to a few more.
    """
    layer = nn.Linear(12, 6).double()
    randomize(layer, seed)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    x = randn(4000, 12, seed=seed + 20) @ (randn(12, 12, seed=seed + 30) / 12**0.5) + 0.5
    found = collect_statistics(Layer(layer), [x], "kronecker", positions=None, progress=False)["layer"]
    decision = plan_layer(Call(0, spec_of(layer), ((1, 1),)), Choice("svd", 2), force=True, centred=True)
    fitted = fit_layer("layer", layer, decision, Fitting("kronecker", found))
    with torch.no_grad():
        change = fitted.chain(x) - layer(x)
        logits = layer(x)
    start = logits.log_softmax(1)

    def rise(step: float) -> float:
        """E over images and the network's own labels of the loss: the Kullback-Leibler divergence."""
        return float((start.exp() * (start - (logits + step * change).log_softmax(1))).sum(1).mean())

    curvature = (rise(1e-2) + rise(-1e-2)) / 2 / 1e-4
    assert fitted.rise == pytest.approx(curvature, rel=0.1)
    assert fitted.rise == pytest.approx(rise(1.0), rel=0.1)


def test_a_layer_without_gradients_predicts_no_rise():
    layer = randomize(nn.Linear(12, 7))
    statistics = made_up_statistics(LINEAR)
    statistics.gradient.zero_()
    decision = plan_layer(Call(0, spec_of(layer), ((1, 1),)), Choice("svd", 2), force=True, centred=True)
    fitted = fit_layer("layer", layer, decision, Fitting("kronecker", statistics))
    assert fitted.rise == pytest.approx(0, abs=1e-20)
    assert 0 < fitted.error < 1


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_constant_images_through_real_statistics(metric, value):
    """No variance anywhere: the error still is that of the weight, and the one output there is stays."""
    layer = randomize(nn.Conv2d(3, 6, 3))
    x = torch.full((4, 3, 6, 6), value)
    found = collect_statistics(Layer(layer), [(x, torch.zeros(4).long())], metric, progress=False)["layer"]
    centred = get_metric(metric).centred
    decision = plan_layer(Call(0, spec_of(layer), ((6, 6),)), Choice("channel-svd", 3), force=True, centred=centred)
    fitted = fit_layer("layer", layer, decision, Fitting(metric, found))
    assert all(torch.isfinite(p).all() for p in fitted.chain.parameters())
    assert 0 < fitted.error < 1
    if centred:
        assert relative(fitted.chain(x), layer(x)) < 1e-5
