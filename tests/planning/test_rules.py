"""Which layer becomes what, and why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from cnncompress.chains.plan import Budget, LayerPlan
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.errors import UsageError
from cnncompress.planning import Choice, choose_method, plan, plan_layer, seeded
from tests.decompositions.helpers import randn


class Zoo(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.ModuleDict(
            {
                "grouped": nn.Conv2d(16, 16, 3, padding=1, groups=2),
                "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
                "pointwise": nn.Conv2d(16, 24, 1),
                "normed": parametrizations.weight_norm(nn.Conv2d(24, 24, 3, padding=1)),
            }
        )
        self.up = nn.ConvTranspose2d(24, 24, 2, stride=2)
        self.fc = nn.Linear(24, 20)
        self.tied = nn.Linear(24, 20)
        self.tied.weight = self.fc.weight
        self.head = nn.Linear(20, 10)
        self.unused = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.block.values():
            x = layer(x)
        x = self.up(x).mean((2, 3))
        return self.head(self.fc(x) + self.tied(x))


IMAGE = randn(1, 3, 12, 12, dtype=torch.float32)


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return Zoo()


def test_auto_and_the_reasons_for_keeping(zoo):
    decided = plan(zoo, IMAGE, rank=0.25)
    assert {name: (p.method, p.rank) for name, p in decided.layers.items()} == {
        "stem": ("spatial-svd", (2,)),  # a quarter of min(3·3, 16·3) = 9
        "block.grouped": ("spatial-svd", (6,)),  # a quarter of min(8·3, 8·3) in each group
        "block.pointwise": ("channel-svd", (4,)),
        "head": ("svd", (3,)),  # 2.5 rounded half up
    }
    assert set(decided.kept) == {"block.depthwise", "block.normed", "fc", "tied", "unused", "up"}
    for name, words in {
        "block.depthwise": "depthwise",
        "block.normed": "parametrized",
        "fc": "shared with tied",
        "tied": "shared with fc",
        "unused": "not called",
    }.items():
        assert words in decided.kept[name]
    assert list(decided.layers) == ["stem", "block.grouped", "block.pointwise", "head"]


def test_costs_of_a_grouped_layer(zoo):
    grouped = plan(zoo, IMAGE, rank=0.25).layers["block.grouped"]
    assert all(stage.groups == 2 for stage in grouped.chain)
    assert grouped.params == (16 * 8 * 9 + 16, 2 * 6 * 8 * 3 + 2 * 8 * 6 * 3 + 16)
    assert grouped.macs == (144 * 16 * 8 * 9, 144 * 2 * (6 * 8 * 3 + 8 * 6 * 3))


def test_rank_that_saves_nothing_is_kept(zoo):
    decided = plan(zoo, IMAGE, rank=1.0)
    assert not decided.layers
    assert "would not be cheaper" in decided.kept["head"]
    assert set(plan(zoo, IMAGE, rank=1.0, force=True).layers) == {"stem", "block.grouped", "block.pointwise", "head"}


def test_rank_above_the_full_rank_of_some_layers(zoo):
    decided = plan(zoo, IMAGE, rank=12)
    assert "rank 12 is above its full rank 9" in decided.kept["stem"]
    assert "rank 12 is above its full rank 10" in decided.kept["head"]
    decided = plan(zoo, IMAGE, rank=10**9)
    assert not decided.layers


def test_patterns(zoo):
    decided = plan(zoo, IMAGE, layers=["block.*", "head"], skip=["*.pointwise"])
    assert set(decided.layers) == {"block.grouped", "head"}
    assert decided.kept["stem"] == "not selected"
    assert decided.kept["block.pointwise"] == "skipped on request"
    assert "depthwise" in decided.kept["block.depthwise"]


@pytest.mark.parametrize("which", ["layers", "skip"])
def test_a_pattern_that_matches_nothing(zoo, which):
    with pytest.raises(UsageError, match=r"'haed' matches no layer; did you mean 'head'"):
        plan(zoo, IMAGE, **{which: ["stem", "haed"]})
    with pytest.raises(UsageError, match="'conv1' matches no layer"):
        plan(zoo, IMAGE, per_layer={"conv1": Choice()})


def test_the_first_matching_choice_counts(zoo):
    choices = {
        "block.g*": Choice("tucker2", (2, 3)),
        "block.*": Choice("channel-svd", 2),
        "stem": Choice("cp:K=5,iterations=2"),
    }
    decided = plan(zoo, IMAGE, rank=0.2, per_layer=choices).layers
    assert (decided["block.grouped"].method, decided["block.grouped"].rank) == ("tucker2", (2, 3))
    assert (decided["block.pointwise"].method, decided["block.pointwise"].rank) == ("channel-svd", (2,))
    assert (decided["stem"].rank, decided["stem"].options) == ((5,), {"iterations": 2, "starts": 4, "seed": 0})
    assert decided["head"].rank == (2,)


@pytest.mark.parametrize("rank", [0, -1, 0.0, -0.25, 1.5, float("nan"), float("inf"), (0, 3), (-1,)])
def test_ranks_that_make_no_sense(zoo, rank):
    for request in ({"rank": rank}, {"per_layer": {"stem": Choice(rank=rank)}}):
        with pytest.raises(UsageError, match="makes no sense") as raised:
            plan(zoo, IMAGE, **request)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"method": "spatialsvd"}, "did you mean 'spatial-svd'"),
        ({"method": "auto:K=3"}, "auto takes no options"),
        ({"method": "tucker2:algorithm=hoi"}, "did you mean 'hooi'"),
        ({"method": "tucker2:sweeps=0"}, "at least 1"),
        ({"method": "tucker2:K1=3"}, "missing K2"),
        ({"method": "cp:k=3"}, "no option 'k'"),
        ({"method": "spatial-svd:K=0"}, "at least 1"),
        ({"metric": "frobenus"}, "did you mean 'frobenius'"),
        ({"rank": (1, 2), "method": "cp"}, r"takes 1 ranks \(K\), not 2"),
        ({"budget": Budget(macs=0.5)}, "budget"),
    ],
)
def test_requests_that_make_no_sense(zoo, request_, message):
    with pytest.raises(UsageError, match=message) as raised:
        plan(zoo, IMAGE, **request_)
    assert "\n" not in str(raised.value)


def test_options_reach_the_method():
    method, rank = choose_method("tucker2:algorithm=hooi,K1=2,K2=3", ConvSpec(8, 8, (3, 3)))
    assert method.settings == {"algorithm": "hooi", "sweeps": 5, "seed": 0}
    assert rank == (2, 3)


class Attention(nn.Module):
    """Weights used directly: torch's own attention, and functional calls as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.qkv = nn.Linear(16, 48)
        self.mlp = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = self.attention(tokens, tokens, tokens)[0]
        q, k, v = F.linear(tokens, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        return self.mlp(F.scaled_dot_product_attention(q, k, v)).mean(1)


@pytest.mark.parametrize(
    ("text", "seed", "found"),
    [
        ("auto", 3, "auto"),
        ("monochromatic", 3, "monochromatic:seed=3"),
        ("monochromatic:colours=4", 3, "monochromatic:colours=4,seed=3"),
        ("monochromatic:seed=7", 3, "monochromatic:seed=7"),
        ("monochromatic", 0, "monochromatic"),
        ("bicluster-svd:G=2", 5, "bicluster-svd:G=2,seed=5"),
        ("cp", 5, "cp:seed=5"),
        ("tucker2:algorithm=hooi", 5, "tucker2:algorithm=hooi,seed=5"),
        ("svd", 5, "svd"),
    ],
)
def test_the_seed_reaches_methods_that_draw(text, seed, found):
    assert seeded(text, seed) == found


def test_weights_used_by_attention_are_kept():
    model = Attention()
    decided = plan(model, IMAGE)
    assert set(decided.layers) == {"patches", "mlp"}
    assert set(decided.kept) == {"attention.out_proj", "qkv", "attention", "(forward)"}
    assert all("attention uses its weight directly" in decided.kept[name] for name in ("attention.out_proj", "qkv"))
    assert decided.layers["mlp"].macs[0] == 9 * 16 * 16  # nine tokens


def test_hooks_keep_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].register_forward_hook(lambda *args: None)
    decided = plan(model, IMAGE)
    assert set(decided.layers) == {"0"}
    assert "hooks" in decided.kept["1"]


def test_planning_leaves_the_network_as_it_was(zoo):
    before = {k: v.clone() for k, v in zoo.state_dict().items()}
    zoo.train()
    plan(zoo, IMAGE)
    assert zoo.training
    assert not zoo.stem._forward_pre_hooks
    assert all(torch.equal(v, before[k]) for k, v in zoo.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        (ConvSpec(64, 64, (1, 7)), "channel-svd"),
        (ConvSpec(64, 64, (7, 1)), "channel-svd"),
        (ConvSpec(64, 64), "channel-svd"),
        (ConvSpec(64, 64, (3, 3)), "spatial-svd"),
        (ConvSpec(64, 64, linear=True), "svd"),
    ],
)
def test_auto_takes_the_first_method_that_applies(spec, method):
    call = Call(0, spec, ((8, 8),))
    found = plan_layer(call, Choice(rank=4))
    assert isinstance(found, LayerPlan)
    assert found.method == method
