"""Equivalent ways to run a chain. Values are those of the plain chain; shapes and speed are not.

A lowering is a string of words joined by `+`, empty for the chain as it is:

- `pad8`, `pad16`: widths between stages, in each group, rounded up to a multiple with channels of zeros.
- `dense`: grouped stages as dense ones with zeros; permutations beside them go into their kernels.
- `split`: each grouped convolution as one dense convolution a group; shapes and kernels stay as they are.
- `merge`: a 1×1 convolution and its neighbour, both without groups, as one of at most half as many weights more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnncompress.chains.compose import compose_two
from cnncompress.chains.spec import Chain, ConvSpec, Stage, chain_params, convolutions

MULTIPLES = {"pad8": 8, "pad16": 16}
SPLIT, DENSE, MERGE = "split", "dense", "merge"
MANY_GROUPS = 64  # that many small convolutions take longer to call than to compute
MERGE_FACTOR = 1.5  # times the weights of two stages that the one in their place may have: it is one call less


def check_lowering(lowering: str) -> None:
    """ValueError for a lowering that this version does not know."""
    for word in words(lowering):
        if word not in (*MULTIPLES, SPLIT, DENSE, MERGE):
            raise ValueError(f"unknown lowering {word!r}")


def words(lowering: str) -> list[str]:
    """The parts of a lowering, in order."""
    return lowering.split("+") if lowering else []


def lower(chain: Chain, lowering: str) -> Chain:
    """The chain that runs in the place of `chain`; ValueError for an unknown lowering."""
    check_lowering(lowering)
    for word in words(lowering):
        if word in MULTIPLES:
            chain = _pad_chain(chain, MULTIPLES[word])
        elif word == DENSE:
            chain = _without_folded(_ungrouped(chain))
        elif word == MERGE:
            chain = _merge(chain, None)[0]
    return chain


def lower_kernels(chain: Chain, kernels: Sequence[Tensor], lowering: str) -> list[Tensor]:
    """The kernels of `lower(chain, lowering)` for the kernels of `chain`, one tensor a stage each."""
    check_lowering(lowering)
    lowered = list(kernels)
    for word in words(lowering):
        if word in MULTIPLES:
            lowered = _pad_kernels(chain, _pad_chain(chain, MULTIPLES[word]), lowered)
        elif word == DENSE:
            dense = [stage.ungroup(kernel) for stage, kernel in zip(chain, lowered, strict=True)]
            lowered = _fold(_ungrouped(chain), dense)
        elif word == MERGE:
            lowered = _merge(chain, lowered)[1]
        chain = lower(chain, word)
    return lowered


def regroupings(spec: ConvSpec, chain: Chain) -> list[str]:
    """Other ways to run a chain for a layer `spec`, with fewer groups or fewer stages, that may be faster.

    A chain that has more parameters than the layer without groups is left out. So is a chain of one stage, which is the
    layer itself.
    """
    grouped = [s.groups for s in chain if s.groups > 1 and not _square_depthwise(s)]
    words = [DENSE, f"{DENSE}+{MERGE}"] if grouped else [MERGE]
    known, smaller = [chain], []
    for lowering in words:
        lowered = lower(chain, lowering)
        if lowered not in known and len(lowered) > 1 and chain_params(lowered) <= spec.replace(groups=1).params:
            smaller.append(lowering)
        known.append(lowered)
    return [SPLIT] * bool(grouped and max(grouped) <= MANY_GROUPS) + smaller


def paddings(chain: Chain) -> list[str]:
    """The lowerings that widen a chain, where a width between its stages is no multiple of 8."""
    padded = {word: lower(chain, word) for word in MULTIPLES}
    if padded["pad8"] == chain:
        return []
    return [word for word in MULTIPLES if word == "pad8" or padded[word] != padded["pad8"]]


# --- padding ---


def _square_depthwise(stage: Stage) -> bool:
    return not stage.reorders and 1 < stage.groups == stage.in_channels == stage.out_channels


def _groups(chain: Chain) -> int | None:
    """The number of groups that all stages share (depthwise ones apart), or None where widths cannot be padded."""
    stages = list(convolutions(chain))
    if len(stages) < max(2, len(chain)) or _square_depthwise(stages[0]) or _square_depthwise(stages[-1]):
        return None
    groups = {stage.groups for stage in stages if not _square_depthwise(stage)}
    return groups.pop() if len(groups) == 1 else None


def _pad_chain(chain: Chain, multiple: int) -> Chain:
    groups = _groups(chain)
    if groups is None:
        return chain
    stages = list(convolutions(chain))
    inner = [-(-stage.out_channels // (groups * multiple)) * groups * multiple for stage in stages[:-1]]
    widths = [stages[0].in_channels, *inner, stages[-1].out_channels]
    return tuple(
        stage.replace(in_channels=c, out_channels=f, groups=c if _square_depthwise(stage) else groups)
        for stage, (c, f) in zip(stages, pairwise(widths), strict=True)
    )


def _pad_kernels(chain: Chain, padded: Chain, kernels: Sequence[Tensor]) -> list[Tensor]:
    groups = _groups(chain)
    if groups is None or padded == chain:
        return list(kernels)
    wider = []
    for stage, kernel in zip(convolutions(padded), kernels, strict=True):
        rows, columns = (after - now for after, now in zip(stage.weight_shape, kernel.shape[:2], strict=False))
        parts = kernel.unflatten(0, (groups, -1))
        wider.append(pad(parts, (0, 0, 0, 0, 0, columns, 0, rows // groups)).flatten(0, 1))
    return wider


# --- dense ---


def _ungrouped(chain: Chain) -> Chain:
    return tuple(stage.ungrouped() for stage in chain)


def _takers(chain: Chain) -> list[int | None]:
    """For every stage of a chain without groups the place of the one whose kernel takes it up, None where none does.

    A permutation goes into the stage after it, else into the one before.
    """
    takers: list[int | None] = []
    for i, stage in enumerate(chain):
        after = next((j for j in range(i + 1, len(chain)) if not chain[j].reorders), None)
        before = next((j for j in reversed(range(i)) if not chain[j].reorders), None)
        if not stage.reorders:
            takers.append(None)
        elif after is not None and chain[after].free_inputs:
            takers.append(after)
        else:
            takers.append(before if before is not None and chain[before].free_kernel else None)
    return takers


def _without_folded(chain: Chain) -> Chain:
    """The chain without the stages that go into others."""
    return tuple(stage for stage, taker in zip(chain, _takers(chain), strict=True) if taker is None)


def _fold(chain: Chain, kernels: Sequence[Tensor]) -> list[Tensor]:
    """The kernels of `_without_folded(chain)`."""
    folded, takers = list(kernels), _takers(chain)
    for i, taker in reversed(list(enumerate(takers))):
        if taker is not None and taker > i:
            folded[taker] = folded[taker][:, torch.argsort(folded[i])]
    for i, taker in enumerate(takers):
        if taker is not None and taker < i:
            folded[taker] = folded[taker][folded[i]]
    return [kernel for kernel, taker in zip(folded, takers, strict=True) if taker is None]


# --- merging ---


def _merge(chain: Chain, kernels: Sequence[Tensor] | None) -> tuple[Chain, list[Tensor]]:
    """A chain after all merges, from its end on, and its kernels where they are given."""
    stages, composed = list(chain), list(kernels or [])
    for i in reversed(range(len(chain) - 1)):
        merged = _merged(stages[i], stages[i + 1])
        if merged is not None:
            stages[i : i + 2] = [merged]
            composed[i : i + 2] = [compose_two(composed[i], composed[i + 1])] if kernels else []
    return tuple(stages), composed


def _merged(first: Stage, second: Stage) -> ConvSpec | None:
    """The convolution that does what two stages do, or None where there is none, or one of too many weights."""
    plain = list(convolutions((first, second)))
    if len(plain) < 2:
        return None
    first, second = plain
    if not (_position_wise(first) or _position_wise(second)) or first.bias or max(first.groups, second.groups) > 1:
        return None
    spatial = second if _position_wise(first) else first
    merged = spatial.replace(in_channels=first.in_channels, out_channels=second.out_channels, bias=second.bias)
    return merged if merged.weights <= MERGE_FACTOR * (first.weights + second.weights) else None


def _position_wise(stage: ConvSpec) -> bool:
    """A 1×1 convolution that keeps every position, or a Linear."""
    return stage.kernel_size == stage.stride == (1, 1) and stage.padding in ("same", (0, 0))
