"""The registered classes of a room: all imported, or described by its files without importing them (nor torch)."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that what they register is known; `path` is its `__path__`."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


@dataclass
class Described:
    """The attributes of a class, and the first line of its docstring."""

    values: dict[str, Any]
    line: str


def registered(room: str, attributes: Collection[str]) -> dict[str, Described]:
    """Every class under `@register` in the files of a room, by its `name`; what one does not say comes from its bases.

    What other code has registered in this process counts too.
    """
    described = {
        name: Described({key: one.values[key] for key in attributes}, one.line) for name, one in _written(room).items()
    }
    for name, cls in getattr(sys.modules.get(f"cnncompress.{room}"), "REGISTRY", {}).items():
        if name not in described:
            described[name] = Described({key: getattr(cls, key) for key in attributes}, _first_line(cls.__doc__))
    return dict(sorted(described.items()))


@cache
def _written(room: str) -> dict[str, Described]:
    """Every class under `@register` in the files of a room, with all attributes that are plain values."""
    classes = {
        node.name: node
        for path in sorted((PACKAGE / room).glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    described = {}
    for node in classes.values():
        if any(isinstance(d, ast.Name) and d.id == "register" for d in node.decorator_list):
            values = _attributes(node, classes)
            described[values["name"]] = Described(values, _first_line(ast.get_docstring(node)))
    return described


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


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
