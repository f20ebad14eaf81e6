"""Copies of networks, and what a forward pass leaves behind in one."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnncompress.chains.modules import plain_attributes
from cnncompress.errors import CompressError


def clone(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A copy that shares nothing with the original; `memo` has what takes the place of some objects, by their ids.

    Attributes that nothing can copy (locks, open files, generators) are shared; tensors that were computed with
    gradients lose their history. CompressError, naming the module, where that is not enough.
    """
    memo = memo or {}
    try:
        return _copied(model, memo)
    except Exception:  # whatever the parts of somebody else's network raise
        memo = {**_substitutes(model), **memo}
    try:
        return _copied(model, memo)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        refusing = [
            f", {name} ({type(m).__name__})," for name, m in model.named_modules() if name and not _copies(m, memo)
        ]
        where = refusing[-1] if refusing else ""  # the innermost one
        raise CompressError(f"{type(model).__name__}{where} cannot be copied: {reason}") from error


def _copied(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A deep copy, whose functions and weak references in hooks and attributes know its own modules."""
    made = dict(memo)
    copied = copy.deepcopy(model, made)
    copies = {id(module): made[id(module)] for module in model.modules() if id(module) in made}
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType):
                vars(module)[name] = _rebound(value, copies)
            elif isinstance(value, weakref.ref) and id(value()) in copies:
                vars(module)[name] = weakref.ref(copies[id(value())])
            elif isinstance(value, dict) and made.get(id(value)) is not value:  # not one that both share
                value.update({key: _rebound(f, copies) for key, f in value.items() if isinstance(f, FunctionType)})
    return copied


def _rebound(function: FunctionType, copies: Mapping[int, Any]) -> FunctionType:
    """The function itself, or one that has the copies of modules in place of those that it encloses."""
    cells = function.__closure__ or ()
    changed = tuple(_cell_of(cell, copies) for cell in cells)
    if all(new is old for new, old in zip(changed, cells, strict=True)):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, changed)
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__dict__.update(function.__dict__)
    return made


def _cell_of(cell: CellType, copies: Mapping[int, Any]) -> CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # it is empty
        return cell
    return CellType(copies[id(content)]) if id(content) in copies else cell


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        for name, value in plain_attributes(module).items():
            yield f"{prefix}.{name}" if prefix else name, value


def _parts(model: nn.Module) -> dict[int, Any]:
    return {id(part): part for part in (*model.modules(), *model.parameters(), *model.buffers())}


def _copies(value: Any, memo: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _substitutes(model: nn.Module) -> dict[int, Any]:
    """Substitutes for values in attributes that refuse to be copied, by the ids of the values."""
    parts = _parts(model)
    substitutes: dict[int, Any] = {}
    seen = set(parts)

    def visit(value: Any) -> None:
        if id(value) in seen or _copies(value, {**parts, **substitutes}):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            substitutes[id(value)] = value.detach().clone()
            return
        for part in _inside(value):
            visit(part)
        if not _copies(value, {**parts, **substitutes}):
            substitutes[id(value)] = value

    for _, value in _attributes(model):
        visit(value)
    return substitutes


def _inside(value: Any) -> list[Any]:
    """The parts that a container or an object is copied by."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") and not isinstance(value, ModuleType) else []


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Undoes at its end what happened to modes, plain attributes, buffers and the random state.

    Modules that are put in meanwhile stay, and so do changes of parameters.
    """
    kept = [_Kept(module) for module in model.modules()]
    try:
        with same_random_numbers({p.device for p in model.parameters() if p.device.type == "cuda"}):
            yield
    finally:
        for module in kept:
            module.restore()


@contextmanager
def same_random_numbers(gpus: Iterable[torch.device] = ()) -> Iterator[None]:
    """Draws inside do not change those that come after: of torch on the CPU and on `gpus`, of NumPy and of Python."""
    numbers, others = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(others)


def _differ(buffer: Tensor, before: Tensor) -> bool:
    """Whether values differ, where that can be told: batch normalisation changes its own without a new version."""
    return buffer.layout is torch.strided and not torch.equal(buffer, before)


class _Kept:
    """The state of one module that its forward pass may change."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.attributes = plain_attributes(module)
        self.contents = {k: copy.copy(v) for k, v in self.attributes.items() if type(v) in (list, dict, set)}
        self.buffers = dict(module._buffers)
        self.values = {
            name: (b._version, b.clone())
            for name, b in self.buffers.items()
            if b is not None and not b.is_meta and not b.is_inference()
        }

    def restore(self) -> None:
        module = self.module
        module.training = self.training
        for name in plain_attributes(module).keys() - self.attributes.keys():
            del vars(module)[name]
        vars(module).update(self.attributes)
        for name, content in self.contents.items():
            value = self.attributes[name]
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)
        if not isinstance(module, torch.jit.ScriptModule):  # the buffers of a script stay the ones they are
            module._buffers.update(self.buffers)
        for name, (version, before) in self.values.items():
            buffer = self.buffers[name]
            if buffer is not None and (buffer._version != version or _differ(buffer, before)):
                with torch.no_grad():
                    buffer.copy_(before)
