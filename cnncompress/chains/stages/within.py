"""What stages have in common that do the work of one plain convolution in another way."""

from __future__ import annotations

from dataclasses import dataclass

from cnncompress.chains.stages.base import Pair, Stage
from cnncompress.chains.stages.convolution import ConvSpec


@dataclass(frozen=True)
class WithinConvolution(Stage):
    """A stage with the channels, groups, bias and output size of the plain convolution `whole`."""

    whole: ConvSpec

    linear = False

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.whole.in_channels

    @property
    def out_channels(self) -> int:
        """Filters, of all parts together."""
        return self.whole.out_channels

    @property
    def groups(self) -> int:
        """Parts of the channels that do not meet."""
        return self.whole.groups

    @property
    def bias(self) -> bool:
        """True where the convolution has one."""
        return self.whole.bias

    def output_size(self, size: Pair) -> Pair:
        """Height and width of the output for an input of height and width `size`."""
        return self.whole.output_size(size)
