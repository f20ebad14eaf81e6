"""A stage that reorders channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from cnncompress.chains.stages.base import Pair, Stage, TensorSpec, register
from cnncompress.errors import UnsupportedLayerError
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels

if TYPE_CHECKING:
    from torch import Tensor, nn


class PermutationSchema(Schema):
    """A `Permutation` in JSON."""

    kind: Literal["permutation"]
    channels: Channels
    linear: bool

    @property
    def in_channels(self) -> int:
        """The number of channels, under the name that a convolution has for it."""
        return self.channels

    out_channels = in_channels


@register("permutation")
@dataclass(frozen=True)
class Permutation(Stage):
    """A fixed reordering of channels: output channel i is input channel `index[i]`.

    The index itself is data, as kernels are: an int64 tensor [channels] in the stage's place among the kernels.
    """

    channels: int
    linear: bool = False

    schema: ClassVar[type[Schema]] = PermutationSchema
    reorders: ClassVar[bool] = True
    kind = "permutation"
    groups = 1
    bias = False

    @property
    def in_channels(self) -> int:
        """The number of channels."""
        return self.channels

    @property
    def out_channels(self) -> int:
        """The number of channels."""
        return self.channels

    def tensors(self) -> dict[str, TensorSpec]:
        """The index."""
        import torch

        return {"index": TensorSpec((self.channels,), torch.int64)}

    @property
    def params(self) -> int:
        """None: the index is no parameter."""
        return 0

    def macs(self, size: Pair) -> int:
        """None."""
        return 0

    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """A `Permute`."""
        from cnncompress.chains.layers import Permute

        return Permute(self.channels, self.linear, factory.get("device"))

    def read_kernel(self, module: Any) -> Tensor:
        """The index."""
        return module.index

    def write_kernel(self, module: Any, kernel: Tensor) -> None:
        """Put an index into a module."""
        module.index.copy_(kernel)

    def compose(self, before: Tensor | None, kernel: Tensor) -> Tensor:
        """`before` with its rows reordered; that of the identity for None, in float64."""
        import torch

        if before is None:
            before = torch.eye(self.channels, dtype=torch.float64, device=kernel.device)[:, :, None, None]
        return before[kernel]

    def in_groups(self, groups: int) -> Self:
        """UnsupportedLayerError: clusters of one group have nothing to do with those of another."""
        raise UnsupportedLayerError("a permutation across groups")

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {"channels": self.channels, "linear": self.linear}

    @classmethod
    def from_json(cls, kind: str, values: Mapping[str, Any]) -> Self:
        """The stage of `to_json`; KeyError for a field that is missing."""
        return cls(int(values["channels"]), bool(values["linear"]))

    def __str__(self) -> str:
        return f"permute {self.channels}"
