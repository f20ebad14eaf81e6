"""Which layer becomes what."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cnncompress.chains.plan import LayerPlan
from cnncompress.chains.spec import Call, ConvSpec, Pair, Rank, chain_params
from cnncompress.decompositions import REGISTRY, Decomposition, get_method
from cnncompress.decompositions.options import as_text, parse_options
from cnncompress.errors import UsageError, nearest
from cnncompress.names.methods import SELECT
from cnncompress.network.graph import trace_graph
from cnncompress.network.normalised import normalised_layers

AUTO = ("svd", "spatial-svd", "channel-svd")  # without a budget: the first that applies to a layer
RankRequest = int | float | Sequence[int]


@dataclass(frozen=True)
class Choice:
    """What is asked of a layer: a method (`NAME[:k=v,...]` or `auto`, or several joined by `+`) and a rank.

    Methods that draw random numbers take `seed`, unless their options name another.
    """

    method: str = "auto"
    rank: RankRequest = 0.25
    seed: int = 0

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods one by one."""
        return tuple(self.method.split("+"))


@dataclass(frozen=True)
class Kept:
    """A layer stays as it is, for this reason."""

    reason: str


def choose_method(text: str, spec: ConvSpec) -> tuple[Decomposition, RankRequest | None]:
    """The method of `NAME[:k=v,...]` for a layer, and the ranks that its options fix, if any."""
    name, _, options = text.partition(":")
    if name in ("auto", SELECT) and options:
        raise UsageError(f"method {name} takes no options, not '{options}'")
    if name == "auto":
        name = next((n for n in AUTO if get_method(n).refuse(spec) is None), "spatial-svd")
    values, ranks = parse_options(type(get_method(name)), options)
    method = get_method(name, **values)
    if ranks and len(ranks) < len(method.rank_names):
        missing = ", ".join(n for n in method.rank_names if n not in ranks)
        raise UsageError(f"method {name}: give all its ranks or none; missing {missing}")
    return method, tuple(ranks[n] for n in method.rank_names) if ranks else method.fixed_rank(spec)


def at_depths(choices: Mapping[str, Choice], calls: Mapping[str, Call]) -> dict[str, Choice]:
    """The choices, with methods that are `graded` as they are at the resolution of each layer's output."""
    found, sizes = {}, dict[str, dict[str, Pair]]()
    for name, choice in choices.items():
        texts = []
        for text in choice.methods:
            method = _named(text)
            if method is None or not method.graded:
                texts.append(text)
                continue
            if text not in sizes:
                users = [other for other, its in choices.items() if text in its.methods]
                sizes[text] = {n: _output_size(calls[n]) for n in users if method.refuse(calls[n].spec) is None}
            areas = sorted({math.prod(size) for size in sizes[text].values()}, reverse=True)
            own = math.prod(_output_size(calls[name]))
            texts.append(as_text(method.at_depth(sum(area > own for area in areas), len(areas))))
        found[name] = dataclasses.replace(choice, method="+".join(texts))
    return found


def normalised_once(choices: Mapping[str, Choice], network: nn.Module) -> dict[str, Choice]:
    """The choices, without the normalisations of chains whose output the network normalises itself."""
    asked = {text for choice in choices.values() for text in choice.methods}
    without = {text: as_text(m.not_normalising()) for text in asked if (m := _named(text)) and m.normalises}
    if not without:
        return dict(choices)
    normalised = normalised_layers(trace_graph(network), network)
    return {
        name: dataclasses.replace(choice, method="+".join(without.get(text, text) for text in choice.methods))
        if name in normalised
        else choice
        for name, choice in choices.items()
    }


def _named(text: str) -> Decomposition | None:
    """The method `NAME[:k=v,...]` in text, None where it is no single one."""
    return None if text.partition(":")[0] in ("auto", SELECT) else choose_method(text, ConvSpec(1, 1))[0]


def _output_size(call: Call) -> Pair:
    return call.spec.output_size(call.sizes[0])


def seeded(text: str, seed: int) -> str:
    """The method `NAME[:k=v,...]` with this seed, where it draws random numbers and names no seed of its own."""
    name, _, options = text.partition(":")
    draws = name in REGISTRY and "seed" in REGISTRY[name].options and not re.search(r"\bseed=", options)
    return f"{name}:{','.join(filter(None, (options, f'seed={seed}')))}" if seed and draws else text


def plan_layer(call: Call, choice: Choice, force: bool = False, centred: bool = False) -> LayerPlan | Kept:
    """The plan of one layer at the rank asked for, or the reason why it is kept.

    `centred` gives the chain a bias even where the layer has none: it takes back the error at the mean input.
    """
    spec = call.spec
    if len(choice.methods) > 1:
        raise UsageError(f"method {choice.method}: only a budget or --max-drop chooses from several; give one")
    method, fixed = choose_method(seeded(choice.method, choice.seed), spec)
    reason = method.refuse(spec)
    if reason:
        return Kept(reason)
    rank = rank_for(method, spec, choice.rank if fixed is None else fixed)
    if isinstance(rank, Kept):
        return rank
    chain = method.stages(spec.replace(bias=spec.bias or centred), rank)
    macs, params = (call.macs, call.macs_of(chain)), (spec.params, chain_params(chain))
    if not force and (macs[1] >= macs[0] or params[1] >= params[0]):
        costs = f"{macs[1]:,} MACs for {macs[0]:,}, {params[1]:,} parameters for {params[0]:,}"
        return Kept(f"{method.name} at rank {_show(rank)} would not be cheaper: {costs}")
    return LayerPlan(spec, method.name, rank, chain, macs, dict(method.settings))


def rank_for(method: Decomposition, spec: ConvSpec, request: RankRequest) -> Rank | Kept:
    """The rank of a request, or why this layer cannot have it; UsageError where no layer can."""
    full = method.full_rank(spec)
    try:
        rank = method.rank(spec, request)
    except UsageError as error:
        if not isinstance(request, int | float) and len(request) not in (len(method.rank_names), len(full)):
            raise
        return Kept(str(error))  # ranks that other layers may well have
    if any(r > f for r, f in zip(rank, full, strict=True)):
        return Kept(f"rank {_show(rank)} is above its full rank {_show(full)}")
    return rank


def _show(rank: Sequence[int]) -> str:
    return "×".join(map(str, rank))


def select(names: Iterable[str], layers: Sequence[str], skip: Sequence[str]) -> dict[str, str]:
    """The names that the patterns leave out, with the reason; UsageError for a pattern that matches none."""
    names = list(names)
    for option, patterns in (("--layers", layers), ("--skip", skip)):
        for pattern in patterns:
            check_pattern(pattern, names, option)
    left_out = {}
    for name in names:
        if layers and not any(fnmatch.fnmatchcase(name, p) for p in layers):
            left_out[name] = "not selected"
        elif any(fnmatch.fnmatchcase(name, p) for p in skip):
            left_out[name] = "skipped on request"
    return left_out


def check_pattern(pattern: str, names: Sequence[str], where: str) -> None:
    """UsageError if a shell glob matches no layer name."""
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
        raise UsageError(
            f"{where} '{pattern}' matches no layer{nearest(pattern, names)}; `cnncompress inspect` lists them"
        )


def check_rank(rank: RankRequest) -> None:
    """UsageError for a rank that no layer can have."""
    values = [rank] if isinstance(rank, int | float) else list(rank)
    for value in values:
        good = 0 < value <= 1 if isinstance(value, float) else value >= 1
        if not good:
            raise UsageError(f"rank {value} makes no sense; give a whole number from 1 on, or a fraction in (0, 1]")


def describe_methods(spec: ConvSpec) -> dict[str, str | None]:
    """Every registered method with the reason why it cannot take this geometry (None where it can)."""
    return {name: get_method(name).refuse(spec) for name in sorted(REGISTRY)}
