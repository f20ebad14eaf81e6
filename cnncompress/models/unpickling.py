"""PyTorch's files of weights, opened without running anything that they name: what is no tensor becomes a stand-in."""

from __future__ import annotations

import codecs
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnncompress.errors import CompressError
from cnncompress.text import plain, quote

MOST_NAMES = 1000  # of classes and functions in one file
_NOT_ALLOWED = re.compile(r"GLOBAL ([\w.<>]+) was not an allowed global")
SAVE = "load it where that is, and torch.save(network.state_dict(), FILE)"
_WITH_CODE = "Only persistent_load of storage is allowed"  # the old format keeps a network's source beside it
_CALLED = re.compile(r"reduce for unrecognized function <stand_in\.(\w+)")
_REFUSED = re.compile(r"WeightsUnpickler error:\s*(\S[^\n]*)")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")


class StandIn:
    """Takes the place of an object of a class, or of a function's result, that a file names by `path`; does nothing."""

    path = ""
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything and keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep what the object held: plain values and other stand-ins."""
        self.state = state


class _MappingStandIn(StandIn):
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _ListStandIn(StandIn):
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def open_checkpoint(path: Path) -> Any:
    """What `torch.save` or `pickle` wrote to a file, tensors on the CPU, other objects as stand-ins.

    CompressError where the file is damaged, or names what no file of weights needs.
    """
    known = {name for _, name in _numpy_names()}
    kinds: dict[str, type] = {name: StandIn for name in _unknown_names(path) if name not in known}
    while len(kinds) <= MOST_NAMES:
        stand_ins = {name: _make(kind, name) for name, kind in kinds.items()}
        try:
            return _load(path, stand_ins)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the unpickler raises whatever the bytes lead it to
            if not _learn(str(error), kinds, stand_ins):
                raise CompressError(_explain(path, error)) from error
    raise CompressError(f"weights {path} names more than {MOST_NAMES} classes and functions: it is no file of weights")


def _unknown_names(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:
        return []


def _make(kind: type, name: str) -> type:
    return type(name.rpartition(".")[2], (kind,), {"path": name, "__module__": "stand_in"})


def _load(path: Path, stand_ins: dict[str, type]) -> Any:
    allowed: list[Any] = [*_numpy_names(), *((made, name) for name, made in stand_ins.items())]
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")  # about pickle protocols: what follows says more
        with path.open("rb") as file:  # of a path, torch would believe the suffix
            return torch.load(file, map_location="cpu", weights_only=True)


def _numpy_names() -> list[tuple[Any, str]]:
    """The functions that rebuild arrays and scalars of numpy; they run no code."""
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]  # their home differs by version
    names: list[tuple[Any, str]] = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    for room in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(array, f"{room}._reconstruct"), (scalar, f"{room}.scalar")]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdUSO"}
    names += [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds]
    return [*names, (codecs.encode, "_codecs.encode")]


def _learn(message: str, kinds: dict[str, type], stand_ins: dict[str, type]) -> bool:
    """Whether an error says what else has to be stood in for, or by what; `kinds` then have it."""
    if refused := _NOT_ALLOWED.search(message):
        name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
        return name not in kinds and kinds.setdefault(name, StandIn) is StandIn
    better = {"Can only SETITEM": _MappingStandIn, "Can only append": _ListStandIn, "Can only extend": _ListStandIn}
    for words, kind in better.items():
        name = next((n for n, made in stand_ins.items() if repr(made) in message), None)
        if words in message and name is not None and kinds[name] is StandIn:
            kinds[name] = kind
            return True
    return False


def _explain(path: Path, error: Exception) -> str:
    if blocked := _BLOCKED.search(str(error)):
        return f"weights {path} names {quote(blocked[1])}, which no file of weights needs: it was not opened"
    if _WITH_CODE in str(error):
        return f"weights {path} holds a whole pickled network, which only its code can read: {SAVE}"
    if called := _CALLED.search(str(error)):
        return f"weights {path} calls what {called[1]} gives, which no file of weights needs: it was not opened"
    if "Unsupported operand" in str(error):
        return f"weights {path} is a pickle that torch.save did not write: {SAVE}"
    if refused := _REFUSED.search(str(error)):
        return f"weights {path} holds what cannot be opened safely ({plain(refused[1])}): {SAVE}"
    return f"weights {path} is damaged or truncated: copy or download it again"
