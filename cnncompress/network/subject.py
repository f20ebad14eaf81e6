"""A network that is to become smaller, with what one look at it tells: how it calls its layers, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from cnncompress.chains.spec import Call
from cnncompress.network.costs import Profile
from cnncompress.network.profile import profile
from cnncompress.network.provenance import Provenance
from cnncompress.network.standing_in import examine


@dataclass(frozen=True)
class Subject:
    """A network, an input [n, c, h, w] of it, how it uses its layers on the first image of that, and what it costs.

    `provenance` is an empty one where nothing is known of where the network comes from.
    """

    network: nn.Module
    example: Tensor
    calls: Mapping[str, Call]
    cost: Profile
    provenance: Provenance = field(default_factory=Provenance)


def look_at(network: nn.Module, example: Tensor, known: Provenance | None = None) -> Subject:
    """The subject that a network is on `example` [n, c, h, w], traced once; raises as `examine` and `profile` do."""
    cost = profile(network, example)
    return Subject(network, example, examine(network, example, cost.calls), cost, known or Provenance())
