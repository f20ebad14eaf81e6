import copy

import pytest
import torch
from torch import nn

from cnncompress.errors import CompressError, DataError, UsageError
from tests.statistics.helpers import collect, images, small_network


def test_metrics_decide_what_is_collected():
    model, x, labels = small_network(), images(3), torch.zeros(3, dtype=torch.int64)
    assert collect(model, [x], "frobenius") == {}
    covariance_only = collect(model, [x])["0"]
    assert covariance_only.gradient is None
    assert covariance_only.sensitivity is None
    both = collect(model, [(x, labels)], {"kronecker", "mahalanobis"}, layers=["3"])
    assert list(both) == ["3"]
    assert all(getattr(both["3"], f) is not None for f in ("moment", "gradient", "sensitivity"))
    alone = collect(model, [(x, labels)], "mahalanobis")["3"]
    torch.testing.assert_close(alone.sensitivity, both["3"].sensitivity)
    with pytest.raises(UsageError, match=r"unknown metric 'kroneker'.*did you mean 'kronecker'"):
        collect(model, [x], "kroneker")


def test_single_images_are_enough():
    found = collect(small_network(), [images(1)], "kronecker")
    assert found["7"].rows == 1
    assert all(torch.isfinite(s.moment).all() and torch.isfinite(s.gradient).all() for s in found.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_activations_that_are_not_finite_name_the_layer(value, metric):
    labels = torch.zeros(2, dtype=torch.int64)
    x = images(2)
    x[1, 0, 4, 4] = value
    with pytest.raises(CompressError, match="input of layer 0 is not finite"):
        collect(small_network(), [(x, labels)], metric)
    model = small_network()
    with torch.no_grad():
        model[0].weight[2] = value
    with pytest.raises(CompressError, match="input of layer 3 is not finite"):
        collect(model, [(images(2), labels)], metric)


def test_sums_that_overflow_name_the_layer():
    with pytest.raises(CompressError, match="statistics of layer 0 are not finite"):
        collect(small_network(), [images(4) * 1e25])


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(metric, fails):
    model = small_network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    before = copy.deepcopy(model)
    x = images(4)
    given = x.clone()
    batches = [(x, torch.zeros(4, dtype=torch.int64)), *([(x * torch.nan, torch.zeros(4).long())] if fails else [])]
    if fails:
        with pytest.raises(CompressError):
            collect(model, batches, metric)
    else:
        collect(model, batches, metric)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad
        assert torch.equal(p, q)
        assert p.grad is None or p is model[7].weight
    assert torch.equal(model[7].weight.grad, torch.ones_like(model[7].weight))
    assert all(torch.equal(p, q) for p, q in zip(model.buffers(), before.buffers(), strict=True))
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_are_not_called_or_cannot_be_swapped_are_left_out():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Conv2d(3, 4, 3)
            self.unused = nn.Conv2d(3, 4, 3)
            self.odd = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1))

        def forward(self, x):
            return self.odd(self.used(x)).mean((2, 3))

    batch = (images(2), torch.zeros(2, dtype=torch.int64))
    for metric in ("data-covariance", "kronecker", "mahalanobis"):
        assert list(collect(Model(), [batch], metric)) == ["used"]


def test_number_of_images_is_limited():
    read = []

    def batches():
        for i in range(10):
            read.append(i)
            yield images(4, seed=i)

    assert collect(small_network(), batches(), images=6)["0"].images == 6
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, DataError, "no images"),
        ([images(0)], {}, DataError, "no images"),
        ([images(2)], {"metric": "mahalanobis"}, UsageError, "needs labelled images"),
        ([(images(2), torch.tensor([1, 5]))], {"metric": "mahalanobis"}, DataError, "class index 5"),
        ([images(2)], {"positions": 0}, UsageError, "positions must be at least 1, not 0"),
        ([images(2)], {"images": -1}, UsageError, "images must be at least 1, not -1"),
        ([images(2)], {"layers": ["0", "fc"]}, UsageError, "no Conv2d or Linear called 'fc'"),
        ([images(2, channels=4)], {}, CompressError, "forward pass of Sequential fails on an input of 2×4×9×9"),
    ],
)
def test_wrong_input_is_one_line(batches, options, error, message):
    with pytest.raises(error, match=message) as caught:
        collect(small_network(), batches, **options)
    assert "\n" not in str(caught.value)


def test_networks_without_gradients_or_logits_are_refused():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        @torch.no_grad()
        def forward(self, x):
            return self.conv(x).mean((2, 3))

    batch = (images(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(CompressError, match=r"runs layer conv without gradients.*take the metric data-covariance"):
        collect(Detached(), [batch], "kronecker")
    with pytest.raises(CompressError, match="backward pass of Detached fails"):
        collect(Detached(), [batch], "mahalanobis")
    with pytest.raises(CompressError, match="logits of shape"):
        collect(nn.Sequential(nn.Conv2d(3, 2, 3)), [batch], "mahalanobis")
