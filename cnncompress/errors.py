"""Errors a user can cause. Each message is one line: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from cnncompress.text import plain

P = ParamSpec("P")
R = TypeVar("R")

_PLACE = "while in "  # how a note begins that says where an exception arose
_KILLED = ("is killed by signal: killed", "insufficient shared memory")  # what becomes of a process that reads images
_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "failed to allocate", *_KILLED)


class CompressError(Exception):
    """Something that could not be done; the command line prints it as one line and exits with 1.

    Whatever file a part of the message is from, it is one line without characters that a terminal obeys.
    """

    def __str__(self) -> str:
        return plain(super().__str__())


class UsageError(CompressError):
    """A request that makes no sense (unknown name, rank out of range); exit code 2."""


class UnreachableError(UsageError):
    """A budget that no plan meets; `shares` are the smallest that can be had, by name, each alone.

    Those of `beside` are the smallest with all other shares within the budget, where there are any.
    """

    def __init__(self, message: str, shares: Mapping[str, float], beside: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.shares, self.beside = dict(shares), dict(beside or {})


class UnsupportedLayerError(CompressError):
    """A layer, or a chain of stages, that cannot be expressed without changing its meaning."""


class NoGradientError(CompressError):
    """No gradient of a network's answers reaches its layers, so that a metric or a step that needs it says nothing."""


class DataError(CompressError):
    """Images or labels that cannot be used with the network."""


class RunError(CompressError):
    """A run directory that is missing, truncated, of a newer version, or already there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""


def unknown(what: str, name: str, known: Iterable[str], also: Iterable[str] = ()) -> UsageError:
    """For a name that is none of those `known`: it lists them, after what else is understood, with the nearest."""
    known = list(known)
    return UsageError(f"unknown {what} '{name}' (known: {', '.join([*also, *known])}){nearest(name, known)}")


@contextmanager
def during(what: str) -> Iterator[None]:
    """Have an exception that leaves the block know `what` was being done; see `place`."""
    try:
        yield
    except Exception as error:
        error.add_note(_PLACE + what)
        raise


def in_layer(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Have the exceptions of a function of a layer's name and more know the layer."""

    @wraps(function)
    def named(name: str, *args: P.args, **kwargs: P.kwargs) -> R:
        with during(f"layer {name}"):
            return function(name, *args, **kwargs)

    return named


def place(error: BaseException) -> list[str]:
    """The steps during which an exception arose, outermost first, as `during` noted them."""
    notes = [note.removeprefix(_PLACE) for note in getattr(error, "__notes__", ()) if note.startswith(_PLACE)]
    return list(dict.fromkeys(reversed(notes)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the system, or a GPU, has no more memory to give."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY)
