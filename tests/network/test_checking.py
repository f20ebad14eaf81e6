"""What is checked of a network before work, and before a compressed one is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError
from cnncompress.network import checking
from cnncompress.network.checking import check_finished, check_weights, remarks_on
from cnncompress.network.copying import clone
from tests.correction.networks import images, made


class Net(nn.Module):
    """A network that ends in what it is given."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), norm or nn.Identity(), nn.Linear(8, 5)
        self.end, self.calls = end, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.end(self, self.head(self.norm(self.conv(x)).mean((2, 3))))


def plain(net: nn.Module, y: Tensor) -> Tensor:
    return y


REMARKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "plain": (lambda: Net(plain), []),
    "dropout": (lambda: Net(lambda net, y: F.dropout(y)), [checking.NOT_REPEATABLE]),
    "counting": (lambda: Net(lambda net, y: y * net.calls), [checking.NOT_REPEATABLE]),
    "batch statistics": (lambda: Net(plain, nn.BatchNorm2d(8, track_running_stats=False)), [checking.DEPENDS_ON_BATCH]),
    "layer statistics": (lambda: Net(plain, nn.InstanceNorm2d(8)), []),
    "one image": (lambda: Net(lambda net, y: y.view(1, 5)), [checking.ONE_IMAGE_ONLY]),
    "infinite": (lambda: Net(lambda net, y: y / 0), [checking.NOT_FINITE]),
    "sigmoid": (lambda: Net(lambda net, y: y.sigmoid()), [checking.NOTES["separate"]]),
}


@pytest.mark.parametrize("kind", REMARKS)
def test_remarks(kind):
    make, expected = REMARKS[kind]
    torch.manual_seed(0)
    assert remarks_on(make().eval(), images(2)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv.weight", "head.bias"])
def test_weights_that_are_not_finite_are_refused(name, value):
    model = made(Net(plain))
    check_weights(model)
    with torch.no_grad():
        model.get_parameter(name).flatten()[0] = value
    with pytest.raises(CompressError, match=f"{name} holds NaN or infinite values"):
        check_weights(model)


def test_sparse_weights_are_refused():
    part = nn.Module()
    part.register_buffer("held", torch.eye(3).to_sparse())
    with pytest.raises(CompressError, match=r"^0\.held is a sparse tensor, which a run cannot hold"):
        check_weights(nn.Sequential(part))


def test_a_finished_network_is_run_before_it_is_written():
    model, x = made(Net(plain)), images(1)
    check_finished(model, clone(model), x)
    for spoil, words in (
        (lambda small: setattr(small, "head", nn.Linear(7, 5)), "does not run, nothing was written"),
        (lambda small: nn.init.constant_(small.head.bias, float("nan")), "not finite"),
    ):
        small = clone(model)
        spoil(small)
        with pytest.raises(CompressError, match=words):
            check_finished(model, small, x)
