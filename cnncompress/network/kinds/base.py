"""The base class of layer kinds, and the registry of kinds by the modules that they describe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from cnncompress.chains.spec import ConvSpec, Pair
from cnncompress.errors import UnsupportedLayerError

KINDS: dict[type[nn.Module], LayerKind] = {}


def precise(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class LayerKind(ABC):
    """Describes the layers of one module type: geometry, weight, input patches.

    A layer computes what its `spec` says. Its weight, in whatever layout a parameter holds it, is seen as
    W[F, C/g, kh, kw]; its output is linear in it. n is (C/g)·kh·kw, in the order of W.flatten(1).
    """

    channel_axis: ClassVar[int]  # of inputs and outputs, from the end
    adjustable: ClassVar[bool] = True  # a correction may give a layer that stays another kernel
    narrows: ClassVar[bool] = False  # `narrow` is written for where weights lie

    def __init_subclass__(cls) -> None:
        """A kind that keeps its weights elsewhere than the one that it derives from narrows by a way of its own."""
        super().__init_subclass__()
        own = vars(cls).keys()
        if "narrow" in own or own & {"spec", "parameter", "bias", "dense", "laid_out"}:
            cls.narrows = "narrow" in own

    # --- the module ---

    @abstractmethod
    def spec(self, module: Any) -> ConvSpec:
        """The geometry of a module."""

    @abstractmethod
    def is_plain(self, module: Any) -> bool:
        """True where the module computes what its spec says, and no class derived from it something else."""

    def parameter(self, module: Any) -> nn.Parameter:
        """The parameter that holds the weight."""
        return module.weight

    def bias(self, module: Any) -> nn.Parameter | None:
        """The parameter [F] that is added to the output."""
        return module.bias

    def dense(self, module: Any, values: Tensor | None = None) -> Tensor:
        """W[F, C/g, kh, kw]: the weight, or `values` that are laid out as its parameter."""
        values = self.parameter(module) if values is None else values
        return values.reshape(self.spec(module).weight_shape)

    def laid_out(self, module: Any, dense: Tensor) -> Tensor:
        """The inverse of `dense`."""
        return dense.reshape(self.parameter(module).shape)

    def narrow(self, module: Any, spec: ConvSpec, kernel: Tensor, bias: Tensor | None) -> None:
        """Have a module compute what `spec`, of other channels alone, says, with this kernel [F, C/g, kh, kw]."""
        raise NotImplementedError(f"{type(self).__name__} does not change channels")

    # --- its input and output ---

    @abstractmethod
    def image_channels(self, module: Any) -> int | None:
        """The channels of the images that it takes; None where it takes no images."""

    def takes(self, module: Any, x: Tensor) -> bool:
        """True where `x` has the channels of its input."""
        return x.shape[self.channel_axis] == self.spec(module).in_channels

    @abstractmethod
    def sizes(self, x: Tensor) -> list[Pair]:
        """Height and width of each image in the input of one call, [b, C, H, W] or [C, H, W].

        For a layer on the last axis it is one pair, the leading positions and 1.
        """

    @abstractmethod
    def position_count(self, x: Tensor, spec: ConvSpec) -> int:
        """Output positions over the whole input."""

    @abstractmethod
    def patches(self, x: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
        """The input patches of the output positions `index` [R], as [R, g, n] in float32 or float64.

        `index` counts (image, y, x) row by row.
        """

    def rows(self, y: Tensor, spec: ConvSpec) -> Tensor:
        """An output, or a gradient at it, as one row [F] for each position, in float32 or float64."""
        return precise(y.movedim(self.channel_axis, -1).reshape(-1, y.shape[self.channel_axis]))

    def outputs(self, y: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
        """The outputs [R, F] at the positions `index` [R], counted as in `patches`."""
        return self.rows(y, spec)[index]


Kind = TypeVar("Kind", bound=LayerKind)


def register(module: type[nn.Module]) -> Callable[[type[Kind]], type[Kind]]:
    """Decorator: the class describes modules of this type, and of types derived from it."""

    def add(kind: type[Kind]) -> type[Kind]:
        KINDS[module] = kind()
        return kind

    return add


def put(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a module another weight and bias, of any shape, in the dtype and on the device of its own."""
    old = module.weight
    module.weight = nn.Parameter(weight.to(old), old.requires_grad)
    module.bias = None if bias is None else nn.Parameter(bias.to(old), old.requires_grad)


def kind_of(module: nn.Module) -> LayerKind:
    """The kind of a layer; UnsupportedLayerError for any other module."""
    for base in type(module).__mro__:
        if base in KINDS:
            return KINDS[base]
    raise UnsupportedLayerError(f"{type(module).__name__} is neither a {known_kinds('nor a')}")


def known_kinds(word: str) -> str:
    """The modules of all kinds in words: "Conv2d or Linear" for "or"."""
    return f" {word} ".join(module.__name__ for module in KINDS)


def is_layer(module: nn.Module) -> bool:
    """True for a module of a kind that is known."""
    return any(base in KINDS for base in type(module).__mro__)


def spec_of(module: nn.Module) -> ConvSpec:
    """The geometry of a layer; UnsupportedLayerError for any other module."""
    return kind_of(module).spec(module)


def weight_of(module: nn.Module) -> nn.Parameter:
    """The parameter that holds the weight of a layer."""
    return kind_of(module).parameter(module)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a layer as W[F, C/g, kh, kw], without gradients."""
    return kind_of(module).dense(module).detach()


def called_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a layer in the arguments of one call."""
    return args[0] if args else next(iter(kwargs.values()))
