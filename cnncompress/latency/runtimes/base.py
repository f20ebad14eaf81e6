"""What a runtime is: whatever runs a network where its time counts.

The files of this folder import torch, and what they run networks with, inside their functions: the command line knows
their names without waiting for either.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting

NO_BF16 = "this processor does not compute in bfloat16"
REGISTRY: dict[str, Runtime] = {}
Call = Callable[[], object]


def register(cls: type[Runtime]) -> type[Runtime]:
    """Class decorator: make a runtime known by its name."""
    REGISTRY[cls.name] = cls()
    return cls


class LayerClock(Protocol):
    """Runs a network as often as it is asked to, and tells what its layers took."""

    def run(self) -> object:
        """One forward pass."""

    def milliseconds(self) -> dict[str, list[float]]:
        """By layer, those of each pass, over all calls of the layer in it. Called once, after the last pass."""


class Runtime(ABC):
    """One way to run networks. Settings are complete here (`machine.complete`) but for the dtype and memory format.

    `precisions` are words of `setting.PRECISIONS`, the first the usual one. `memory_formats` are those of torch that
    a network may be put in, none where their order makes no difference to the runtime. `chains_in` names the runtime
    in which chains are timed for a plan, "" for this one: a runtime that takes seconds to prepare one times the whole
    network only. `shows_layers` tells whether it has a `layer_clock`. `package` is the one that has to be installed,
    by its name in the package index.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "torch"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    memory_formats: ClassVar[tuple[str, ...]] = ()
    chains_in: ClassVar[str] = ""
    shows_layers: ClassVar[bool] = False

    def missing(self) -> str:
        """Why the runtime cannot be used here, and what to do; "" where it can."""
        return ""

    def lacks(self, precision: str) -> str:
        """Why one of its precisions cannot be used on this machine; "" where it can."""
        return ""

    @abstractmethod
    def version(self) -> str:
        """The version of what runs, a part of the key that times are kept under."""

    @abstractmethod
    def prepare(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """A function that runs a network on a batch of inputs once and waits for nothing but the network.

        The network is in eval mode and may be changed. Both are on the CPU in the network's own dtype. CompressError
        where the runtime cannot run it.
        """

    def prepare_chain(self, chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """As `prepare`, for one layer or chain with random kernels: hundreds of them are timed for a plan."""
        return self.prepare(chain, inputs, setting)

    def prepare_twins(self, chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> tuple[Call, Call]:
        """As `prepare_chain`, twice, each with weights of its own."""
        return self.prepare_chain(copy.deepcopy(chain), inputs, setting), self.prepare_chain(chain, inputs, setting)

    def layer_clock(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> LayerClock:
        """Tells the times of layers within a network, which is as for `prepare`."""
        raise NotImplementedError

    @contextmanager
    def running(self, setting: TimingSetting) -> Iterator[None]:
        """Preparation and all runs happen inside: what holds for the whole process is set here and undone."""
        yield

    def milliseconds(self, call: Callable[[], object], setting: TimingSetting) -> float:
        """How long a call takes until its answers are there; overridden for devices that work ahead."""
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1000
