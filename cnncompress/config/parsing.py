"""Values of options as they are typed or written in YAML: ranks, sizes, numbers, arguments, budgets."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from typing import Any

from cnncompress.chains.plan import Budget
from cnncompress.errors import UsageError
from cnncompress.files.home import at_home
from cnncompress.files.reading import word
from cnncompress.latency.setting import parse_runtime
from cnncompress.names.schedules import parse_schedule
from cnncompress.text import quote

GRID = {
    "macs": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9),
    "params": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9),
    "latency": (0.5, 0.6, 0.7, 0.8, 0.9),
}  # shares that are planned for where none are given
GRID_HINT = "is none of macs, macs=0.3,0.5 and macs=0.2:0.8:7 (from, to, number)"
MOST_BUDGETS = 100
BUDGET_HINT = "is not a budget such as macs=0.5, params=0.3 or latency=0.6"


def parse_rank(value: Any) -> int | float | tuple[int, ...]:
    """A rank: a whole number from 1 on, a fraction in (0, 1], or a list of whole numbers; ValueError otherwise."""
    hint = "give a whole number from 1 on (8) or a fraction of the full rank in (0, 1] (0.25)"
    if isinstance(value, list | tuple) and value:
        ranks = [parse_rank(v) for v in value]
        if all(isinstance(r, int) for r in ranks):
            return tuple(ranks)  # type: ignore[arg-type]
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value) if any(c in value for c in ".eEn") else int(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"rank {quote(value)} is not a number; {hint}")
    if (isinstance(number, float) and not 0 < number <= 1) or number <= 0:
        raise ValueError(f"rank {quote(value)} makes no sense; {hint}")
    return number


def parse_place(value: Any) -> Any:
    """A path or a name, the user's home folder in it; ValueError for a text that no system takes as one."""
    if "\0" in str(value):
        raise ValueError(f"{quote(str(value))} cannot name anything: it holds the character of code 0")
    return at_home(value)


def parse_size(value: Any) -> tuple[int, int]:
    """`224`, `"224"`, `"224x192"` or `[224, 192]` as (height, width); ValueError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).lower().split("x")
    try:
        numbers = [int(p) for p in parts]
    except (ValueError, TypeError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"{quote(str(value))} is not H or HxW in pixels, such as 224 or 224x192")
    return numbers[0], numbers[-1]


def parse_floats(value: Any) -> tuple[float, ...]:
    """`"0.5,0.5,0.5"`, one number for all channels, or a list of numbers; ValueError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        numbers = tuple(float(p) for p in parts)
    except (ValueError, TypeError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{quote(str(value))} is not one number, or one a channel separated by commas")
    return numbers


def parse_deviations(value: Any) -> tuple[float, ...]:
    """As `parse_floats`, and positive."""
    numbers = parse_floats(value)
    if min(numbers) <= 0:
        raise ValueError(f"a standard deviation is positive, unlike {quote(str(value))}")
    return numbers


def parse_arguments(value: Any) -> dict[str, Any]:
    """`["width=0.5", "pretrained=false"]`, or a mapping, as keyword arguments of plain values; ValueError otherwise.

    Values are read as YAML: numbers, true and false, null, [1, 2], and text; Python's None is null.
    """
    if not isinstance(value, dict):
        items = [value] if isinstance(value, str) else list(value)
        pairs = [str(item).partition("=") for item in items]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"'{' '.join(map(str, items))}' is not NAME=VALUE, such as width=0.5")
        value = {name.strip(): None if text == "None" else word(text) for name, _, text in pairs}
    for name, given in value.items():
        if not str(name).isidentifier():
            raise ValueError(f"'{name}' is not the name of an argument; give NAME=VALUE, such as width=0.5")
        parts = given if isinstance(given, list) else [given]
        if not all(part is None or isinstance(part, str | int | float) for part in parts):
            raise ValueError(f"{name} is to be a number, a text, true, false, null or a list of these")
    return value


def parse_budget(value: Any) -> Budget:
    """`"macs=0.5"`, several of them in a list or separated by commas, or a mapping; ValueError otherwise."""
    if isinstance(value, Budget):
        return value
    if isinstance(value, str | list | tuple):
        items = [item for text in ([value] if isinstance(value, str) else value) for item in str(text).split(",")]
        pairs = [item.partition("=") for item in items]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"'{value if isinstance(value, str) else ','.join(map(str, value))}' {BUDGET_HINT}")
        value = {name.strip(): share for name, _, share in pairs}
    names = [f.name for f in dataclasses.fields(Budget)]
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise ValueError(f"{BUDGET_HINT}; known: {', '.join(names)}")
    try:
        return Budget(**{name: float(share) for name, share in value.items() if share is not None})
    except (ValueError, TypeError):
        raise ValueError(BUDGET_HINT) from None
    except UsageError as error:
        raise ValueError(str(error)) from None


def parse_budgets(value: Any) -> tuple[Budget, ...]:
    """`macs`, `macs=0.3,0.5`, `macs=0.2:0.8:7` (from, to, number), or a list of these; ValueError otherwise.

    A cost alone is planned for at `GRID` of its shares. Every budget comes once.
    """
    texts = [value] if isinstance(value, str) else [str(text) for text in value]
    found: list[Budget] = []
    for text in texts:
        name, equals, shares = text.partition("=")
        if name not in GRID:
            raise ValueError(f"{quote(text)} {GRID_HINT}; known: {', '.join(GRID)}")
        try:
            found += [Budget(**{name: share}) for share in (_shares(shares) if equals else GRID[name])]
        except ValueError:
            raise ValueError(f"{quote(text)} {GRID_HINT}") from None
        except UsageError as error:
            raise ValueError(str(error)) from None
    return tuple(dict.fromkeys(found))


def _shares(text: str) -> list[float]:
    first, *rest = text.split(":")
    if not rest:
        return [float(part) for part in text.split(",")]
    last, number = rest
    if not 2 <= int(number) <= MOST_BUDGETS:
        raise ValueError
    step = (float(last) - float(first)) / (int(number) - 1)
    return [round(float(first) + i * step, 6) for i in range(int(number))]


def parse_runtimes(value: Any) -> list[str]:
    """`NAME` or `NAME:PRECISION` of a registered runtime, or a list of these; ValueError otherwise."""
    texts = [value] if isinstance(value, str) else list(value)
    try:
        for text in texts:
            parse_runtime(str(text))
    except UsageError as error:
        raise ValueError(str(error)) from None
    return [str(text) for text in texts]


def parse_training(value: Any) -> str:
    """A schedule of a fine-tuning; ValueError otherwise."""
    try:
        parse_schedule(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from None
    return str(value)
