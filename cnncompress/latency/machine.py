"""The machine that times are of: its processor and caches, and where times are kept on it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnncompress import processor
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.runtimes import Runtime, check_available, get_runtime
from cnncompress.latency.setting import PRECISIONS, TimingSetting
from cnncompress.network.device import resolve_device
from cnncompress.network.inputs import input_dtype
from cnncompress.network.memory_format import memory_format_of

CACHE_BYTES = 32 * 2**20  # bytes of the last cache where the system does not tell


def complete(setting: TimingSetting) -> TimingSetting:
    """The setting with the device and the number of threads that it means here.

    UsageError for one that makes no sense, CompressError where the device, the runtime or its precision is not there.
    """
    setting.check()
    check_available(setting.runtime)
    _check_precision(get_runtime(setting.runtime), setting.dtype)
    threads = setting.threads or torch.get_num_threads()
    return replace(setting, device=str(_device(setting)), threads=threads)


def _device(setting: TimingSetting) -> torch.device:
    devices = get_runtime(setting.runtime).devices
    device = resolve_device(setting.device)
    if device.type in devices:
        return device
    if setting.device != "auto":
        raise UsageError(f"the runtime {setting.runtime} runs on {', '.join(devices)}; give --device {devices[0]}")
    return torch.device(devices[0])


def of_network(setting: TimingSetting, network: nn.Module) -> TimingSetting:
    """The complete setting of a network's own times: its dtype and memory format where none were asked for.

    CompressError for a dtype that the runtime does not have.
    """
    setting = complete(setting)
    runtime = get_runtime(setting.runtime)
    own = str(input_dtype(network)).removeprefix("torch.")
    dtype = setting.dtype or own
    if dtype not in {PRECISIONS[word] for word in runtime.precisions}:
        usual = runtime.precisions[0]
        raise CompressError(
            f"the runtime {runtime.name} does not run networks in {dtype}; give --runtime {runtime.name}:{usual}"
        )
    _check_precision(runtime, dtype)
    own_format = memory_format_of(network) if runtime.memory_formats else ""
    return replace(setting, dtype=dtype, memory_format=setting.memory_format or own_format)


def _check_precision(runtime: Runtime, dtype: str) -> None:
    """CompressError where this machine does not compute in it."""
    for word in runtime.precisions:
        if PRECISIONS[word] == dtype and (reason := runtime.lacks(word)):
            raise CompressError(f"no {runtime.name}:{word} here: {reason}; give --runtime {runtime.name}:fp32")


def identity(setting: TimingSetting) -> dict[str, Any]:
    """All that a time depends on besides what is timed, as JSON-ready values."""
    setting = complete(setting)
    version = get_runtime(setting.runtime).version()
    return asdict(setting) | {"version": version, "machine": machine_name(torch.device(setting.device))}


def machine_name(device: torch.device) -> str:
    """The processor that does the work, with what torch makes use of on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor.name()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def last_cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before the device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return CACHE_BYTES


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
