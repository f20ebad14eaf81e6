import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.regnet import BlockParams

from cnncompress.chains.spec import ConvSpec, chain_macs, chain_params, convolutions
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError
from cnncompress.network.profile import profile, size_bytes
from cnncompress.network.run import inference
from cnncompress.network.swap import apply_plan
from cnncompress.network.trace import trace
from cnncompress.planning import Choice, plan

TAI_VGG16 = (5, 24, 48, 48, 64, 128, 160, 192, 192, 256, 320, 320, 320)
ALL = torchvision.models.list_models(module=torchvision.models)
TRANSFORMERS = ("vit_", "swin_", "maxvit_")


@pytest.fixture
def on_meta(monkeypatch):
    """Builds torchvision networks and their input on the meta device."""
    params = BlockParams.from_init_params.__func__

    def from_init_params(cls, *args, **kwargs):
        with torch.device("cpu"):  # it computes widths with tensors
            return params(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(from_init_params))

    def build(name):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        side = 299 if name == "inception_v3" else 224
        with torch.device("meta"):
            return torchvision.models.get_model(name, weights=None, **options), torch.empty(1, 3, side, side)

    return build


def flop_macs(model, image):
    with inference(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2


def check_counts(model, image, transformer):
    found = profile(model, image)
    assert found.macs + found.other_macs == flop_macs(model, image)
    assert (found.other_macs > 0) == transformer
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert found.params == sum(p.numel() for p in model.parameters())
    return found


def check_network(name, on_meta):
    model, image = on_meta(name)
    transformer = name.startswith(TRANSFORMERS)
    before = check_counts(model, image, transformer)
    calls = trace(model, image)
    planned = plan(model, image, rank=0.25)
    assert planned.layers
    small = apply_plan(model, planned)
    after = check_counts(small, image, transformer)
    saved = sum(calls[n].macs - calls[n].macs_of(p.chain) for n, p in planned.layers.items())
    assert after.macs == before.macs - saved
    assert after.other_macs == before.other_macs
    saved = sum(calls[n].spec.params - chain_params(p.chain) for n, p in planned.layers.items())
    assert after.params == before.params - saved


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet"])
def test_macs_agree_with_flop_counter(name, on_meta):
    check_network(name, on_meta)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_macs_agree_with_flop_counter_on_every_torchvision_network(name, on_meta):
    check_network(name, on_meta)


def test_vgg16_by_arithmetic(on_meta):
    model, image = on_meta("vgg16")
    found = profile(model, image)
    convolutions_only = [layer for layer in found.layers if not layer.spec.linear]
    assert sum(layer.macs for layer in convolutions_only) == 15_346_630_656
    assert sum(layer.params for layer in convolutions_only) == 14_710_464 + 4_224
    full = 25_088 * 4_096 + 4_096 * 4_096 + 4_096 * 1_000
    assert found.macs == 15_346_630_656 + full
    assert found.params == 14_714_688 + full + 4_096 + 4_096 + 1_000
    assert found.size_bytes == 4 * found.params
    assert found.input_shape == (3, 224, 224)
    assert [layer.layer for layer in found.layers][-3:] == ["classifier.0", "classifier.3", "classifier.6"]


def test_vgg16_with_the_ranks_of_tai(on_meta):
    model, image = on_meta("vgg16")
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    ranks = {name: Choice("spatial-svd", k) for name, k in zip(names, TAI_VGG16, strict=True)}
    small = apply_plan(model, plan(model, image, layers=["features.*"], per_layer=ranks))
    layers = [layer for layer in profile(small, image).layers if not layer.spec.linear]
    assert sum(layer.macs for layer in layers) == 4_944_393_216
    assert sum(layer.spec.weights for layer in layers) == 5_358_573


def test_alexnet_conv1_speed_up_of_tai():
    spec = ConvSpec(3, 96, (11, 11), (4, 4))
    chain = get_method("spatial-svd").stages(spec, (8,))
    d, n, c, k, s = 11, 96, 3, 8, 4
    assert next(convolutions(chain)).output_size((227, 227)) == (55, 227)
    ratio = chain_macs((spec,), (227, 227)) / chain_macs(chain, (227, 227))
    # 227 columns go into the second stage for 55 that come out, where the formula has s for 227 / 55.
    assert ratio == pytest.approx(d * n * c / (k * (n + 227 / 55 * c)))
    assert ratio == pytest.approx(d * n * c / (k * (n + s * c)), rel=0.005)
    assert d * n * c / (k * (n + s * c)) == pytest.approx(3.667, abs=5e-4)


def test_shared_tensors_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert profile(model, torch.ones(1, 4)).params == 16 + 4 + 4 + 8
    floats = 16 + 4 + 4 + 4 * 4
    assert size_bytes(model) == 4 * floats + 8


def test_repeated_and_unused_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)
            self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    found = profile(Net(), torch.ones(1, 2, 5, 5))
    assert [(layer.layer, layer.macs) for layer in found.layers] == [("conv", 2 * 36 * 25), ("unused", 0)]
    assert (found.params, found.other_macs) == (36 + 12, 0)


class Branching(nn.Module):
    """Asks for a value, which a meta tensor does not have."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() > -1e9 else x


def test_attention_counts_the_same_on_meta_and_on_the_real_device():
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens = torch.randn(1, 5, 8)
    meta, real = profile(block, tokens), profile(Branching(block), tokens)
    projections, products, mlp = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8, 2 * 5 * 8 * 16
    assert (meta.macs, meta.other_macs) == (real.macs, real.other_macs) == (mlp, projections + products)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("wrap", [nn.Sequential, Branching])
def test_profile_leaves_the_network_alone(wrap):
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.train()
    next(iter(model.children()))[0].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    profile(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_profile_of_a_wrong_input_is_one_line():
    with pytest.raises(CompressError) as error:
        profile(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.ones(1, 1, 8, 8))
    assert "\n" not in str(error.value)
