"""Networks inside others: what only says how they run is taken off, what cannot be taken apart is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cnncompress.errors import CompressError
from cnncompress.models.wrappers import unwrap
from tests.deprecated import still_has


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile()
    return net


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net)),
    "in place": compiled_in_place,
}


@pytest.mark.parametrize("kind", AROUND)
def test_wrappers_are_taken_off(kind):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    found = unwrap(AROUND[kind](net), "factory")
    assert found is net
    assert all(module._compiled_call_impl is None for module in found.modules())


def test_an_averaged_network_is_the_average():
    average = AveragedModel(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert unwrap(average, "factory") is average.module


@pytest.mark.filterwarnings("ignore")
@still_has("jit.script")
@pytest.mark.parametrize(
    "make", [lambda net: torch.jit.script(net), lambda net: torch.jit.trace(net, torch.zeros(1, 3, 4, 4))]
)
def test_torchscript_is_named(make):
    with pytest.raises(CompressError, match=r"my\.factory is TorchScript"):
        unwrap(make(nn.Sequential(nn.Conv2d(3, 4, 3))), "my.factory")


def test_lazy_networks_are_named():
    net = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(CompressError, match=r"factory is lazy, 0\.weight has no shape yet"):
        unwrap(net, "factory")
    net(torch.zeros(1, 3, 4, 4))
    assert unwrap(net, "factory") is net
