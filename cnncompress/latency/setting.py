"""What a time depends on besides the layer: the machine, the batch, threads, dtype and memory format."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cnncompress.errors import UsageError, nearest
from cnncompress.latency.clock import check_threads
from cnncompress.network.device import resolve_device
from cnncompress.network.memory_format import MEMORY_FORMATS

DTYPES = ("float32", "bfloat16", "float16", "float64")
CACHE = 32 * 2**20  # bytes of the last cache where the system does not tell


@dataclass(frozen=True)
class TimingSetting:
    """How layers are timed; `threads` None is as many as torch uses now. UsageError for settings that make no sense."""

    device: str = "cpu"
    batch: int = 1
    threads: int | None = None
    dtype: str = "float32"
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"the batch size is {self.batch}; give a whole number from 1 on")
        check_threads(self.threads)
        _check_known("dtype", self.dtype, DTYPES)
        _check_known("memory format", self.memory_format, list(MEMORY_FORMATS))

    def identity(self) -> dict[str, Any]:
        """All that a time depends on besides the layer, as JSON-ready values."""
        device = resolve_device(self.device)
        named = asdict(self) | {"device": str(device), "threads": self.threads or torch.get_num_threads()}
        return named | {"machine": machine_name(device), "torch": torch.__version__}


def _check_known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} '{value}' ({', '.join(known)}){nearest(value, known)}")


def machine_name(device: torch.device) -> str:
    """The processor that does the work, with what torch makes use of on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def last_cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before the device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return CACHE


def cache_folder() -> Path | None:
    """Where times are kept: $CNNCOMPRESS_CACHE, or cnncompress in the user's cache folder; None without a home."""
    own = os.environ.get("CNNCOMPRESS_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "cnncompress"
    except RuntimeError:  # the user has no home folder
        return None
