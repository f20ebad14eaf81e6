"""Weights files: reading them safely, and filling a network with them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.models.factories import describe
from cnncompress.models.formats import JOIN, PART, check_format
from cnncompress.models.unpickling import open_checkpoint
from cnncompress.models.unwrapping import Picked, name_of, pick
from cnncompress.names.models import SUFFIXES

# Names in torchvision's own older files, as its densenet and vision_transformer modules translate them.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def read_weights(path: Path) -> Any:
    """What a file of weights holds, tensors on the CPU: a mapping by name, or whatever else was saved with them.

    The file is recognised by its content, and nothing in it is run. CompressError where it is missing, damaged, or
    something else than weights; `unwrapping.pick` finds those of a network.
    """
    if not path.exists():
        raise CompressError(f"no such weights file: {path}")
    if not path.is_file():
        raise CompressError(f"weights {path} {_folder(path)}")
    try:
        if check_format(path) == "safetensors":
            return load_file(path)
        return open_checkpoint(path)
    except OSError as error:
        raise CompressError(f"cannot read weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        reason = f"({describe(error)}): copy or download it again"
        raise CompressError(f"weights {path} is not a whole safetensors file {reason}") from error


def _folder(path: Path) -> str:
    """What to say of a folder that was given for a file: the file to give instead."""
    if (path / "saved_model.pb").is_file():
        return "is a TensorFlow model: load it where it was made and save its weights as a PyTorch state dict"
    if not path.is_dir():
        return "is no regular file"
    files = sorted(str(entry) for entry in path.iterdir() if entry.name.lower().endswith(SUFFIXES))
    return f"is a directory: give the file of weights in it{f', such as {files[0]}' if files else ''}"


def find_weights(content: Any, model: nn.Module, path: Path) -> Picked:
    """The weights of `model` among what `read_weights` gave; CompressError where there are none."""
    return pick(_renamed(content), model.state_dict(), path)


def _renamed(value: Any) -> Any:
    """Mappings with torchvision's old names replaced by today's."""
    if not isinstance(value, Mapping):
        return value
    names = {}
    for key in value:
        name = name_of(key)
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        names[key] = name
    return {names[key]: _renamed(part) for key, part in value.items()}


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Give `model` the tensors of `state`, in the model's dtypes; the model may be on the meta device.

    All names and shapes must agree (BatchNorm's batch counters, which older files lack, may be missing). `where`
    says in the message where the tensors come from. CompressError, with the model untouched, where they do not.
    """
    own = model.state_dict()
    state = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state}
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {_shape(state[k])}, not {_shape(v)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    both = [(k, state[k], v) for k, v in own.items() if k in state]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "without values (on the meta device)": [k for k, t, _ in both if t.is_meta],
        "complex": [f"{k} is {_kind(t)}" for k, t, _ in both if t.is_complex()],
        "quantized": [f"{k} is {_kind(t)}" for k, t, v in both if _is_coded(t, v)],
    }
    problems = [_count(what, names) for what, names in kinds.items()]
    if any(problems):
        part = f"; they are one of several files: {JOIN}" if missing and PART.search(where) else ""
        raise CompressError(f"{where} do not fit the network: {'; '.join(p for p in problems if p)}{part}")
    filled = OrderedDict((k, state[k].to(v.dtype)) for k, v in own.items())
    # Some networks translate old layouts by the version they find here, and refuse to guess one.
    filled._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(filled, assign=True)


def _count(what: str, names: list[str], first: int = 3) -> str:
    more = ", ..." if len(names) > first else ""
    return f"{len(names)} {what} ({', '.join(names[:first])}{more})" if names else ""


def _is_coded(stored: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor is stored as integers, which stand for numbers by a rule that the network does not know."""
    if stored.is_complex():
        return False
    return stored.is_quantized or (own.is_floating_point() and not stored.is_floating_point() and stored.dim() > 0)


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
