"""The result of a compression: the network, its plan and its provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from cnncompress.chains.plan import Plan
from cnncompress.errors import UsageError
from cnncompress.network.provenance import Provenance, attach, provenance


@dataclass(frozen=True)
class Compressed:
    """A compressed network, called as the network is: `small(images)`.

    `network` is the module itself, for whatever takes one. `plan` says what became of every layer, of an earlier
    compression too; `provenance` where the network comes from.
    """

    network: nn.Module
    plan: Plan
    provenance: Provenance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answers of the network."""
        return self.network(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Compressed {type(self.network).__name__}: {self.plan!r}>"


def compressed(network: nn.Module, known: Provenance) -> Compressed:
    """A network with its provenance, which whoever holds the network alone finds there too."""
    return Compressed(attach(network, known), known.plan, known)


def with_provenance(model: nn.Module | Compressed) -> Compressed:
    """A user's network with the provenance that was stored with it, an empty one where none was.

    UsageError for what is no network.
    """
    network, own = network_of(model), model.provenance if isinstance(model, Compressed) else Provenance()
    known = provenance(network) or own
    return Compressed(network, known.plan, known)


def network_of(model: nn.Module | Compressed) -> nn.Module:
    """The module of either; UsageError for anything else."""
    if isinstance(model, Compressed):
        return model.network
    if not isinstance(model, nn.Module):
        raise UsageError(f"a network is expected, not a {type(model).__name__}: load_model('resnet50').model is one")
    return model
