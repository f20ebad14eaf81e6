"""The options of methods: read from `NAME:k=v,...`, checked against what is possible, written as text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnncompress.decompositions.base import Decomposition
from cnncompress.errors import UsageError, nearest


def parse_options(cls: type[Decomposition], text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read `k=v,...` of `--method NAME:k=v,...` into (options, ranks by component); UsageError for anything else."""
    options: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    known = [*cls.options, *cls.rank_names]
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            listed = ", ".join(known)
            raise UsageError(f"method {cls.name} has no option '{key}' (it has: {listed}){nearest(key, known)}")
        default = cls.options.get(key, 0)
        try:
            parsed = type(default)(value)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UsageError(f"option {key} of method {cls.name} takes {kind}, not '{value}'") from None
        if key in cls.rank_names:
            if parsed < 1:
                raise UsageError(f"option {key} of method {cls.name} is a rank, at least 1, not {value}")
            ranks[key] = parsed
        else:
            options[key] = parsed
    return options, ranks


def one_of(method: Decomposition, **choices: Sequence[str]) -> None:
    """UsageError where an option is none of its choices."""
    for option, possible in choices.items():
        value = method.settings[option]
        if value not in possible:
            listed = ", ".join(possible)
            raise UsageError(
                f"option {option} of method {method.name} is one of {listed}, not '{value}'{nearest(value, possible)}"
            )


def as_text(method: Decomposition) -> str:
    """`NAME:k=v,...` with the options that are not the default ones."""
    changed = [f"{k}={v}" for k, v in method.settings.items() if v != method.options[k]]
    return f"{method.name}:{','.join(changed)}" if changed else method.name
