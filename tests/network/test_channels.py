"""Which channels are the same ones from the layers that give them to those that take them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnncompress.network.channels import channel_groups
from cnncompress.network.graph import trace_graph
from cnncompress.network.subject import look_at
from cnncompress.network.widths import FAILS, channels_of
from tests.correction.networks import Concat, Opaque, Residual, Tokens, images, made, plain


def found(model: nn.Module):
    model = made(model)
    return channel_groups(trace_graph(model, images(1)), model)


def groups(model: nn.Module) -> list[tuple[set[str], set[str], dict[str, int]]]:
    return [(set(g.makers), set(g.between), dict(g.takers)) for g in found(model).groups]


class Net(nn.Module):
    """A convolution `a`, whatever `form` does, and what takes it."""

    def __init__(self, form, last: nn.Module | None = None, **further: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.form, self.b = form, last or nn.Conv2d(8, 4, 1)
        for name, module in further.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.b(self.form(self, self.a(x))).flatten(1)


def test_between_two_sums_the_channels_are_a_groups_own():
    assert groups(Residual()) == [({"conv1"}, {"bn1"}, {"conv2": 1}), ({"conv3"}, {"bn3"}, {"conv4": 1})]
    whole = found(Residual()).whole
    assert set(whole) == {"stem", "conv1", "conv3", "short.0", "head"}
    assert "added" in whole["head"]
    assert "added" in whole["conv1"]


def test_branches_that_take_the_same_channels_share_a_group():
    assert groups(Concat()) == [({"squeeze"}, set(), {"one": 1, "three": 1})]
    whole = found(Concat()).whole
    assert whole["last"] == "they are concatenated with those of another branch"
    assert whole["squeeze"] == "they are those of the image"


def test_vectors_have_their_channels_last():
    assert groups(Tokens()) == [({"up"}, set(), {"down": 1})]


def test_a_depthwise_convolution_keeps_channels_apart():
    model = Net(
        lambda net, x: F.relu6(net.dw(F.relu6(net.bn(x)))), dw=nn.Conv2d(8, 8, 3, groups=8), bn=nn.BatchNorm2d(8)
    )
    assert groups(model) == [({"a"}, {"bn", "dw"}, {"b": 1})]


def test_a_gate_has_the_channels_that_it_is_multiplied_with():
    def form(net, x):
        return x * torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1)))))

    model = Net(form, down=nn.Conv2d(8, 2, 1), up=nn.Conv2d(2, 8, 1))
    assert groups(model) == [({"a", "up"}, set(), {"down": 1, "b": 1}), ({"down"}, set(), {"up": 1})]


@pytest.mark.parametrize(
    "form",
    [
        lambda net, x: F.max_pool2d(x, 2).flatten(1),
        lambda net, x: F.avg_pool2d(x, 2).view(x.size(0), -1),
        lambda net, x: torch.flatten(F.adaptive_max_pool2d(x, 4), 1),
        lambda net, x: net.flat(F.interpolate(x, size=(4, 4))),
    ],
)
def test_after_a_flattening_each_channel_is_several_inputs(form):
    assert groups(Net(form, nn.Linear(8 * 16, 5), flat=nn.Flatten())) == [({"a"}, set(), {"b": 16})]


@pytest.mark.parametrize(
    "form",
    [
        lambda net, x: x.relu_().mean((2, 3)),
        lambda net, x: torch.mean(F.silu(x), dim=[-1, -2]),
        lambda net, x: net.norm(F.adaptive_avg_pool2d(F.dropout(2 * x + 1, 0.1, False), 1).flatten(1)),
    ],
)
def test_means_over_an_image_keep_channels_apart(form):
    expected = {"norm"} if "norm" in form.__code__.co_names else set()
    assert groups(Net(form, nn.Linear(8, 5), norm=nn.BatchNorm1d(8))) == [({"a"}, expected, {"b": 1})]


def test_a_prelu_is_narrowed_where_it_has_a_number_for_each_channel():
    forms = {1: set(), 8: {"act"}}
    for count, between in forms.items():
        assert groups(Net(lambda net, x: net.act(x), act=nn.PReLU(count))) == [({"a"}, between, {"b": 1})]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (lambda net, x: F.softmax(x, 1), "softmax"),
        (lambda net, x: x.view(-1, 8, 8, 8), "view"),
        (lambda net, x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1), "mean"),
        (lambda net, x: F.pad(x[:, :4], (0, 0, 0, 0, 2, 2)), "getitem"),
        (lambda net, x: F.pad(x, (0, 0, 0, 0, 1, -1)), "pad"),
        (lambda net, x: net.norm(x), "norm"),
        (lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1), "chunk"),
        (lambda net, x: x * net.scale, "mul"),
        (lambda net, x: x + x.flip(1), "added"),
    ],
)
def test_what_does_not_keep_channels_apart_is_named(form, why):
    model = Net(form, norm=nn.GroupNorm(2, 8))
    model.scale = nn.Parameter(torch.rand(8, 1, 1))
    channels = found(model)
    assert not channels.groups
    assert why in channels.whole["b"]


def test_layers_that_cannot_change_keep_their_channels():
    twice = Net(lambda net, x: F.relu(net.c(F.relu(net.c(x)))), c=nn.Conv2d(8, 8, 1))
    assert "c is called more than once" in found(twice).whole["c"]
    grouped = Net(lambda net, x: F.relu(net.c(x)), c=nn.Conv2d(8, 8, 1, groups=2))
    assert found(grouped).whole == {"a": "they are those of the image"} | dict.fromkeys(
        ["b", "c"], "c takes them in groups"
    )
    model = made(plain())
    fixed = channel_groups(trace_graph(model), model, {"2"})
    assert all("2" not in group.modules for group in fixed.groups)
    last = made(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    assert not channel_groups(trace_graph(last), last).groups


def test_a_network_that_cannot_be_followed_has_no_groups():
    channels = found(Opaque(plain()))
    assert not channels.groups
    assert all("torch.fx" in why for why in channels.whole.values())


def test_the_forward_pass_shows_which_channels_can_go():
    def check(module, args, output):
        assert output.shape[1] == 8

    model = made(Residual())
    assert len(channels_of(look_at(model, images(2))).groups) == 2
    model.bn1.register_forward_hook(check)
    channels = channels_of(look_at(model, images(2)))
    assert [group.name for group in channels.groups] == ["conv3"]
    assert channels.whole["conv2"] == FAILS
