"""What every registered type of stage must keep: costs, tensors, kernels in and out, composition, JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan_json import plan_from_json, plan_to_json, stage_from_json, stage_to_json
from cnncompress.chains.plan_schema import StoredPlan
from cnncompress.chains.stages import STAGES, Acdc, Branch, ConvSpec, Normalised, Parallel, Permutation
from cnncompress.errors import UnsupportedLayerError
from cnncompress.files.reading import check
from tests.decompositions.helpers import randn

SIZE = (9, 8)
WHOLE = ConvSpec(6, 10, (3, 3), (2, 1), (1, 0), (1, 2), groups=2)
PARTS = (Branch(4, (1, 3), (1, 0)), Branch(2, (3, 1), (0, 1)), Branch(4, (3, 3)))
STAGES_OF_EVERY_KIND = [
    ConvSpec(6, 10, (3, 5), (2, 1), (1, 2), (1, 1), 2, True),
    ConvSpec(6, 6, (3, 3), padding="same", groups=6),
    ConvSpec(6, 4, bias=True, linear=True),
    Permutation(6),
    Permutation(6, linear=True),
    Parallel(WHOLE, PARTS),
    Parallel(WHOLE.replace(bias=True, groups=1, padding="same", stride=(1, 1)), PARTS),
    Normalised(6, 10, (1, 3), (1, 2), (0, 1), groups=2, bias=True),
    Acdc(ConvSpec(6, 4, stride=(2, 1), bias=True), 3),
    Acdc(ConvSpec(6, 10, padding=(1, 0), padding_mode="circular", groups=2), 2),
    Acdc(ConvSpec(6, 6, (3, 2), (1, 2), (1, 0), (2, 1), groups=6, bias=True), 1),
]
every_stage = pytest.mark.parametrize("stage", STAGES_OF_EVERY_KIND, ids=str)


def kernel_of(stage, seed=1):
    """A kernel that a fit could give."""
    if stage.reorders:
        return torch.randperm(stage.in_channels, generator=torch.Generator().manual_seed(seed))
    module = stage.module(dtype=torch.float64)
    with torch.no_grad():
        for i, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(randn(*tensor.shape, seed=seed + i))
    return stage.read_kernel(module)


def inputs(stage):
    return randn(2, 5, stage.in_channels) if stage.linear else randn(2, stage.in_channels, *SIZE)


def run(stage, kernel, x):
    module = stage.module(dtype=torch.float64)
    stage.write_kernel(module, kernel)
    with torch.no_grad():
        return module(x)


def test_every_kind_has_an_example():
    assert {stage.kind for stage in STAGES_OF_EVERY_KIND} == set(STAGES)


@every_stage
def test_tensors_and_costs_are_those_of_the_module(stage):
    module = stage.module(dtype=torch.float16)
    found = {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}
    assert found == {name: (shape, dtype or torch.float16) for name, (shape, dtype) in stage.tensors().items()}
    assert stage.params == sum(p.numel() for p in module.parameters())
    assert stage.fixed_bytes == sum(b.numel() * b.element_size() for b in module.buffers())
    x, size = inputs(stage)[:1], (5, 1) if stage.linear else SIZE
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        got = stage.module(dtype=torch.float64)(x)
    assert stage.macs(size) * 2 == counter.get_total_flops()
    assert got.shape[-1 if stage.linear else 1] == stage.out_channels
    assert (tuple(got.shape[1:2]) if stage.linear else tuple(got.shape[2:])) == stage.output_size(size)[: got.dim() - 2]


@every_stage
def test_a_kernel_comes_back_as_it_was_written(stage):
    module, kernel = stage.module(dtype=torch.float64), kernel_of(stage)
    stage.write_kernel(module, kernel)
    assert torch.equal(stage.read_kernel(module), kernel)
    assert not stage.read_kernel(module).requires_grad
    if stage.bias:
        assert torch.equal(stage.read_bias(module), torch.zeros(stage.out_channels, dtype=torch.float64))
        shift = randn(stage.out_channels, seed=5)
        before = run(stage, kernel, inputs(stage))
        stage.add_to_bias(module, shift)
        assert torch.equal(stage.read_bias(module), shift)
        with torch.no_grad():
            after = module(inputs(stage))
        torch.testing.assert_close(after - before, (shift if stage.linear else shift[:, None, None]).expand_as(after))
    else:
        assert stage.read_bias(module) is None


@every_stage
def test_composition_is_what_the_stage_does(stage):
    """After a 1×1 convolution, and alone, as one plain convolution of the same geometry."""
    kernel, x = kernel_of(stage), inputs(stage)
    first = randn(stage.in_channels, 3, 1, 1, seed=8)
    geometry = getattr(stage, "whole", stage) if not stage.reorders else ConvSpec(6, 6, linear=stage.linear)
    for before, given in ((None, x), (first, randn(2, 5, 3, seed=9) if stage.linear else randn(2, 3, *SIZE, seed=9))):
        dense = stage.compose(before, kernel)
        plain = geometry.replace(in_channels=dense.shape[1], groups=1, bias=False)
        if before is None:
            expected = run(stage, kernel, given)
        else:
            mixed = torch.einsum("mc,...c->...m", first[:, :, 0, 0], given.movedim(1, -1) if x.dim() == 4 else given)
            expected = run(stage, kernel, mixed.movedim(-1, 1) if x.dim() == 4 else mixed)
        torch.testing.assert_close(run(plain, dense, given), expected)


@every_stage
def test_without_groups_and_in_more_of_them(stage):
    kernel, x = kernel_of(stage), inputs(stage)
    single = stage.ungrouped()
    assert single.groups == 1
    torch.testing.assert_close(run(single, stage.ungroup(kernel), x), run(stage, kernel, x))
    try:
        twice = stage.in_groups(2)
    except UnsupportedLayerError:
        assert stage.reorders
        return
    if stage.linear:
        return  # a Linear has no groups to run in
    other, y = kernel_of(stage, seed=20), inputs(stage).flip(2)
    expected = torch.cat([run(stage, kernel, x), run(stage, other, y)], 1)
    torch.testing.assert_close(run(twice, torch.cat([kernel, other]), torch.cat([x, y], 1)), expected)


@every_stage
def test_json_and_back(stage):
    values = json.loads(json.dumps(stage_to_json(stage)))
    assert stage_from_json(values) == stage
    STAGES[values["kind"]].schema.model_validate(values, strict=True)


CONV = (
    '{"kind": "conv2d", "in_channels": 4, "out_channels": 8, "kernel_size": [1, 3], "stride": [1, 1], '
    '"padding": [0, 1], "dilation": [1, 1], "groups": 2, "bias": true, "padding_mode": "zeros"}'
)
OLD = (
    '{"metric": "frobenius", "memory_format": "", "layers": {"a": {"layer": '
    + CONV
    + ', "method": "m", "rank": [2], "options": {}, "macs": [7, 6], "stages": ['
    + '{"kind": "permutation", "channels": 4, "linear": false}, '
    + CONV
    + ', {"kind": "linear", "in_channels": 8, "out_channels": 8, "kernel_size": [1, 1], "stride": [1, 1], '
    + '"padding": [0, 0], "dilation": [1, 1], "groups": 1, "bias": false, "padding_mode": "zeros"}'
    + '], "lowering": "pad8"}}, "kept": {"b": "why"}}'
)


def test_a_plan_as_earlier_versions_wrote_it_is_read_and_written_the_same():
    check(StoredPlan, json.loads(OLD))
    assert json.dumps(plan_to_json(plan_from_json(json.loads(OLD)))) == OLD


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"branches": []}, "at least 1"),
        ({"branches": [{"out_channels": 10, "kernel_size": [3, 3], "offset": [0, 1]}]}, "3 taps from 1 on"),
        ({"branches": [{"out_channels": 8, "kernel_size": [3, 3], "offset": [0, 0]}]}, "filters are not 10"),
        ({"branches": [{"out_channels": 10, "kernel_size": [3, 3], "offset": [-1, 0]}]}, "greater than or equal"),
        ({"groups": 4}, "not in 4 groups"),
    ],
)
def test_a_parallel_stage_that_does_not_fit_is_refused(changes, said):
    values = json.loads(json.dumps(stage_to_json(STAGES_OF_EVERY_KIND[5]))) | changes
    with pytest.raises(ValueError, match=said):
        STAGES["parallel"].schema.model_validate(values, strict=True)


def test_a_parallel_stage_is_of_convolutions():
    with pytest.raises(ValueError, match="of convolutions"):
        Parallel(ConvSpec(3, 3, linear=True), (Branch(3, (1, 1)),))


LOAD = """
import sys
import cnncompress as cc
cc.load(sys.argv[1])
methods = {m for m in sys.modules if m.startswith("cnncompress.decompositions")}
slow = {m.partition(".")[0] for m in sys.modules} & {"tensorly", "scipy", "sklearn", "torchvision", "accelerate"}
assert not methods | slow, methods | slow
"""


@pytest.mark.slow
def test_loading_a_run_imports_no_method_and_no_package_that_it_does_not_need(tmp_path):
    import cnncompress as cc

    network = cc.load_model("digits_vgg").model
    plan = cc.plan(network, torch.zeros(1, 3, 32, 32), method="bicluster-svd", rank=0.5, force=True)
    cc.save(cc.decompose(network, plan), tmp_path / "run")
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_chain_of_every_kind_runs_and_adds_to_its_bias_through_a_permutation():
    chain = (Permutation(6), Parallel(WHOLE.replace(bias=True), PARTS), Permutation(10))
    layer = FactoredLayer(chain, dtype=torch.float64)
    layer.write_kernels([kernel_of(stage) for stage in chain])
    x, shift = randn(2, 6, *SIZE), randn(10, seed=3)
    with torch.no_grad():
        before = layer(x)
        layer.add_to_bias(shift)
        torch.testing.assert_close(layer(x) - before, shift[:, None, None].expand_as(before))
    torch.testing.assert_close(layer.offset(), shift)
    assert [type(m) for m in layer.weighted] == [nn.Conv2d] * 3
