"""ACDC: costs as it trains and as it runs, fits, the diagonals that are trained and stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.compose import compose
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec, chain_macs, chain_params, fewest_macs
from cnncompress.chains.stages import STAGES, Acdc
from cnncompress.chains.stages.acdc import fast_macs
from cnncompress.chains.training import fold, folded, start_training
from cnncompress.correction.reconstruct import reconstruct
from cnncompress.decompositions import get_method
from cnncompress.finetuning import FinetuneSettings
from cnncompress.finetuning.optimization import make_optimizer
from cnncompress.metrics import FROBENIUS, layer_metrics
from tests.decompositions.helpers import decide, generator, images, made_up_statistics, randn, randomize
from tests.finetuning.toy import tune

SPEC = ConvSpec(8, 6, (3, 3), padding=(1, 1), bias=True)


def network(dtype=torch.float32, taps="free") -> nn.Sequential:
    """Two chains of diagonals and a classifier of images [n, 3, 8, 8]."""
    torch.manual_seed(0)
    chains, method = [], get_method("acdc", taps=taps)
    for i, spec in enumerate((ConvSpec(3, 8, (3, 3), padding=(1, 1), bias=True), SPEC)):
        chain = FactoredLayer(method.stages(spec, (3,)), dtype=dtype)
        chain.write_kernels(method.scratch(spec, (3,), generator(i)))
        chains += [chain, nn.ReLU()]
    return nn.Sequential(*chains, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3, dtype=dtype)).eval()


# --- shapes and costs ---


@pytest.mark.parametrize(("C", "F"), [(12, 12), (12, 24), (24, 8), (5, 7)])
def test_params_and_macs(C, F):
    """It runs as C·kh·kw and C·F weights, and trains as 2·depth·max(C, F) in the place of the latter."""
    spec = ConvSpec(C, F, (3, 5), stride=(2, 1), bias=True)
    positions = ((11 - 3) // 2 + 1) * (13 - 5 + 1)
    chain = get_method("acdc").stages(spec, (12,))
    assert chain_params(chain) == C * 15 + C * F + F
    assert chain_macs(chain, (11, 13)) == (C * 15 + C * F) * positions
    assert sum(stage.trained_params for stage in chain) == C * 15 + 24 * max(C, F) + F


def test_fast_transforms_take_fewer_from_603_channels_on():
    """12·(4n + 5n·log₂n) against n²."""
    assert fast_macs(602, 12) > 602**2
    assert fast_macs(603, 12) < 603**2
    for n, expected in ((64, 64 * 64), (640, math.ceil(12 * 640 * (4 + 5 * math.log2(640))))):
        assert fewest_macs((Acdc(ConvSpec(n, n)),), (2, 3)) == expected * 6


def test_the_depth_is_the_rank():
    method = get_method("acdc")
    assert [method.rank(SPEC, request) for request in (0.25, 1.0, 3, 12, (5,))] == [(12,), (12,), (3,), (12,), (5,)]
    assert decide(nn.Conv2d(8, 6, 3), "acdc:depth=5", 0.25).chain[1].depth == 5
    assert "above its full rank 12" in decide(nn.Conv2d(8, 6, 3), "acdc:depth=13").reason
    assert "method svd" in decide(nn.Linear(8, 6), "acdc").reason
    assert "depthwise" in decide(nn.Conv2d(8, 8, 3, groups=8), "acdc").reason
    assert "would not be cheaper" in decide(nn.Conv2d(8, 8, 1), "acdc", force=False).reason


def test_a_stage_is_pointwise_or_depthwise():
    with pytest.raises(ValueError, match="are not"):
        Acdc(SPEC)
    with pytest.raises(ValueError, match="are not"):
        Acdc(ConvSpec(4, 8, (3, 3), groups=4))
    values = {"kind": "acdc", **Acdc(ConvSpec(4, 4)).to_json()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    with pytest.raises(ValueError, match="are not"):
        STAGES["acdc"].schema.model_validate(values | {"kernel_size": [3, 1]}, strict=True)
    with pytest.raises(ValueError, match="greater than or equal"):
        STAGES["acdc"].schema.model_validate(values | {"depth": 0}, strict=True)


# --- filters that are products too ---


@pytest.mark.parametrize(("kernel", "entries"), [((3, 3), 6), ((5, 5), 10), ((3, 5), 10)])
def test_filters_of_diagonals_train_as_two_of_them(kernel, entries):
    """One layer with n = max(kh, kw): 6 for a 3×3, as in SECL-LR; what runs has kh·kw taps a channel as before."""
    spec = ConvSpec(8, 6, kernel, stride=(2, 1), padding=(1, 2), bias=True)
    free, products = (get_method("acdc", taps=taps).stages(spec, (12,)) for taps in ("free", "diagonals"))
    assert sum(stage.trained_params for stage in products) == 8 * entries + 24 * 8 + 6
    assert chain_params(products) == chain_params(free)
    assert chain_macs(products, (9, 11)) == fewest_macs(products, (9, 11)) == chain_macs(free, (9, 11))
    assert get_method("acdc", taps="diagonals").stages(ConvSpec(8, 6), (12,)) == (Acdc(ConvSpec(8, 6), 12),)


def test_a_filter_is_the_matrix_of_its_diagonals():
    """A C D C⁻¹ with its rows shuffled: 0, 2, 1."""
    stage, diagonals = Acdc(ConvSpec(2, 2, (3, 3), groups=2), 1), randn(2, 2, 3)
    cosines = scipy.fft.dct(np.eye(3), axis=0, norm="ortho")
    dense = stage.compose(None, diagonals)
    for channel, (first, second) in enumerate(diagonals.numpy()):
        expected = (cosines.T @ np.diag(second) @ cosines @ np.diag(first))[[0, 2, 1]]
        np.testing.assert_allclose(dense[channel, channel].numpy(), expected, atol=1e-12)
    assert not dense[0, 1].any()
    assert not dense[1, 0].any()


def test_fits_of_products_cost_more_error_than_free_taps():
    weight = randn(*SPEC.weight_shape)
    free, products = error_of(SPEC, weight), error_of(SPEC, weight, taps="diagonals")
    assert free < products < 0.8
    made = compose(
        get_method("acdc", taps="diagonals").stages(SPEC, (12,)),
        get_method("acdc", taps="diagonals").scratch(SPEC, (12,), generator(1)),
    )
    assert error_of(SPEC, made, taps="diagonals", steps=400) < 0.1


def test_an_option_that_is_not_there_is_refused():
    with pytest.raises(cc.UsageError, match="taps"):
        get_method("acdc", taps="none")


# --- fits ---


def error_of(spec, weight, metric=FROBENIUS, refine=0, **options):
    method = get_method("acdc", **options)
    kernels = method.factorize(weight, spec, (12,), [metric], refine)
    return metric.squared_error(weight - compose(method.stages(spec, (12,)), kernels)) / metric.squared_error(weight)


def test_a_fit_is_near_the_best_depthwise_separable_one():
    """No chain of this shape can be better than the first singular value of each channel [F, kh·kw]."""
    weight = randn(*SPEC.weight_shape)
    values = torch.linalg.svdvals(weight.transpose(0, 1).flatten(2))
    floor = 1 - float(values[:, 0].square().sum() / weight.square().sum())
    assert floor <= error_of(SPEC, weight) <= floor + 0.02


def test_more_steps_and_the_metric_help():
    weight = randn(*SPEC.weight_shape, seed=2)
    (form,) = layer_metrics("kronecker", SPEC, made_up_statistics(SPEC))
    few, many = (error_of(SPEC, weight, form, steps=steps) for steps in (5, 80))
    assert many < few < 1
    assert error_of(SPEC, weight, form, refine=3, steps=5) < few


def test_seeds_differ():
    weight = randn(*SPEC.weight_shape)
    assert error_of(SPEC, weight, steps=3) != error_of(SPEC, weight, steps=3, seed=1)


@pytest.mark.parametrize("taps", ["free", "diagonals"])
@pytest.mark.parametrize(("C", "F"), [(32, 32), (16, 48), (48, 16)])
def test_random_kernels_make_up_for_a_rectification(C, F, taps):
    """The variance of outputs is twice that of inputs, within the scatter of 40 draws."""
    spec, draws = ConvSpec(C, F, (3, 3), padding=(1, 1), padding_mode="circular"), generator(3)
    method = get_method("acdc", taps=taps)
    layer, x, gains = FactoredLayer(method.stages(spec, (12,))), randn(1, C, 8, 8, dtype=torch.float32), []
    for _ in range(40):
        layer.write_kernels(method.scratch(spec, (12,), draws))
        with torch.no_grad():
            gains.append(float(layer(x).var() / x.var()))
    assert 1.4 < sum(gains) / 40 < 2.9


# --- training ---


@pytest.mark.parametrize("taps", ["free", "diagonals"])
def test_it_trains_as_diagonals_and_folds_to_a_plain_convolution(taps):
    model, x = network(torch.float64, taps), randn(2, 3, 8, 8)
    shapes, expected = {name: t.shape for name, t in model.state_dict().items()}, model(x)
    start_training(model)
    trained = dict(model.named_parameters())
    assert trained["0.1.parametrizations.weight.original"].shape == (3, 2, 8)
    assert "0.1.weight" not in trained
    assert ("0.0.parametrizations.weight.original" in trained) == (taps == "diagonals")
    torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= 0.01 * parameter.grad
    after, copied = model(x), folded(model)
    fold(model)
    for plain in (model, copied):
        assert {name: t.shape for name, t in plain.state_dict().items()} == shapes
        torch.testing.assert_close(plain(x), after, rtol=1e-5, atol=1e-6)  # diagonals are stored in single precision
        torch.testing.assert_close(plain[0].to_dense(), compose(plain[0].chain, plain[0].kernels()))
        dense = nn.functional.conv2d(x, plain[0].to_dense(), plain[0][1].bias, padding=1)
        torch.testing.assert_close(plain[0](x), dense)
    assert not torch.allclose(after, expected)


def test_weights_that_are_no_longer_a_product_train_as_they_are():
    model, x = network(), randn(2, 3, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        model[0][1].weight.add_(0.1)
    expected = model(x)
    start_training(model)
    assert "0.1.weight" in dict(model.named_parameters())
    assert "2.1.parametrizations.weight.original" in dict(model.named_parameters())
    torch.testing.assert_close(model(x), expected)
    fold(model)
    torch.testing.assert_close(model(x), expected)


def test_half_precision_is_close_enough():
    model = network().to(torch.bfloat16).float()
    start_training(model)
    assert "0.1.parametrizations.weight.original" in dict(model.named_parameters())


def test_mixed_precision_makes_the_weight_in_single_precision():
    model = network()
    start_training(model)
    exact = model[0][1].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0][1].weight, exact)


def test_diagonals_have_little_weight_decay():
    """8.8e-6, as in the paper, or less where less is asked for."""
    model = network()
    start_training(model)
    diagonals = {id(p) for name, p in model.named_parameters() if name.endswith("weight.original")}
    for asked, expected in ((None, 8.8e-6), (1e-6, 1e-6)):
        optimizer = make_optimizer(model, FinetuneSettings(weight_decay=asked).resolved(torch.device("cpu")))
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for p in model.parameters():
            usual = (asked or 1e-4) if p.dim() > 1 else 0
            assert decays[id(p)] == (expected if id(p) in diagonals else usual)
    assert len(diagonals) == 2


def test_fine_tuning_keeps_the_structure(tmp_path):
    model = network()
    before = [module.diagonals.clone() for module in (model[0][1], model[2][1])]
    assert tune(tmp_path, model, epochs=2).best_epoch > 0
    for module, old in zip((model[0][1], model[2][1]), before, strict=True):
        assert not torch.equal(module.diagonals, old)
        torch.testing.assert_close(module.weight.double(), module.made(), rtol=1e-5, atol=1e-6)


def test_gradient_steps_of_a_correction_keep_the_structure():
    original = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
    randomize(original)
    plan = cc.plan(original, torch.zeros(1, 3, 8, 8), method="acdc:steps=5", layers=["0", "2"], force=True)
    small, _ = reconstruct(original, cc.decompose(original, plan), randn(16, 3, 8, 8, dtype=torch.float32), 30)
    for name in ("0.1", "2.1"):
        module = small.get_submodule(name)
        torch.testing.assert_close(module.weight.double(), module.made(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_is_loaded_exported_and_trained_again(tmp_path):
    model = cc.load_model("digits_vgg").model
    plan = cc.plan(model, torch.zeros(1, 3, 32, 32), method="acdc:steps=2", layers=["features.*"])
    small, x = cc.decompose(model, plan), randn(2, 3, 32, 32, dtype=torch.float32)
    cc.save(small, tmp_path / "run")
    loaded = cc.load(tmp_path / "run")
    assert torch.equal(loaded(x), small(x))
    for form in ("onnx", "pt2"):
        cc.export(tmp_path / "run", tmp_path / f"network.{form}")
    start_training(loaded)
    torch.testing.assert_close(loaded(x), small(x), rtol=1e-4, atol=1e-4)
    assert any(name.endswith("weight.original") for name, _ in loaded.named_parameters())


def test_groups_have_diagonals_of_their_own():
    layer = randomize(nn.Conv2d(8, 12, 3, groups=2, stride=2, padding=1, bias=False).double())
    decision = decide(layer, "acdc:steps=20")
    assert decision.chain[1].tensors()["diagonals"].shape == (24, 2, 6)
    method = get_method("acdc", steps=20)
    chain = FactoredLayer(decision.chain, dtype=torch.float64)
    chain.write_kernels(method.factorize(layer.weight, decision.spec, decision.rank))
    dense = nn.functional.conv2d(images(layer), chain.to_dense(), stride=2, padding=1)
    torch.testing.assert_close(chain(images(layer)), dense)
    assert not chain.to_dense()[:6, 4:].any()
