"""A convolution that trains with batch normalisation after it, and is stored as the plain one that does the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from cnncompress.chains.stages.base import TensorSpec, register
from cnncompress.chains.stages.convolution import Convolution, ConvSpec
from cnncompress.files.reading import Schema

if TYPE_CHECKING:
    from torch import Tensor, nn


class NormalisedSchema(Convolution):
    """A `Normalised` in JSON."""

    kind: Literal["normalised"]  # type: ignore[assignment]

    @model_validator(mode="after")
    def _biased(self) -> NormalisedSchema:
        Normalised.from_json(self.kind, self.model_dump(exclude={"kind"}))
        return self


@register("normalised")
@dataclass(frozen=True)
class Normalised(ConvSpec):
    """A convolution with a bias, after which there is a batch normalisation while it trains (Tai et al. 2016, §3).

    Folding puts that into the kernel and the bias. What is stored beside them, the mean and the variance [F] that the
    normalisation has seen without the bias, is what it starts from again: 0 and 1 at first. ValueError without a bias.
    """

    schema: ClassVar[type[Schema]] = NormalisedSchema

    def __post_init__(self) -> None:
        if self.linear or not self.bias:
            raise ValueError("a normalised stage is a convolution with a bias")

    @property
    def kind(self) -> str:
        """`normalised`."""
        return "normalised"

    @property
    def whole(self) -> ConvSpec:
        """The plain convolution that runs."""
        return ConvSpec(**vars(self))

    def tensors(self) -> dict[str, TensorSpec]:
        """The weight and the bias, the mean and the variance."""
        import torch

        seen = TensorSpec((self.out_channels,), torch.float32)
        return super().tensors() | {"mean": seen, "variance": seen}

    @property
    def trained_params(self) -> int:
        """Weights, and a scale and a shift of every filter."""
        return self.weights + 2 * self.out_channels

    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """A `NormalisedConv2d`."""
        from cnncompress.chains.normalised import NormalisedConv2d

        return NormalisedConv2d(self, **factory)

    def write_kernel(self, module: Any, kernel: Tensor) -> None:
        """Put a kernel into the weight; bias and mean become zero, the variance one."""
        super().write_kernel(module, kernel)
        module.mean.zero_()
        module.variance.fill_(1)

    def start_training(self, module: Any) -> bool:
        """A batch normalisation in the place of the bias, which is the identity at the mean and variance stored."""
        return module.start_training()

    def fold(self, module: Any) -> bool:
        """The normalisation goes into the kernel and the bias."""
        return module.fold()
