"""The cost of a network, layer by layer, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cnncompress.chains.spec import Call, ConvSpec


@dataclass(frozen=True)
class LayerProfile:
    """Cost of one layer on one image."""

    layer: str
    spec: ConvSpec
    params: int
    macs: int


@dataclass(frozen=True)
class OtherProfile:
    """The cost of a module that is no layer, on one image, and the reason why it stays."""

    name: str
    kind: str
    params: int
    macs: int
    reason: str


@dataclass(frozen=True)
class Profile:
    """Cost of a network on one image.

    `macs` are those of convolution and linear layers; `other_macs` what matrix products outside of them take
    (attention), as `torch.utils.flop_counter` sees them. `others` are the modules that these are in, most MACs first.
    `calls` tells how the network used its layers meanwhile, as `trace` finds it.
    """

    params: int
    macs: int
    other_macs: int
    size_bytes: int
    layers: tuple[LayerProfile, ...] = field(repr=False)
    input_shape: tuple[int, ...]
    others: tuple[OtherProfile, ...] = field(default=(), repr=False)
    calls: Mapping[str, Call] = field(default_factory=dict, repr=False)

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates that were counted."""
        return self.macs + self.other_macs
