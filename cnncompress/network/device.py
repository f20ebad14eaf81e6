"""The device to run on."""

from __future__ import annotations

import torch

from cnncompress.errors import CompressError, UsageError


def resolve_device(name: str | torch.device) -> torch.device:
    """The device for `auto` (the GPU where there is one), `cpu` or `cuda`.

    Raises UsageError for another name, CompressError for `cuda` where PyTorch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; give auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported; give auto, cpu or cuda")
    if device.type == "cuda" and not available:
        raise CompressError(f"device '{name}' asked for, but PyTorch sees no CUDA GPU; give --device cpu")
    return device
