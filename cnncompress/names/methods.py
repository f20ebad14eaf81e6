"""The registered decompositions as their files describe them, read without importing torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnncompress.errors import UsageError, nearest

FOLDER = Path(__file__).parents[1] / "decompositions"


@dataclass
class Entry:
    """What a decomposition is called, its ranks, its options with their defaults, its chain in words, its source."""

    name: str = ""
    source: str = ""
    rank_names: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    chain: str = ""


def catalogue() -> dict[str, Entry]:
    """Every class under `@register` by its name; what a class does not say comes from its first base."""
    classes = {
        node.name: node
        for path in sorted(FOLDER.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    entries = {}
    for node in classes.values():
        if any(isinstance(d, ast.Name) and d.id == "register" for d in node.decorator_list):
            values = _attributes(node, classes)
            described = {name: values[name] for name in ("name", "source", "rank_names", "options")}
            entry = Entry(**described, chain=(ast.get_docstring(node) or "").partition("\n")[0])
            entries[entry.name] = entry
    return dict(sorted(entries.items()))


def check_method(name: str) -> None:
    """UsageError for a method that is not registered."""
    known = catalogue()
    if name not in {"auto", *known}:
        raise UsageError(f"unknown method '{name}' (known: auto, {', '.join(known)}){nearest(name, known)}")


def _attributes(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """The class attributes that are written as plain values, with those of the bases."""
    values: dict[str, Any] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes:
            values |= _attributes(classes[base.id], classes)
    for statement in node.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if targets and statement.value is not None:  # type: ignore[attr-defined]
            values |= _assigned(targets[0], statement.value)  # type: ignore[attr-defined]
    return values


def _assigned(target: ast.expr, value: ast.expr) -> dict[str, Any]:
    """`a = 1` and `a, b = 1, 2` as values by name; nothing for what is computed."""
    try:
        plain = ast.literal_eval(value)
    except ValueError:
        return {}
    if isinstance(target, ast.Tuple):
        return {name.id: one for name, one in zip(target.elts, plain, strict=True) if isinstance(name, ast.Name)}
    return {target.id: plain} if isinstance(target, ast.Name) else {}
