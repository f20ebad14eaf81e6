"""Statistics on disk, and the key that says what they belong to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import RunError
from cnncompress.files.publish import os_errors, replacing
from cnncompress.files.reading import check, parse_json
from cnncompress.files.regular import kind_of
from cnncompress.files.schemas import Counts
from cnncompress.files.tensorfile import digest_of
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.text import first_line

_TENSORS = tuple(f.name for f in fields(LayerStatistics) if f.name not in ("images", "rows", "independent"))


def statistics_key(model: nn.Module, data_fingerprint: str, settings: Mapping[str, Any]) -> str:
    """A hash of a network's structure and values, of its data and of the settings of `collect_statistics`."""
    layers = "\n".join(f"{name} {type(m).__name__}({m.extra_repr()})" for name, m in model.named_modules())
    structure = re.sub(r"0x[0-9a-f]+", "", layers)  # addresses differ from process to process
    values = json.dumps(dict(settings), sort_keys=True, default=repr)
    parts = [structure, data_fingerprint, values, digest_of(model.state_dict())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def save_statistics(path: str | Path, statistics: Mapping[str, LayerStatistics], key: str = "") -> None:
    """Write statistics to one safetensors file, replacing it as a whole; RunError where the system refuses."""
    tensors = {
        f"{name}:{field}": getattr(s, field).contiguous()
        for name, s in statistics.items()
        for field in _TENSORS
        if getattr(s, field) is not None
    }
    counts = {name: [s.images, s.rows, s.counted] for name, s in statistics.items()}
    with replacing(Path(path), force=True) as temporary, os_errors(f"write {path}"):
        try:
            save_file(tensors, temporary, {"key": key, "layers": json.dumps(counts)})
        except SafetensorError as error:
            raise RunError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_statistics(path: str | Path, key: str | None = None) -> dict[str, LayerStatistics] | None:
    """Read what `save_statistics` wrote; None where there is no file, or one saved with another key than `key`.

    `key` None takes any. RunError for a truncated or garbled file.
    """
    if not Path(path).exists():
        return None
    if kind := kind_of(path):
        raise RunError(f"{path} cannot be read: it is {kind}; delete it")
    loaded = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if key is not None and metadata["key"] != key:
                return None
            names = set(file.keys())
            counts = parse_json(metadata["layers"])
            check(Counts, counts)
            for name, (images, rows, *independent) in counts.items():
                tensors = {t: file.get_tensor(f"{name}:{t}") for t in _TENSORS if f"{name}:{t}" in names}
                loaded[name] = LayerStatistics(images, rows, **tensors, independent=next(iter(independent), None))
                _check_tensors(loaded[name])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{path} cannot be read: it is truncated or garbled ({first_line(error)}); delete it") from error
    return loaded


def _check_tensors(statistics: LayerStatistics) -> None:
    """ValueError for tensors of other dimensions than `LayerStatistics` says, or with NaN or infinite values."""
    dimensions = {"mean": 2, "moment": 3, "samples": 2, "gradient": 2, "sensitivity": 4}
    for name, expected in dimensions.items():
        tensor = getattr(statistics, name)
        if tensor is not None and (tensor.dim() != expected or not tensor.isfinite().all()):
            raise ValueError(f"{name} is not {expected}-dimensional and finite")
