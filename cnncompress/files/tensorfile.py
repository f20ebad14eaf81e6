"""A state dict in one safetensors file, with what the format leaves out: shared tensors and strides."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cnncompress.errors import RunError
from cnncompress.files.reading import check, check_regular, parse_json
from cnncompress.files.schemas import Tensors
from cnncompress.files.state import plain_values
from cnncompress.text import first_line


def digest_of(state: Mapping[str, Any]) -> str:
    """The SHA-256 of the entries of a state dict: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"\0{name}".encode())
        for part in tree_leaves(value):
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                plain = plain_values(part.detach()).cpu().contiguous()
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
            else:
                digest.update(repr(part).encode())
    return digest.hexdigest()


def save_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors by name; one object under several names is stored once.

    RunError for anything that is not a tensor or that the format lacks, OSError where the system refuses.
    """
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    strides: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise RunError(f"{name} is a {type(tensor).__name__}, not a tensor; {path.name} cannot hold it")
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        if tensor.stride() != _plain(tensor.shape) and _dense(tensor.shape, tensor.stride()):
            strides[name] = list(tensor.stride())  # channels_last and the like: rounding depends on it
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        tensors[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    try:
        save_file(tensors, path, {"aliases": json.dumps(aliases), "strides": json.dumps(strides)})
    except (SafetensorError, ValueError) as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise RunError(f"cannot write {path.name}: {str(error).splitlines()[0]}") from error
    mask = os.umask(0)  # the only way to read it
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library writes files that nobody else can read


def load_tensors(path: Path, name: str = "") -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU; names that shared an object share one again.

    RunError for a missing, truncated or garbled file, which it calls `name`.
    """
    tensors: dict[str, Tensor] = {}
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            told = {key: parse_json(text) for key, text in (file.metadata() or {}).items()}
            check(Tensors, told)
            strides = told.get("strides", {})
            for key in file.keys():  # noqa: SIM118
                tensors[key] = _copy(file.get_tensor(key), strides.get(key))
        for key, other in told.get("aliases", {}).items():
            if other not in tensors:
                raise ValueError(f"{key} is {other}, which is not there")
            tensors[key] = tensors[other]
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{name or path} cannot be read: it is missing, truncated or garbled ({first_line(error)})"
        ) from error
    return tensors


def _copy(tensor: Tensor, strides: Sequence[int] | None) -> Tensor:
    """A copy in memory of torch's own: as aligned as any other tensor, and no view of the file."""
    steps = _plain(tensor.shape) if strides is None else tuple(strides)
    if len(steps) != tensor.dim() or not _dense(tensor.shape, steps):
        raise ValueError(f"strides {steps} do not fit a shape of {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), steps, dtype=tensor.dtype).copy_(tensor)


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(tuple(shape), device="meta").stride()


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True where the strides are an order of the dimensions without gaps or overlaps."""
    expected = 1
    for step, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= size
    return True
