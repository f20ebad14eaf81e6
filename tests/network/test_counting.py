import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cnncompress.network.counting import counting_macs


def counted(function, *shapes, device):
    with torch.device(device):
        tensors = [torch.zeros(shape) for shape in shapes]
    with torch.no_grad(), counting_macs() as counter:
        function(*tensors)
    return counter.total


def on(device, build):
    with torch.device(device):
        return build().eval()


def flash(query, key, value):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value)


def grouped(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


# Two heads, three queries, five keys, of four channels; values have six where the kernel lets them.
HEADS = ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6))
PRODUCTS = {
    "attention": (F.scaled_dot_product_attention, HEADS, 2 * 3 * 5 * (4 + 6)),
    "attention, flash kernel": (flash, (*HEADS[:2], HEADS[1]), 2 * 3 * 5 * (4 + 4)),
    "attention, shared keys": (grouped, ((1, 2, 3, 4), (1, 1, 5, 4), (1, 1, 5, 4)), 2 * 3 * 5 * (4 + 4)),
    "matrix by vector": (torch.matmul, ((3, 4), (4,)), 3 * 4),
    "vector by vector": (torch.matmul, ((4,), (4,)), 4),
    "matrix by vector and sum": (torch.addmv, ((3,), (3, 4), (4,)), 3 * 4),
    "batch of matrices and sum": (torch.addbmm, ((3, 5), (2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "matrices and sum": (torch.baddbmm, ((2, 3, 5), (2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "einsum": (lambda a, b: torch.einsum("nij,njk->nik", a, b), ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "transposed convolution": (F.conv_transpose2d, ((1, 2, 9, 9), (2, 3, 3, 3)), 9 * 9 * 2 * 3 * 9),
    "convolution in three dimensions": (F.conv3d, ((1, 2, 5, 5, 5), (3, 2, 3, 3, 3)), 27 * 2 * 3 * 27),
    "deformable convolution": (
        torchvision.ops.deform_conv2d,
        ((1, 2, 8, 8), (1, 18, 6, 6), (3, 2, 3, 3)),
        6 * 6 * 2 * 3 * 9,
    ),
}
SEQUENCE = (3, 1, 4)
MODULES = {
    "LSTM": (lambda: nn.LSTM(4, 5), [SEQUENCE], 3 * 4 * 5 * (4 + 5)),
    "GRU": (lambda: nn.GRU(4, 5), [SEQUENCE], 3 * 3 * 5 * (4 + 5)),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 2 * 3 * 4 * 5),
    "multi-head attention": (lambda: nn.MultiheadAttention(4, 2), [SEQUENCE] * 3, 4 * 3 * 4 * 4 + 2 * 3 * 3 * 4),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6),
        [SEQUENCE],
        4 * 3 * 4 * 4 + 2 * 3 * 3 * 4 + 2 * 3 * 4 * 6,
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_count_on_every_device_and_kernel(name, device):
    function, shapes, expected = PRODUCTS[name]
    assert counted(function, *shapes, device=device) == expected


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", MODULES)
def test_fused_modules_count_on_every_device(name, device):
    build, shapes, expected = MODULES[name]
    assert counted(on(device, build), *shapes, device=device) == expected


def test_inference_mode_counts_the_same():
    with torch.inference_mode():
        assert counted(F.scaled_dot_product_attention, *HEADS, device="cpu") == 300


def test_settings_come_back():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with pytest.raises(ZeroDivisionError), counting_macs():
        raise ZeroDivisionError
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before
