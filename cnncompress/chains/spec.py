"""Layers and chains of stages: costs and uses. Plain values without torch modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnncompress.chains.stages import ConvSpec as ConvSpec
from cnncompress.chains.stages import Pair as Pair
from cnncompress.chains.stages import Permutation as Permutation
from cnncompress.chains.stages import Stage as Stage

Rank = tuple[int, ...]
Chain = tuple[Stage, ...]


def convolutions(chain: Chain) -> Iterator[ConvSpec]:
    """The plain convolutions and matrices of a chain, in order: those whose kernels may be any."""
    return (stage for stage in chain if isinstance(stage, ConvSpec) and stage.free_kernel)


def chain_params(chain: Chain) -> int:
    """Weights and biases of a chain."""
    return sum(stage.params for stage in chain)


def chain_macs(chain: Chain, size: Pair) -> int:
    """Multiply-accumulates of a chain for an input of height and width `size`, as `Stage.macs` counts them.

    Biases are not counted, as in `torch.utils.flop_counter`.
    """
    return sum(stage.macs(seen) for stage, seen in _seen(chain, size))


def fewest_macs(chain: Chain, size: Pair) -> int:
    """As `chain_macs`, of the cheapest way to compute what each stage does (`Stage.fewest_macs`)."""
    return sum(stage.fewest_macs(seen) for stage, seen in _seen(chain, size))


def _seen(chain: Chain, size: Pair) -> Iterator[tuple[Stage, Pair]]:
    """Every stage with the size of its input."""
    for stage in chain:
        yield stage, size
        size = stage.output_size(size)


def chain_output_size(chain: Chain, size: Pair) -> Pair:
    """Height and width of a chain's output for an input of height and width `size`."""
    for stage in chain:
        size = stage.output_size(size)
    return size


@dataclass(frozen=True)
class Call:
    """How a network uses a layer on one image: position in the order of first calls, calls, input sizes.

    `kept` says why no chain can stand in its place, "" where one can as far as is known.
    """

    order: int
    spec: ConvSpec
    sizes: tuple[Pair, ...]
    kept: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer on one image, over all its calls."""
        return self.macs_of((self.spec,))

    def macs_of(self, chain: Chain) -> int:
        """Multiply-accumulates of `chain` in the layer's place."""
        return sum(chain_macs(chain, size) for size in self.sizes)


def as_pair(value: int | Sequence[int]) -> Pair:
    """`3` → `(3, 3)`; a sequence of two stays."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
