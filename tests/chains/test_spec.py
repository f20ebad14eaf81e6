"""The nouns: shapes, costs, JSON."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings

from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.plan_json import plan_from_json, plan_to_json, stage_from_json, stage_to_json
from cnncompress.chains.spec import Call, ConvSpec, Permutation, as_pair, chain_macs, chain_params, convolutions
from cnncompress.network.kinds import spec_of
from cnncompress.planning import describe_methods
from tests.decompositions.helpers import SIZE, images
from tests.decompositions.helpers import convolutions as any_convolution

CONV = ConvSpec(6, 8, (3, 5), (2, 1), (1, 2), (1, 1), 2, True, "reflect")


@given(layer=any_convolution())
@settings(derandomize=True, deadline=None, max_examples=60, database=None)
def test_spec_of_a_layer(layer):
    spec = spec_of(layer)
    assert spec.weight_shape == tuple(layer.weight.shape)
    assert spec.params == sum(p.numel() for p in layer.parameters())
    with torch.no_grad():
        assert spec.output_size(SIZE) == tuple(layer(images(layer)).shape[2:])
    assert stage_from_json(json.loads(json.dumps(stage_to_json(spec)))) == spec


def test_costs_by_hand():
    assert CONV.weights == 8 * 3 * 3 * 5
    assert CONV.params == 8 * 3 * 3 * 5 + 8
    assert CONV.group() == ConvSpec(3, 4, (3, 5), (2, 1), (1, 2), (1, 1), 1, True, "reflect")
    chain = (ConvSpec(3, 2), Permutation(2), ConvSpec(2, 4, (3, 3), (2, 2), bias=True))
    assert chain_params(chain) == 6 + 72 + 4
    assert chain_macs(chain, (9, 7)) == 6 * 63 + 72 * 4 * 3
    assert list(convolutions(chain)) == [chain[0], chain[2]]
    call = Call(0, ConvSpec(3, 4, linear=True), ((5, 1), (2, 1)))
    assert call.macs == 12 * 7
    assert call.macs_of((ConvSpec(3, 1, linear=True), ConvSpec(1, 4, linear=True))) == 7 * 7


@pytest.mark.parametrize(
    ("spec", "pointwise", "depthwise", "text"),
    [
        (CONV, False, False, "3×5 6→8 in 2 groups"),
        (ConvSpec(4, 4, (3, 3), groups=4), False, True, "3×3 4→4 in 4 groups"),
        (ConvSpec(1, 4, (3, 3)), False, False, "3×3 1→4"),
        (ConvSpec(4, 2), True, False, "1×1 4→2"),
        (ConvSpec(4, 2, linear=True), True, False, "Linear 4→2"),
    ],
)
def test_kinds_of_layers(spec, pointwise, depthwise, text):
    assert (spec.pointwise, spec.depthwise, str(spec)) == (pointwise, depthwise, text)


def test_same_padding_and_linear_keep_the_size():
    assert ConvSpec(1, 1, (4, 4), padding="same", dilation=(2, 2)).output_size((9, 8)) == (9, 8)
    assert ConvSpec(1, 1, linear=True).output_size((7, 1)) == (7, 1)


def test_plan_to_json_and_back():
    chain = (ConvSpec(4, 2, padding="same"), Permutation(2, linear=True), ConvSpec(2, 8, (1, 1), bias=True))
    layer = LayerPlan(CONV, "m", (2, 3), chain, (7, 6), {"sweeps": 1})
    assert layer.params == (368, 8 + 24)
    plan = Plan({"a.b": layer}, {"c": "a reason"}, "frobenius")
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_plan_with_lowering_and_memory_format():
    layer = LayerPlan(CONV, "m", (2,), (ConvSpec(4, 2),), lowering="pad8+split")
    plan = Plan({"a": layer}, memory_format="channels_last")
    values = json.loads(json.dumps(plan_to_json(plan)))
    assert plan_from_json(values) == plan
    del values["memory_format"], values["layers"]["a"]["lowering"]  # as written before there were any
    old = plan_from_json(values)
    assert (old.layers["a"].lowering, old.memory_format) == ("", "")


@pytest.mark.parametrize(
    "bad", [{}, {"kind": "pool"}, {"kind": "conv2d", "in_channels": 1, "colour": 2}, {"kind": "permutation"}]
)
def test_stage_from_json_refuses(bad):
    with pytest.raises((KeyError, TypeError, ValueError)):
        stage_from_json(bad)


def test_as_pair():
    assert as_pair(3) == (3, 3)
    assert as_pair([1, 2]) == (1, 2)


def test_describe_methods():
    reasons = describe_methods(ConvSpec(8, 8, (3, 3)))
    assert reasons["spatial-svd"] is None
    assert reasons["svd"]
