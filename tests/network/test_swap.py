"""Chains as modules, tracing, swapping."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from cnncompress.chains.modules import FactoredLayer, Permute
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.errors import CompressError, UnsupportedLayerError
from cnncompress.network.copying import clone
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of, refuse_module
from cnncompress.network.memory_format import is_channels_last, memory_format_of, to_memory_format
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.network.run import inference
from cnncompress.network.swap import Places, apply_plan, build_chain
from cnncompress.network.trace import trace
from tests.decompositions.helpers import decide, randn, randomize


@pytest.mark.parametrize("padding", ["valid", 0, (0, 0)])
def test_spec_of_padding(padding):
    assert spec_of(nn.Conv2d(2, 3, 3, padding=padding)).padding == (0, 0)


@pytest.mark.parametrize("module", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.BatchNorm2d(1)])
def test_spec_of_other_modules(module):
    with pytest.raises(UnsupportedLayerError, match="neither a Conv2d nor a Linear"):
        spec_of(module)


class Odd(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class OddInside(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class OddLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class OddCall(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) + 1


def patched() -> nn.Conv2d:
    """Another forward pass in this one layer alone, as libraries that watch or move layers put there."""
    layer = nn.Conv2d(2, 2, 3)
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) + 1
    return layer


class Renamed(nn.Conv2d):
    """A subclass that changes nothing."""


def hooked(before: bool) -> nn.Conv2d:
    layer = nn.Conv2d(2, 2, 3)
    (layer.register_forward_pre_hook if before else layer.register_forward_hook)(lambda *args: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Odd(2, 2, 3), "a forward pass of its own"),
        (OddInside(2, 2, 3), "a forward pass of its own"),
        (OddLinear(2, 2), "a forward pass of its own"),
        (OddCall(2, 2), "a forward pass of its own"),
        (patched(), "a forward pass of its own"),
        (hooked(True), "hooks"),
        (hooked(False), "hooks"),
        (parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), "parametrized"),
        (parametrizations.orthogonal(nn.Linear(4, 4)), "parametrized"),
        (nn.Linear(2, 2, dtype=torch.complex64), "not floating point"),
        (Renamed(2, 2, 3), None),
        (nn.Linear(2, 2, dtype=torch.bfloat16), None),
    ],
)
def test_refuse_module(layer, reason):
    got = refuse_module(layer)
    assert got is None if reason is None else reason in got


class Calls(nn.Module):
    """Layers called out of order, twice, by keyword, on a vector of tokens, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 4)
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.same = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(self.same(input=self.conv(x)))
        return self.late(self.drop(x).flatten(2).mT)


def test_trace():
    model = Calls()
    model.conv.eval()
    calls = trace(model, randn(3, 3, 9, 7, dtype=torch.float32))
    assert list(calls) == ["conv", "same", "late"]
    assert [c.order for c in calls.values()] == [0, 1, 2]
    assert calls["conv"].sizes == ((9, 7),)
    assert calls["same"].sizes == ((4, 3), (4, 3))
    assert calls["late"].sizes == ((12, 1),)
    assert calls["same"].macs == 2 * 16 * 12
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert model.drop.training
    assert not model.conv.training


def test_trace_of_a_forward_pass_that_fails_leaves_no_hooks():
    model = Calls()
    with pytest.raises(CompressError, match=r"the forward pass of Calls fails on an input of 1×5×9×9: [^\n]+$"):
        trace(model, randn(1, 5, 9, 9, dtype=torch.float32))
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_inference_restores_every_state():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()).eval())
    seen = []

    def fail() -> None:
        seen.extend([model.training, model[1].training, torch.is_grad_enabled()])
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), inference(model):
        fail()
    assert seen == [False, False, False]
    assert model.training
    assert not model[1].training
    assert torch.is_grad_enabled()


def test_layers_of_counts_a_shared_layer_once():
    shared = nn.Conv2d(2, 2, 1)
    assert list(layers_of(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(2, 2)))) == ["0", "3"]


def test_swap_under_all_names():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())})
    new = nn.Identity()
    Places(model).swap("a", new)
    assert model["a"] is new
    assert model["b"][0] is new


def test_places_follow_swaps():
    """A module that was put in, and one within it, are found; what stood in a place for a while is gone."""
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())})
    places = Places(model)
    inner, last, other = nn.Linear(3, 3), nn.Identity(), nn.Tanh()
    places.swap("a", nn.Sequential(inner))
    with places.swapped("a.0", other):
        assert model["a"][0] is model["b"][0][0] is other
    assert model["b"][0][0] is inner
    places.swap("a.0", last)
    assert model["b"][0][0] is last
    places.swap("b.0", last)
    assert model["a"] is model["b"][0] is last


def test_swap_of_the_whole_network_is_refused():
    with pytest.raises(UnsupportedLayerError, match="single layer"):
        Places(nn.Linear(2, 2)).swap("", nn.Identity())


def test_apply_plan_refuses_what_is_no_layer():
    plan = Plan({"0": LayerPlan(ConvSpec(1, 1), "svd", (1,), (ConvSpec(1, 1, linear=True),))})
    with pytest.raises(UnsupportedLayerError, match="0 is a ReLU"):
        apply_plan(nn.Sequential(nn.ReLU()), plan)


@pytest.mark.parametrize("linear", [False, True])
def test_permutation_stage(linear):
    index = torch.tensor([2, 0, 1])
    spec = ConvSpec(3, 4, bias=True, linear=linear)
    original = randomize((nn.Linear(3, 4) if linear else nn.Conv2d(3, 4, 1)).double())
    plan = LayerPlan(spec, "made by hand", (1,), (Permutation(3, linear), spec))
    chain = build_chain(plan, [index, original.weight], original)
    x = randn(2, 3) if linear else randn(2, 3, 4, 5)
    expected = original(x[:, index])
    assert torch.equal(chain(x), expected)
    assert "0.index" in chain.state_dict()
    dense = chain.to_dense()[:, :, 0, 0]
    torch.testing.assert_close(dense[:, index], original.weight.reshape(4, 3))
    assert torch.equal(Permute(3)(randn(1, 3, 2, 2)), randn(1, 3, 2, 2))


def test_chain_without_values_lies_on_the_meta_device():
    layer = nn.Conv2d(4, 6, 3).half().requires_grad_(False).eval()
    decision = decide(layer, "tucker2", 0.5)
    chain = build_chain(decision, None, layer)
    assert isinstance(chain, FactoredLayer)
    assert {p.device.type for p in chain.parameters()} == {"meta"}
    assert {p.dtype for p in chain.parameters()} == {torch.float16}
    assert not chain.training
    assert not any(p.requires_grad for p in chain.parameters())


def test_clone_shares_nothing_and_carries_provenance():
    model = attach(nn.Linear(2, 2), Provenance(errors={"0": 0.5}))
    copy = clone(model)
    assert provenance(copy) == provenance(model)
    assert provenance(copy) is not provenance(model)
    assert copy.weight.data_ptr() != model.weight.data_ptr()
    assert set(copy.state_dict()) == {"weight", "bias"}
    assert provenance(nn.Linear(2, 2)) is None


def test_memory_format_of_a_network():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(2, 2))
    assert memory_format_of(net) == "contiguous"
    assert to_memory_format(net, "") is net
    assert memory_format_of(net) == "contiguous"
    assert to_memory_format(net, "channels_last") is net
    assert memory_format_of(net) == "channels_last"
    assert net[0].weight.stride() == (27, 1, 9, 3)
    assert memory_format_of(to_memory_format(net, "contiguous")) == "contiguous"
    with pytest.raises(ValueError, match="unknown memory format 'blocked'"):
        to_memory_format(net, "blocked")


def test_a_plan_puts_the_whole_network_in_its_memory_format():
    layer = nn.Conv2d(4, 6, 3)
    other = nn.Conv2d(6, 6, 3)
    decision = decide(layer, "tucker2", 2)
    kernels = {"0": [randn(*s.weight_shape) for s in decision.chain]}
    x = randn(2, 4, 8, 8, dtype=torch.float32)
    expected = apply_plan(clone(nn.Sequential(layer, other)), Plan({"0": decision}), kernels)
    plan = Plan({"0": decision}, memory_format="channels_last")
    net = apply_plan(nn.Sequential(layer, other), plan, kernels)
    assert [is_channels_last(m.weight) for m in (net[0][1], net[1])] == [True, True]
    torch.testing.assert_close(net(x), expected(x))
