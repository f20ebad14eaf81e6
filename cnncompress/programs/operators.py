"""The operators that a stored program may call: arithmetic on tensors and sizes, and nothing with an effect."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

# By kind; `relu_` is `relu` in place, and all overloads are meant.
_TENSOR_OPERATORS = frozenset(
    """
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear addmm addbmm
    baddbmm mm bmm matmul dot mv einsum batch_norm instance_norm group_norm layer_norm rms_norm
    native_batch_norm native_layer_norm native_group_norm _native_batch_norm_legit_no_training
    linalg_vector_norm norm relu relu6 leaky_relu prelu elu selu celu gelu silu mish sigmoid log_sigmoid
    hardswish hardsigmoid hardtanh hardshrink softshrink softplus tanh threshold glu softmax log_softmax
    _softmax _log_softmax max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
    grid_sampler_2d affine_grid_generator pad constant_pad_nd reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d dropout feature_dropout alpha_dropout feature_alpha_dropout
    scaled_dot_product_attention embedding add sub rsub mul div floor_divide remainder fmod neg abs sign pow
    square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p erf sin cos tan atan atan2 floor ceil round
    trunc clamp clamp_min clamp_max minimum maximum lerp addcmul addcdiv where masked_fill nan_to_num isnan
    isinf isfinite eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
    bitwise_not __and__ __or__ mean sum prod amax amin max min aminmax argmax argmin var std var_mean std_mean
    cumsum logsumexp any all topk sort argsort view reshape _unsafe_view view_as reshape_as flatten unflatten
    squeeze unsqueeze permute transpose t movedim swapaxes swapdims numpy_T mT expand expand_as broadcast_to
    contiguous clone alias detach lift_fresh_copy cat concat stack split split_with_sizes chunk unbind
    tensor_split narrow slice select index index_select gather take_along_dim roll flip repeat repeat_interleave
    tile pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im unfold tril triu diagonal slice_scatter
    select_scatter copy fill zero to _to_copy type_as zeros ones full zeros_like ones_like full_like arange
    linspace eye scalar_tensor new_zeros new_ones new_full sym_size sym_numel sym_stride
    """.split()  # noqa: SIM905
)

_CHECKS = {
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}

_NUMBERS = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pos")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "not_", "and_", "or_")},
    "getitem": operator.getitem,
}

_FROM_NUMBERS: dict[str, Callable[..., Any]] = {
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "math.ceil": lambda value: -int(-value // 1),
    "math.floor": lambda value: int(value // 1),
}

LARGEST_SIZE = 2**63  # of a size


def find_operator(target: str) -> Callable[..., Any] | None:
    """The function that a node's target names, None for a mere check; KeyError for anything that is not listed."""
    if target in _FROM_NUMBERS:
        return _FROM_NUMBERS[target]
    if target.startswith("_operator."):
        return _of_numbers(_NUMBERS[target.removeprefix("_operator.")])
    *package, name, overload = target.split(".")
    if package != ["torch", "ops", "aten"] or "out" in overload.split("_"):
        raise KeyError(target)
    if name in _CHECKS:
        return None
    if name not in _TENSOR_OPERATORS and name.removesuffix("_") not in _TENSOR_OPERATORS:
        raise KeyError(target)
    packet = getattr(torch.ops.aten, name)
    if overload not in packet.overloads():
        raise KeyError(target)
    return getattr(packet, overload)  # type: ignore[no-any-return]


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on sizes, whose results are sizes too: no number grows without end."""

    def limited(*args: Any) -> Any:
        result = function(*args)
        if isinstance(result, int) and abs(result) > LARGEST_SIZE:
            raise ValueError("a size is too large")
        return result

    return limited
