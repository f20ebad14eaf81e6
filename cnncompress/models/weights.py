"""Weights files: reading them safely, and filling a network with them."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.models.sources import describe
from cnncompress.names import SUFFIXES

State = dict[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# Names in torchvision's own older files, as its densenet and vision_transformer modules translate them.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def is_path(weights: str) -> bool:
    """Whether a `--weights` value means a file rather than a name."""
    return "/" in weights or "\\" in weights or weights.lower().endswith(SUFFIXES) or Path(weights).exists()


def read_weights(path: Path) -> State:
    """The tensors of a `.safetensors` file or of a PyTorch file, on the CPU, by name.

    A PyTorch file is read without running any code in it (`weights_only=True`). Wrappers (`state_dict`, `model`) and
    prefixes (`module.`) are taken off. CompressError where the file is missing, damaged or holds no weights.
    """
    if not path.exists():
        raise CompressError(f"no such weights file: {path}")
    if not path.is_file():
        raise CompressError(f"weights {path} is a directory: give the .safetensors or .pth file in it")
    state: Any
    try:
        path.open("rb").close()
    except OSError as error:
        raise CompressError(f"cannot read weights {path}: {error.strerror}") from error
    try:
        if path.suffix.lower() == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols: what follows says more
                state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CompressError(f"weights {path} is not a whole safetensors file: {describe(error)}") from error
    except Exception as error:  # the unpickler raises whatever the bytes lead it to, and advises to run their code
        raise CompressError(
            f"weights {path} is no whole file of weights alone: it is truncated, or holds more than tensors"
        ) from error
    return _unwrap(state, path)


def _unwrap(state: Any, path: Path) -> State:
    while isinstance(state, Mapping):
        inner = next((state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise CompressError(f"weights {path} holds {type(state).__name__}, not a state dict of tensors by name")
    if odd := [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]:
        raise CompressError(
            f"weights {path} is not a state dict: {odd[0]!r} is {type(state[odd[0]]).__name__}, not a tensor"
        )
    tensors = dict(state)
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    for pattern, replacement in _RENAMED:
        tensors = {pattern.sub(replacement, k): v for k, v in tensors.items()}
    return tensors


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
    problems = [_count("missing", missing), _count("unexpected", unexpected), _count("of another shape", shapes)]
    if any(problems):
        raise CompressError(f"{where} do not fit the network: {'; '.join(p for p in problems if p)}")
    filled = OrderedDict((k, state[k].to(v.dtype)) for k, v in own.items())
    # Some networks translate old layouts by the version they find here, and refuse to guess one.
    filled._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(filled, assign=True)


def _count(what: str, names: list[str], first: int = 3) -> str:
    more = ", ..." if len(names) > first else ""
    return f"{len(names)} {what} ({', '.join(names[:first])}{more})" if names else ""


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
