"""Milliseconds with their setting as JSON-ready values, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency

TIME_KEYS = ("median", "p10", "p90")
SETTING_KEYS = ("batch", "threads", "device", "dtype")
LATER_SETTING: dict[str, Any] = {"memory_format": "unknown memory format", "runtime": "torch"}


def latency_to_json(latency: Latency) -> dict[str, Any]:
    """A latency as JSON-ready values."""
    setting = pick(latency.setting, (*SETTING_KEYS, *LATER_SETTING))
    return pick(latency, TIME_KEYS) | setting | {"original": latency.original}


def latency_from_json(values: Mapping[str, Any]) -> Latency:
    """The latency of checked values."""
    setting = TimingSetting(**read_keys(values, SETTING_KEYS, LATER_SETTING))
    median, p10, p90 = (values[key] for key in TIME_KEYS)
    return Latency(median, p10, p90, setting, values.get("original"))


def pick(value: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Some attributes of a value; tuples become lists."""
    picked = {key: getattr(value, key) for key in keys}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in picked.items()}


def read_keys(values: Mapping[str, Any], keys: Iterable[str], later: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `keys`, and of `later` keys those that are there, else the values that stand for them."""
    return {key: values[key] for key in keys} | {key: values.get(key, default) for key, default in later.items()}
