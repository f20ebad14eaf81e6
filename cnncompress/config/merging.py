"""Flags and a YAML file become one validated set of settings; errors name the first wrong key, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnncompress.config.settings import DecomposeSettings, LayerRule, S, Settings, TuneSettings
from cnncompress.errors import UsageError, nearest
from cnncompress.files import reading
from cnncompress.files.reading import MalformedError
from cnncompress.text import QUOTED_CHARACTERS, plain, quote


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UsageError in one line for anything else."""
    try:
        values = reading.read_yaml(path)
    except OSError as error:
        raise UsageError(f"cannot read the config {path}: {error.strerror}") from None
    except MalformedError as error:
        raise UsageError(f"{path} {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}, not a mapping of settings")
    return {str(k): v for k, v in values.items()}


def validate(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Settings of class `cls` from plain values; UsageError names the first wrong key, in one line.

    `where` is the file (and section) that the values are from; without it they are options of the command line.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_explain(cls, error.errors()[0], where)) from None


def _explain(cls: type[Settings], first: Any, where: str) -> str:
    key = plain(".".join(str(part) for part in first["loc"]))[:QUOTED_CHARACTERS]
    at = f"{where}: {key}" if where else f"--{key.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:QUOTED_CHARACTERS]
        sections: dict[Any, type[Settings]] = {"per_layer": LayerRule, "finetune": TuneSettings}
        fields = (sections[first["loc"][0]] if len(first["loc"]) > 1 else cls).model_fields
        if key in TuneSettings.model_fields and cls is DecomposeSettings:
            return f"{where}: '{key}' belongs in the section `finetune:`"
        return f"{where}: unknown key '{key}'{nearest(name, fields) or '; known: ' + ', '.join(fields)}"
    if first["type"] == "value_error":
        return f"{at}: {first['ctx']['error']}"
    message = str(first["msg"]).removeprefix("Input ").partition(" or instance of")[0]
    return f"{at}: {quote(first['input'])} {message}"


def _check_consent(config: Path, values: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """UsageError where only the file, and no person, says that code is to be run."""
    if any("trust_code" in section for section in (values, values.get("finetune", {}))):
        raise UsageError(f"{config}: trust_code is not for files; give --trust-code on the command line")
    model = values.get("model") or "" if flags.get("model") is None else ""
    if ":" in model and not model.startswith("timm:") and not flags.get("trust_code"):
        raise UsageError(f"{config} has the code of {plain(model)} run: give --trust-code, or MODEL beside --config")


INHERITED = ("data", "workers", "device", "seed")  # top-level keys that a section takes over


def merge(cls: type[Settings], config: Path | None, flags: Mapping[str, Any], section: str | None = None) -> Any:
    """Settings from a YAML file (or one section of it) and the flags that were given (not None); flags win.

    A section inherits `data`, `workers`, `device` and `seed` from the top level of the file.
    """
    values: dict[str, Any] = {}
    if config is not None:
        whole = validate(DecomposeSettings, read_yaml(config), str(config))
        values = whole.model_dump(exclude_unset=True)
        _check_consent(config, values, flags)
        if section:
            values = {k: v for k, v in values.items() if k in INHERITED} | values.get(section, {})
        validate(cls, values, f"{config}: {section}" if section else str(config))
    given = {k: v for k, v in flags.items() if v is not None and v != ()}
    return validate(cls, {**values, **given})
