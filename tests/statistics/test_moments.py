import pytest
import torch
from torch import nn

from cnncompress.network.positions import image_seeds, sample_positions
from cnncompress.statistics import layers as statistics_layers
from cnncompress.statistics.moments import SAMPLES_KEPT, Moments
from tests.statistics.helpers import Pooled, collect, covariance, images, small_network, unfolded


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups"),
    [(3, 1, 1, 1), (3, 2, 1, 2), ((1, 4), 1, 2, 1), ((3, 2), (2, 3), (1, 2), 4), (1, 1, 1, 1), (7, 1, 1, 1)],
)
def test_moments_equal_those_of_all_unfolded_patches(kernel, stride, dilation, groups, padding, mode):
    if padding == "same":
        stride = 1  # as torch demands
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, padding_mode=mode)
    x = images(5, 4, 8) + 3
    found = collect(Pooled(layer), [x[:2], x[2:]], positions=None)["layer"]
    rows = unfolded(layer, x)
    assert found.images == 5
    assert found.rows == len(rows)
    for g in range(groups):
        mean, moment = covariance(rows[:, g])
        torch.testing.assert_close(found.mean[g].double(), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.moment[g].double(), moment, rtol=1e-5, atol=1e-6)
    # and they are the patches that the kernel meets: the layer's mean output follows from their mean
    weight = layer.weight.detach().reshape(groups, -1, found.mean.shape[1]).double()
    predicted = (weight @ found.mean.double()[:, :, None]).flatten() + layer.bias.double()
    torch.testing.assert_close(layer(x).double().mean((0, 2, 3)), predicted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 6), (4, 5, 6), (2, 3, 4, 6)])
def test_rows_of_a_linear_are_its_positions(shape):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x).reshape(len(x), -1, 3).mean(1)

    x = torch.randn(shape) * 2 - 1
    found = collect(Model(), [x], positions=None)["fc"]
    mean, moment = covariance(x.reshape(-1, 6))
    assert found.rows == x.numel() // 6
    torch.testing.assert_close(found.mean[0].double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.moment[0].double(), moment, rtol=1e-5, atol=1e-6)


def test_sampled_positions_are_of_the_layer_and_estimate_its_moments():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    x = images(400, 2, 12)
    every = {tuple(row) for row in unfolded(layer, x[:3])[:, 0].tolist()}
    index, _ = sample_positions(image_seeds(x[:3], 0), (1,), 3 * 144, 10)
    assert len(set(index.tolist())) == 30
    assert (index // 144).bincount().tolist() == [10, 10, 10]
    one = collect(Pooled(layer), [x[:1]], positions=1)["layer"]
    assert tuple(one.mean[0].tolist()) in every
    assert one.moment.abs().max() == 0
    some = collect(Pooled(layer), [x], positions=10)["layer"]
    whole = collect(Pooled(layer), [x], positions=None)["layer"]
    assert some.rows == 4000
    # the entries' standard deviation is about 1/√4000 = 0.016
    assert (some.moment - whole.moment).abs().max() < 0.08
    assert (some.mean - whole.mean).abs().max() < 0.08


@pytest.mark.parametrize("positions", [None, 4])
def test_positions_that_are_the_same_count_as_one_a_image(positions):
    torch.manual_seed(0)
    flat = torch.randn(500, 4, 1, 1).expand(500, 4, 6, 6)
    found = collect(Pooled(nn.Conv2d(4, 3, 1)), flat.split(70), positions=positions)["layer"]
    assert found.rows == 500 * (positions or 36)
    assert found.counted == pytest.approx(500, rel=0.1)
    varied = collect(Pooled(nn.Conv2d(4, 3, 1)), torch.randn(500, 4, 6, 6).split(70), positions=4)["layer"]
    assert varied.counted == pytest.approx(2000, rel=0.1)


def test_a_mean_far_from_zero_costs_no_precision():
    torch.manual_seed(0)
    rows = torch.randn(5000, 1, 4) * 1e-2 + 100
    sums = Moments(1, 4, torch.device("cpu"))
    for part in rows.split(700):
        sums.add(part, torch.zeros(len(part)))
    _, _, moment, _ = sums.result()
    torch.testing.assert_close(moment[0].double(), covariance(rows[:, 0])[1], rtol=1e-5, atol=1e-9)


def test_result_does_not_depend_on_order_or_batches_but_on_the_seed():
    model, x = small_network(), images(10)
    one = collect(model, [x], positions=3)
    two = collect(model, [x[5:], x[:1], x[1:5]], positions=3)
    other = collect(model, [x], positions=3, seed=1)
    again = collect(model, [x], positions=3)
    for name in one:
        torch.testing.assert_close(one[name].moment, two[name].moment, rtol=1e-5, atol=1e-6)
        assert torch.equal(one[name].moment, again[name].moment)
    assert not torch.allclose(one["0"].moment, other["0"].moment, rtol=1e-3, atol=1e-3)


def test_a_shared_layer_takes_in_all_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 3, padding=1)
            self.same = self.layer

        def forward(self, x):
            return self.same(self.layer(x)).flatten(2).mean(2)

    torch.manual_seed(0)
    model, x = Twice(), images(4, 2, 6)
    found = collect(model, [x[:3], x[3:]], "kronecker", positions=None)
    assert list(found) == ["layer"]
    mean, moment = covariance(torch.cat([unfolded(model.layer, v)[:, 0] for v in (x, model.layer(x).detach())]))
    assert found["layer"].rows == 2 * 4 * 36
    torch.testing.assert_close(found["layer"].mean[0].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["layer"].moment[0].double(), moment, rtol=1e-5, atol=1e-6)


def test_a_wide_layer_keeps_samples_whose_moment_is_the_covariance(monkeypatch):
    monkeypatch.setattr(statistics_layers, "WIDEST_MOMENT", 10)
    model, x = small_network(), images(8)
    wide = collect(model, [x[:3], x[3:]], positions=4)
    monkeypatch.undo()
    narrow = collect(model, [x], positions=4)
    for name in ("0", "7"):
        found = wide[name]
        assert found.moment is None
        assert found.rows == len(found.samples) == narrow[name].rows
        torch.testing.assert_close(found.samples.T @ found.samples / found.rows, narrow[name].moment[0])
        torch.testing.assert_close(found.mean, narrow[name].mean, rtol=1e-5, atol=1e-6)
    assert wide["3"].moment is not None  # two groups of 9 inputs each


def test_a_wide_layer_keeps_a_bounded_number_of_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8200, 2))
    x = torch.randn(SAMPLES_KEPT + 100, 8200)
    found = collect(model, x.split(600))["0"]
    assert (found.rows, tuple(found.samples.shape)) == (SAMPLES_KEPT, (SAMPLES_KEPT, 8200))
    other = collect(model, x.flip(0).split(500))["0"]
    assert torch.equal(found.samples, other.samples)


def test_dead_channels_and_constant_inputs_give_zero_moments():
    model = Pooled(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"))
    x = images(4, 2, 6)
    x[:, 0] = 0.3
    found = collect(model, [x], "kronecker")["layer"]
    assert found.moment[0, :9].abs().max() == 0
    assert found.moment[0, 9:, 9:].diagonal().min() > 0
    torch.testing.assert_close(found.mean[0, :9], torch.full((9,), 0.3))
    x[:] = 1.5
    constant = collect(model, [x], positions=None)["layer"]
    assert constant.moment.abs().max() == 0
