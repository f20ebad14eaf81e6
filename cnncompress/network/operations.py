"""What operations and modules do to channels: which of them keep channels apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import fx, nn

What = Literal["elementwise", "spatial", "flatten", "mean", "product", "sum", "concatenation", "shape", "other"]

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold, nn.Hardshrink),
    *(nn.Softshrink, nn.Tanhshrink, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout),
)
SPATIAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
ELEMENTWISE = frozenset(
    [
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh", "hardswish"),
        *("hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid", "threshold", "clamp", "clamp_min"),
        *("clamp_max", "clip", "dropout", "dropout2d", "alpha_dropout", "contiguous", "clone", "detach", "abs", "neg"),
        *("exp", "square", "sqrt", "rsqrt", "div", "truediv", "pow"),
    ]
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLING = frozenset(
    ["max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"]
)
PRODUCTS, SUMS = frozenset({"mul", "imul"}), frozenset({"add", "iadd", "sub", "isub"})
CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
SHAPES = frozenset({"size", "dim", "numel"})


def is_channelwise(module: nn.Module) -> bool:
    """True for a module without numbers of its own that does the same to every channel."""
    return type(module) in ACTIVATIONS or type(module) in SPATIAL


def is_flattening(module: nn.Module) -> bool:
    """True for what makes vectors of images, channel after channel."""
    return type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1


def numbers_a_channel(module: nn.Module) -> int | None:
    """The channels that a module has numbers for, one by one; 0 where it has the same for all, None where unknown."""
    if type(module) is nn.PReLU:
        return module.num_parameters if module.num_parameters > 1 else 0
    return module.num_features if isinstance(module, NORMS) and type(module) in NORMS else None


def kind_of_operation(node: fx.Node) -> What:
    """What a node that calls no module does to the channels of what it is given."""
    name = _name(node)
    if name == "getattr" and len(node.args) > 1 and node.args[1] in ("shape", "dtype", "device", "ndim"):
        return "shape"
    if name in SHAPES:
        return "shape"
    if name in PRODUCTS:
        return "product" if len(node.all_input_nodes) > 1 else "elementwise"
    if name in SUMS:
        return "sum" if len(node.all_input_nodes) > 1 else "elementwise"
    if name in CONCATENATIONS:
        return "concatenation"
    if name in ELEMENTWISE:
        return "elementwise"
    if name in POOLING or (name == "pad" and _is_spatial_pad(node)):
        return "spatial"
    if name == "mean" and _is_spatial_mean(node):
        return "mean"
    return "flatten" if _is_flatten(node, name) else "other"


def _name(node: fx.Node) -> str:
    """The name of a function or method, that of the one that works in place without its `_`."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return str(getattr(node.target, "__name__", node.target)).rstrip("_")


def _is_spatial_pad(node: fx.Node) -> bool:
    sides = _argument(node, 1, "pad", ())
    return isinstance(sides, Sequence) and len(sides) <= 4


def _is_spatial_mean(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", ())
    axes = {dim % 4 for dim in dims if isinstance(dim, int)} if isinstance(dims, Sequence) else set()
    return not _argument(node, 2, "keepdim", False) and axes == {2, 3}


def _is_flatten(node: fx.Node, name: str) -> bool:
    if name == "flatten":
        return _argument(node, 1, "start_dim", 0) == 1 and _argument(node, 2, "end_dim", -1) == -1
    if name not in ("view", "reshape"):
        return False
    shape = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], Sequence) else node.args[1:]
    return isinstance(shape, Sequence) and len(shape) == 2 and (shape[1] == -1) is True and (shape[0] == -1) is not True


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
