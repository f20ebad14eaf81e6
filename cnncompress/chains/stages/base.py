"""The protocol of a stage, and the registry of stage types by their stored kind."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

from cnncompress.files.reading import Schema

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Pair = tuple[int, int]

STAGES: dict[str, type[Stage]] = {}


class TensorSpec(NamedTuple):
    """The shape of a tensor, and its dtype where that is not the network's own."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


class Stage(ABC):
    """One layer of a chain: a frozen dataclass of plain values, with all that is known about layers of its type.

    What is fitted or chosen, its kernel, is one tensor beside it. A stage that computes has a floating-point kernel
    [F, C/g, ...], of the filters of one group after another; its output is linear in it, or it has no `linear_kernel`.
    A stage that `reorders` has the index [channels] of the input channel that each output channel is. Nothing here
    imports torch before a method needs it: reports are read without.
    """

    if TYPE_CHECKING:  # fields of some types, properties of others

        @property
        def kind(self) -> str:
            """The word for it in files."""

        @property
        def in_channels(self) -> int:
            """Channels of the input."""

        @property
        def out_channels(self) -> int:
            """Channels of the output."""

        @property
        def groups(self) -> int:
            """Parts of the channels that do not meet."""

        @property
        def bias(self) -> bool:
            """True where its module has a bias."""

        @property
        def linear(self) -> bool:
            """True where channels are the last dimension of vectors, not dimension 1 of images."""

    schema: ClassVar[type[Schema]]  # what its JSON may hold, `in_channels` and `out_channels` at least
    reorders: ClassVar[bool] = False  # it only reorders channels
    free_inputs: ClassVar[bool] = False  # it can take up any scaling, and without groups any mixing, of its inputs
    free_kernel: ClassVar[bool] = False  # it is a convolution whose kernel [F, C/g, kh, kw] may be any
    linear_kernel: ClassVar[bool] = True  # its output is linear in its kernel
    weight_decay: ClassVar[float | None] = None  # the most that its training form takes; None is any

    # --- costs and shapes ---

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors of its module, as they are stored, by their names in its state dict."""

    @property
    def params(self) -> int:
        """Number of weights and biases."""
        return sum(math.prod(shape) for shape, dtype in self.tensors().values() if dtype is None)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the tensors whose dtype is not the network's own."""
        sizes = [(shape, dtype) for shape, dtype in self.tensors().values() if dtype is not None]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)

    @abstractmethod
    def macs(self, size: Pair) -> int:
        """Multiply-accumulates for an input of height and width `size`, without biases.

        For a Linear, `size` is the leading positions it is applied to, as `(positions, 1)`.
        """

    @property
    def trained_params(self) -> int:
        """Number of weights and biases of its training form."""
        return self.params

    def fewest_macs(self, size: Pair) -> int:
        """Multiply-accumulates of the cheapest way to compute the same, for an input of height and width `size`."""
        return self.macs(size)

    def output_size(self, size: Pair) -> Pair:
        """Height and width of the output for an input of height and width `size`."""
        return size

    # --- its module ---

    @abstractmethod
    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """The torch module; with `split`, grouped convolutions run group by group. `factory`: device, dtype."""

    @abstractmethod
    def read_kernel(self, module: nn.Module) -> Tensor:
        """The kernel in a module, detached."""

    @abstractmethod
    def write_kernel(self, module: nn.Module, kernel: Tensor) -> None:
        """Put a kernel into a module. A bias is set to zero."""

    def read_bias(self, module: nn.Module) -> Tensor | None:
        """The bias [F] in a module, detached, or None where it has none."""
        return None

    def add_to_bias(self, module: nn.Module, shift: Tensor) -> None:
        """Add `shift` [F] to the bias of a module that has one."""
        raise NotImplementedError(f"{type(self).__name__} has no bias")

    # --- its training form ---

    def start_training(self, module: nn.Module) -> bool:
        """Give a module the parameters that it trains with; False where those are the stored ones.

        `torch.nn.utils.parametrize` is the way: the module computes the same, and `fold` takes it off again.
        """
        return False

    def fold(self, module: nn.Module) -> bool:
        """Undo `start_training`: the stored tensors, with the values that training gave them; False without any.

        `layers.fold_parametrizations` does that for all tensors of a module.
        """
        return False

    # --- in a chain ---

    @abstractmethod
    def compose(self, before: Tensor | None, kernel: Tensor) -> Tensor:
        """The kernel [F, C, kh, kw] of one group that does what `before` [M, C, ah, aw] and then this stage do.

        `before` None stands for nothing: the stage's own dense kernel. UnsupportedLayerError where both extend along
        the same axis. Differentiable in `kernel`, linear in it where the stage has a `linear_kernel`.
        """

    @abstractmethod
    def in_groups(self, groups: int) -> Self:
        """`groups` copies of this stage side by side, each on its own channels, as one stage.

        UnsupportedLayerError where no stage does that. Its kernel is theirs one after another, along dimension 0.
        """

    def ungrouped(self) -> Stage:
        """The stage without groups that can do the same."""
        return self

    def ungroup(self, kernel: Tensor) -> Tensor:
        """The kernel of `ungrouped()` for this stage's."""
        return kernel

    # --- on disk ---

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """JSON-ready values without the kind; the inverse of `from_json`."""

    @classmethod
    @abstractmethod
    def from_json(cls, kind: str, values: Mapping[str, Any]) -> Self:
        """The stage that `to_json` gave `values` of; KeyError, TypeError or ValueError for anything else."""


StageT = TypeVar("StageT", bound=type[Stage])


def register(*kinds: str) -> Callable[[StageT], StageT]:
    """Class decorator: make a type of stages known by the kinds that it is stored as."""

    def add(cls: StageT) -> StageT:
        STAGES.update(dict.fromkeys(kinds, cls))
        return cls

    return add


def as_pairs(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
