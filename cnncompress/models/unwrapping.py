"""The weights of a network among what people save with them: found by which tensors fit the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnncompress.errors import CompressError
from cnncompress.models.unpickling import SAVE, StandIn
from cnncompress.text import plain, quote

State = dict[str, Tensor]

MOST_LEVELS = 5  # of mappings within mappings
MOST_ITEMS = 16  # of a list that is looked into
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
COUNTERS = ("total_ops", "total_params", "n_averaged")  # what profilers and averages leave among the weights
AVERAGED = ("ema", "averag")


@dataclass(frozen=True)
class Picked:
    """The tensors of a file that fit a network best, by the network's names; and where they were, in words."""

    state: State
    told: str


@dataclass(frozen=True)
class _Candidate:
    """Tensors at one place of a file by the names that the network would give them."""

    place: str
    state: State
    prefix: str
    dropped: int
    score: tuple[int, int, int]  # tensors of the right name and shape, of the right name, and less others


def pick(content: Any, own: Mapping[str, Tensor], path: Path) -> Picked:
    """Of all mappings of tensors in what a file holds, the one that fits the tensors `own` of a network best.

    Prefixes that the network's names lack are taken off, and put before where the file's names lack them. Of two that
    fit alike it is the averaged one (EMA), as it is the one that those who save it evaluate. CompressError where none
    fits at all.
    """
    fitted = [fit(place, tensors, own) for place, tensors in _mappings(content)]
    fitted = sorted((c for c in fitted if c.score[1]), key=lambda c: (c.score, _is_averaged(c.place)), reverse=True)
    if not fitted:
        raise CompressError(f"weights {path} {_explain(content, own)}")
    best, *others = fitted
    parts = [f"its {best.place}"] if best.place else []
    if best.prefix:
        parts.append(f"without the prefix {best.prefix}")
    if best.dropped:
        parts.append(f"{best.dropped} tensors of other parts left out")
    alike = [c.place for c in others if c.score == best.score and c.place and _differs(c.state, best.state)]
    if alike:
        parts.append(f"{' and '.join(alike)} would fit as well")
    return Picked(best.state, plain(", ".join(parts)))


def _differs(state: State, other: State) -> bool:
    return any(state[name].data_ptr() != other[name].data_ptr() for name in state.keys() & other.keys())


def _is_averaged(place: str) -> bool:
    return any(word in place.lower() for word in AVERAGED)


def _mappings(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every mapping with tensors in it, with its place; mappings within it too, and all of these as one."""
    value = _as_mapping(value)
    if value is None or depth > MOST_LEVELS:
        return
    tensors = {name_of(k): t for k, v in value.items() if (t := _tensor(v)) is not None}
    if tensors:
        yield place, tensors
    inner = {name_of(k): v for k, v in value.items() if _as_mapping(v) is not None}
    for key, part in inner.items():
        yield from _mappings(part, f"{place}.{key}" if place else key, depth + 1)
    together = dict(_flat(value))
    if len(together) > len(tensors):
        yield place, together


def name_of(key: Any) -> str:
    """A key as a name; those of Python 2 are bytes."""
    return key.decode(errors="replace") if isinstance(key, bytes) else str(key)


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping, or a list as one: of names with what is theirs, or of a few things, among them such ones, by place."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(x, list | tuple) and len(x) == 2 and isinstance(x[0], str | bytes) for x in value):
        return {pair[0]: pair[1] for pair in value}
    items = enumerate(value[:MOST_ITEMS])
    return {f"item {i}": x for i, x in items if isinstance(x, Mapping | list | tuple | StandIn)} or None


def _flat(value: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    for key, part in value.items():
        if isinstance(part, Mapping) and depth < MOST_LEVELS:
            yield from ((f"{name_of(key)}.{name}", tensor) for name, tensor in _flat(part, depth + 1))
        elif (tensor := _tensor(part)) is not None:
            yield name_of(key), tensor


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
        return torch.from_numpy(np.array(value))  # a copy: contiguous, writable, and a scalar stays one
    if isinstance(value, Tensor):
        return value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    return None


def fit(place: str, tensors: State, own: Mapping[str, Tensor]) -> _Candidate:
    """Tensors under the names of a network's `own`, as far as taking off or putting on prefixes makes them fit."""
    wrappers = {word for word in WRAPPERS if not any(word in name.split(".") for name in own)}
    tensors = {k: t for k, t in tensors.items() if k in own or k.rpartition(".")[2] not in COUNTERS}
    plainer = [_without(tensors, wrappers), _without(tensors, wrappers | {"module"})]
    return max((_prefixed(place, state, own) for state in plainer), key=lambda c: c.score)


def _without(tensors: State, words: set[str]) -> State:
    """The same under names without some of their dotted words."""
    return {".".join(w for w in name.split(".") if w not in words): t for name, t in tensors.items()}


def _prefixed(place: str, tensors: State, own: Mapping[str, Tensor]) -> _Candidate:
    more = _prefixes(tensors, own)  # of the file's names
    less = _prefixes(own, tensors)  # of the network's
    prefix, count = max(more.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    lacking, other = max(less.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if other > count:
        state, prefix = {lacking + name: t for name, t in tensors.items()}, ""
    else:
        state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    names = own.keys() & state.keys()
    same = sum(state[name].shape == own[name].shape for name in names)
    return _Candidate(place, state, prefix, len(tensors) - len(state), (same, len(names), -len(state)))


def _prefixes(names: Mapping[str, Any], known: Mapping[str, Any]) -> Counter[str]:
    """How many of the `names` are one of the `known` ones after a prefix, by the prefix ("" included)."""
    prefixes: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in known:
                prefixes[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return prefixes


def _explain(content: Any, own: Mapping[str, Tensor]) -> str:
    """What to say of a file without weights of the network."""
    if objects := list(_stand_ins(content)):
        place, thing = objects[0]
        what = quote(thing.path)[1:-1]
        if thing.path.startswith(("ultralytics.", "models.yolo", "yolov")):
            return (
                f"is a YOLO file: {place or 'it'} is a whole detection network ({what}); "
                "networks with scores [images, classes] are supported, and their state dicts"
            )
        if isinstance(thing.state, Mapping) and "_modules" in thing.state:
            return f"holds a whole pickled network ({what}), which only its code can read: {SAVE}"
        return f"holds an object of {what}, not a state dict: torch.save(network.state_dict(), FILE) writes one"
    mappings = list(_mappings(content))
    if not mappings:
        return f"holds {type(content).__name__}, not a state dict of tensors by name"
    theirs, ours = next(iter(mappings[0][1])), next(iter(own), "none")
    return f"is of another network: it has tensors such as {quote(theirs)}, this network such as {quote(ours)}"


def _stand_ins(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, StandIn]]:
    """The objects in what a file holds that were stood in for: those that are networks first."""
    if isinstance(value, StandIn):
        yield place, value
    elif (values := _as_mapping(value)) is not None and depth < MOST_LEVELS:
        places = [(f"{place}.{name_of(key)}".lstrip("."), part) for key, part in values.items()]
        inner = [nested for where, part in places for nested in _stand_ins(part, where, depth + 1)]
        yield from sorted(inner, key=lambda nested: "_modules" not in (nested[1].state or ()))
