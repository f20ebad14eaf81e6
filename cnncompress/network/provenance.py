"""The provenance of a compressed network.

Functions hand it on as a value, mostly within a `Compressed`. A user holds the network alone: for them it is its
attribute `cnncompress`, which `attach` alone writes and `provenance` alone reads. A deep copy, a pickle and
`copying.clone` keep it; a state dict does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cnncompress.chains.plan import Plan
from cnncompress.network.preprocessing import Preprocessing


@dataclass
class Provenance:
    """The provenance of a compressed network: enough to build it again and to report on it.

    `source` is `models.ModelSource`; `plan` holds every swap so far, in order; `errors` the relative error of each
    decomposed layer in the plan's metric; `rises` the predicted rise of the loss of the last decomposition by layer, in
    nats per image, where the metric predicts it.
    """

    source: Any = None
    preprocessing: Preprocessing | None = None
    plan: Plan = field(default_factory=Plan)
    errors: dict[str, float] = field(default_factory=dict)
    rises: dict[str, float] = field(default_factory=dict)


def provenance(model: nn.Module) -> Provenance | None:
    """The provenance that `attach` stored with a network, or None."""
    value = getattr(model, "cnncompress", None)
    return value if isinstance(value, Provenance) else None


def attach(model: nn.Module, value: Provenance) -> nn.Module:
    """Store a provenance with a network, as its attribute `cnncompress`."""
    model.cnncompress = value  # type: ignore[assignment]
    return model
