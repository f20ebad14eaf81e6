"""Convolutions side by side, against every branch by itself and against one dense convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, pad

from cnncompress.chains.compose import compose
from cnncompress.chains.lowering import lower, lower_kernels, paddings, regroupings
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.plan_json import plan_from_json, plan_to_json
from cnncompress.chains.spec import ConvSpec, Permutation, chain_macs, chain_output_size, chain_params
from cnncompress.chains.stages import Branch, Parallel
from cnncompress.decompositions.refine import error_of, refine, refit_last
from cnncompress.metrics import FROBENIUS, layer_metrics
from cnncompress.network.swap import apply_plan, build_chain
from cnncompress.programs.export import export_onnx, export_pt2
from tests.decompositions.helpers import METRIC_NAMES, SIZE, made_up_statistics, randn, randomize, relative

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@st.composite
def parallels(draw) -> Parallel:
    """A parallel stage of any geometry that fits an input of `SIZE`."""
    kernel = draw(st.sampled_from([(3, 3), (5, 3), (2, 4), (1, 3), (1, 1)]))
    groups, padding = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([(0, 0), (1, 1), (2, 1), "same"]))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    branches = []
    for _ in range(draw(st.integers(1, 3))):
        taps = tuple(draw(st.integers(1, room)) for room in kernel)
        offset = tuple(draw(st.integers(0, room - size)) for room, size in zip(kernel, taps, strict=True))
        branches.append(Branch(groups * draw(st.integers(1, 3)), taps, offset))
    whole = ConvSpec(
        groups * draw(st.integers(1, 3)),
        sum(branch.out_channels for branch in branches),
        kernel,
        (1, 1) if padding == "same" else draw(pair),
        padding,
        draw(pair),
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(list(MODES))),
    )
    return Parallel(whole, tuple(branches))


def by_hand(stage: Parallel, module: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """Group by group and branch by branch: the taps of each branch as a kernel of the whole size, with zeros."""
    whole, outputs = stage.whole, []
    kh, kw = whole.kernel_size
    if whole.padding == "same":
        h, w = whole.dilation[0] * (kh - 1), whole.dilation[1] * (kw - 1)
        around = (w // 2, w - w // 2, h // 2, h - h // 2)
    else:
        around = (whole.padding[1],) * 2 + (whole.padding[0],) * 2
    x = pad(x, around, MODES[whole.padding_mode])
    for g, part in enumerate(x.chunk(whole.groups, 1)):
        for branch, convolution in zip(stage.branches, module, strict=True):
            weight, (top, left) = convolution.weight.chunk(whole.groups)[g], branch.offset
            full = weight.new_zeros(*weight.shape[:2], kh, kw)
            for i in range(branch.kernel_size[0]):
                for j in range(branch.kernel_size[1]):
                    full[:, :, top + i, left + j] = weight[:, :, i, j]
            bias = None if convolution.bias is None else convolution.bias.chunk(whole.groups)[g]
            outputs.append(conv2d(part, full, bias, whole.stride, 0, whole.dilation))
    return torch.cat(outputs, 1)


@given(stage=parallels(), dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]), split=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=150, database=None)
def test_the_module_computes_every_branch_by_itself(stage, dtype, split):
    module = randomize(stage.module(split, dtype=dtype))
    x = randn(2, stage.in_channels, *SIZE, dtype=dtype)
    with torch.no_grad():
        got, expected = module(x), by_hand(stage, module, x)
        torch.testing.assert_close(module(x[0]), got[0])
    assert (got.dtype, tuple(got.shape[2:])) == (dtype, stage.output_size(SIZE))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    taps = sum(b.out_channels * b.kernel_size[0] * b.kernel_size[1] for b in stage.branches)
    weights = taps * stage.in_channels // stage.groups
    assert stage.params == weights + stage.bias * stage.out_channels
    assert stage.macs(SIZE) == weights * got.shape[2] * got.shape[3]


@given(stage=parallels(), filters=st.integers(1, 4), lowering=st.sampled_from(["", "dense", "split", "pad8", "merge"]))
@settings(derandomize=True, deadline=None, max_examples=100, database=None)
def test_a_chain_is_its_composed_kernel_however_it_runs(stage, filters, lowering):
    last = ConvSpec(stage.out_channels, filters * stage.groups, groups=stage.groups, bias=True)
    chain = (stage, last)
    kernels = [stage.read_kernel(randomize(stage.module(dtype=torch.float64))), randn(*last.weight_shape, seed=9)]
    layer = FactoredLayer(lower(chain, lowering), lowering, dtype=torch.float64)
    layer.write_kernels(lower_kernels(chain, kernels, lowering))
    plain = stage.whole.replace(out_channels=last.out_channels, groups=1, bias=False)
    dense = FactoredLayer((plain,), dtype=torch.float64)
    dense.write_kernels([compose(chain, kernels)])
    x = randn(2, stage.in_channels, *SIZE)
    with torch.no_grad():
        without_bias = layer(x) - layer(x * 0)
        torch.testing.assert_close(without_bias, dense(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.to_dense(), compose(chain, kernels), rtol=1e-12, atol=1e-12)
    assert chain_output_size(layer.chain, SIZE) == tuple(dense(x).shape[2:])


def test_the_composite_layer_of_ioannou_by_hand():
    """c/2 of 1×3 and c/2 of 3×1: each has the padding of its own kernel, and two thirds of the weights go."""
    whole = ConvSpec(4, 6, (3, 3), padding=(1, 1))
    stage = Parallel.centred(whole, {(1, 3): 3, (3, 1): 3})
    assert stage.branches == (Branch(3, (1, 3), (1, 0)), Branch(3, (3, 1), (0, 1)))
    wide, high = stage.module(dtype=torch.float64)
    assert (wide.kernel_size, wide.padding, high.kernel_size, high.padding) == ((1, 3), (0, 1), (3, 1), (1, 0))
    assert stage.params == 3 * whole.params // 9
    x = randn(1, 4, 5, 6)
    layer = stage.module(dtype=torch.float64)
    expected = torch.cat([conv2d(x, layer[0].weight, padding=(0, 1)), conv2d(x, layer[1].weight, padding=(1, 0))], 1)
    torch.testing.assert_close(layer(x), expected)
    joined = (stage, ConvSpec(6, 6, bias=True))
    assert chain_params(joined) == 2 * 3 * 4 * 3 + 36 + 6
    assert chain_macs(joined, (5, 6)) == (2 * 3 * 4 * 3 + 36) * 30


def test_a_branch_without_padding_leaves_out_the_border():
    stage = Parallel.centred(ConvSpec(1, 2, (3, 3)), {(1, 1): 1, (3, 3): 1})
    module = stage.module(dtype=torch.float64)
    stage.write_kernel(module, torch.ones(2, 1, 3, 3, dtype=torch.float64))
    x = torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)
    assert module(x)[0, 0].tolist() == [[5, 6], [9, 10]]
    assert module(x)[0, 1].tolist() == [[45, 54], [81, 90]]


COMPOSITE = Parallel.centred(ConvSpec(4, 1, (3, 3), padding=(1, 1)), {(1, 3): 3, (3, 1): 2, (3, 3): 1})


def composite(metric: str, groups: int = 1):
    """A chain with a parallel stage before a 1×1, kernels for it, a weight, and a metric of one group."""
    chain = (COMPOSITE.in_groups(groups), ConvSpec(6 * groups, 5 * groups, groups=groups))
    kernels = [chain[0].read_kernel(randomize(chain[0].module(dtype=torch.float64))), randn(5 * groups, 6, 1, 1)]
    spec = ConvSpec(4, 5, (3, 3), padding=(1, 1))
    return chain, kernels, randn(5, 4, 3, 3, seed=4), layer_metrics(metric, spec, made_up_statistics(spec))[0]


def test_the_last_stage_is_refitted_as_least_squares_say():
    chain, kernels, weight, _ = composite("frobenius")
    found = refit_last(chain, kernels, weight, FROBENIUS)
    basis = kernels[0].flatten(1)  # [6, 36]: W ≈ B·basis
    expected = torch.linalg.lstsq(basis.mT, weight.flatten(1).mT).solution.mT
    torch.testing.assert_close(found[1][:, :, 0, 0], expected, rtol=1e-8, atol=1e-8)
    assert torch.equal(found[0], kernels[0])


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_refinement_lowers_the_error_and_stays_within_the_branches(metric):
    chain, kernels, weight, measure = composite(metric)
    errors = [error_of(chain, refine(chain, kernels, weight, measure, sweeps), weight, measure) for sweeps in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2]
    refined = refine(chain, kernels, weight, measure, 4)
    layer = FactoredLayer(chain, dtype=torch.float64)
    layer.write_kernels(refined)
    torch.testing.assert_close(layer.to_dense(), compose(chain, refined))
    assert not layer.kernels()[0][:3, :, [0, 2]].any()  # the 1×3 kernels have one row


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_a_planted_last_stage_is_recovered(metric):
    chain, kernels, _, measure = composite(metric)
    planted = compose(chain, kernels)
    found = refine(chain, [kernels[0], torch.zeros_like(kernels[1])], planted, measure, 1)
    assert relative(compose(chain, found), planted) < 1e-6


def test_a_parallel_stage_at_the_end_is_fitted_too():
    chain = (ConvSpec(3, 4), COMPOSITE)
    kernels = [randn(4, 3, 1, 1), COMPOSITE.read_kernel(randomize(COMPOSITE.module(dtype=torch.float64)))]
    planted = compose(chain, kernels)
    start = [kernels[0], torch.zeros_like(kernels[1])]
    found = refine(chain, start, planted, FROBENIUS, 8)
    assert relative(compose(chain, found), planted) < 1e-4


def test_permutations_go_into_it_from_before_and_stay_behind_it():
    grouped = COMPOSITE.in_groups(2)
    chain = (Permutation(8), grouped, Permutation(12))
    kernels = [torch.randperm(8), randn(*grouped.weight_shape), torch.randperm(12)]
    assert [type(stage) for stage in lower(chain, "dense")] == [Parallel, Permutation]
    found = lower_kernels(chain, kernels, "dense")
    torch.testing.assert_close(compose(lower(chain, "dense"), found), compose(chain, kernels))
    longer = (*chain, ConvSpec(12, 7))
    assert [type(stage) for stage in lower(longer, "dense")] == [Parallel, ConvSpec]
    kernels.append(randn(7, 12, 1, 1))
    found = lower_kernels(longer, kernels, "dense")
    torch.testing.assert_close(compose(lower(longer, "dense"), found), compose(longer, kernels))


def test_lowerings_that_are_worth_trying():
    assert regroupings(ConvSpec(4, 40, (3, 3)), (COMPOSITE, ConvSpec(6, 40))) == []
    grouped = (COMPOSITE.in_groups(2), ConvSpec(12, 80, groups=2))
    assert regroupings(ConvSpec(8, 80, (3, 3), groups=2), grouped) == ["split", "dense"]
    assert paddings(grouped) == []


def layer_and_plan() -> tuple[nn.Conv2d, LayerPlan]:
    layer = randomize(nn.Conv2d(4, 5, 3, 2, 0, bias=True))
    whole = ConvSpec(4, 6, (3, 3), (2, 2))
    chain = (Parallel.centred(whole, {(1, 3): 3, (3, 1): 3}), ConvSpec(6, 5, bias=True))
    return layer, LayerPlan(whole.replace(out_channels=5, bias=True), "composite", (3,), chain)


def test_it_takes_a_layers_place_and_comes_back_from_its_plan():
    layer, plan = layer_and_plan()
    kernels = [plan.chain[0].read_kernel(randomize(plan.chain[0].module())), randn(5, 6, 1, 1)]
    chain = build_chain(plan, kernels, layer)
    expected = conv2d(randn(2, 4, 9, 9), compose(plan.chain, [k.double() for k in kernels]), layer.bias.double(), 2)
    torch.testing.assert_close(chain(randn(2, 4, 9, 9).float()).double(), expected, rtol=1e-4, atol=1e-4)
    assert tuple(chain.weight.shape) == (5, 4, 3, 3)
    again = apply_plan(nn.Sequential(layer), plan_from_json(plan_to_json(Plan({"0": plan}))))
    again.load_state_dict({f"0.{name}": t for name, t in chain.state_dict().items()}, assign=True)
    x = randn(1, 4, 9, 9).float()
    assert torch.equal(again(x), chain(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("exporter", "name"), [(export_onnx, "net.onnx"), (export_pt2, "net.pt2")])
def test_it_exports(tmp_path, exporter, name, groups):
    """Without padding, so that one branch leaves out the border, and with it."""
    torch.manual_seed(0)
    cropped = Parallel.centred(ConvSpec(4, 1, (3, 3), (2, 2)), {(1, 3): 3, (3, 1): 3}).in_groups(groups)
    chain = (cropped, ConvSpec(6 * groups, 4 * groups, groups=groups), COMPOSITE.in_groups(groups))
    net = nn.Sequential(FactoredLayer(chain), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = exporter(net.eval(), torch.randn(2, 4 * groups, 9, 9), tmp_path / name)
    assert report.relative_difference <= report.tolerance
