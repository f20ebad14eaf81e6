"""Settings: flags and a YAML file become one validated set of values; unknown keys are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cnncompress.errors import UsageError, nearest


def parse_rank(value: Any) -> int | float | tuple[int, ...]:
    """A rank: a whole number from 1 on, a fraction in (0, 1], or a list of whole numbers; UsageError otherwise."""
    hint = "give a whole number from 1 on (8) or a fraction of the full rank in (0, 1] (0.25)"
    if isinstance(value, list | tuple) and value:
        ranks = [parse_rank(v) for v in value]
        if all(isinstance(r, int) for r in ranks):
            return tuple(ranks)  # type: ignore[arg-type]
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise UsageError(f"rank '{value}' is not a number; {hint}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"rank {value!r} is not a number; {hint}")
    if isinstance(value, float) and not (math.isfinite(value) and 0 < value <= 1):
        raise UsageError(f"rank {value} makes no sense; {hint}")
    if isinstance(value, int) and value < 1:
        raise UsageError(f"rank {value} makes no sense; {hint}")
    return value


def parse_size(value: Any) -> tuple[int, int]:
    """`224`, `"224"`, `"224x192"` or `[224, 192]` as (height, width); UsageError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).lower().split("x")
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise UsageError(f"input size '{value}' is not H or HxW in pixels, such as 224 or 224x192")
    return numbers[0], numbers[-1]


def parse_floats(value: Any) -> tuple[float, ...]:
    """`"0.5,0.5,0.5"`, one number, or a list of numbers as a tuple; UsageError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        numbers = tuple(float(p) for p in parts)
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"'{value}' is not one number, or three separated by commas")
    return numbers * 3 if len(numbers) == 1 else numbers


RankField = Annotated[Any, BeforeValidator(parse_rank)]
SizeField = Annotated[tuple[int, int], BeforeValidator(parse_size)]
FloatsField = Annotated[tuple[float, ...], BeforeValidator(parse_floats)]


class Settings(BaseModel):
    """Base of all sections: no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=False)


S = TypeVar("S", bound=Settings)


class LayerRule(Settings):
    """What the layers of one pattern become; what is not given comes from the top level."""

    method: str | None = None
    rank: RankField | None = None


class ModelSettings(Settings):
    """Which network, and how its input is prepared."""

    model: str | None = None
    weights: str = "DEFAULT"
    num_classes: int | None = None
    input_size: SizeField | None = None
    mean: FloatsField | None = None
    std: FloatsField | None = None
    data: str | None = None
    batch_size: int = 64
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


class DecomposeSettings(ModelSettings):
    """Everything `cnncompress decompose` can be told."""

    method: str = "auto"
    rank: RankField = 0.25
    metric: str = "frobenius"
    layers: list[str] = []
    skip: list[str] = []
    per_layer: dict[str, LayerRule] = {}
    out: Path | None = None
    force: bool = False
    dry_run: bool = False
    finetune: dict[str, Any] = {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UsageError in one line for anything else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}, not a mapping of settings")
    return {str(k): v for k, v in values.items()}


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """Settings of class `cls` from plain values; UsageError names the first wrong key, in one line."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = LayerRule.model_fields if first["loc"][0] == "per_layer" else cls.model_fields
            hint = nearest(str(first["loc"][-1]), fields)
            raise UsageError(f"{where}: unknown key '{key}'{hint or '; known: ' + ', '.join(fields)}") from None
        raise UsageError(f"{where}: {key}: {first['msg']}, not {first['input']!r}") from None


def merge(cls: type[Settings], config: Path | None, flags: Mapping[str, Any], section: str | None = None) -> Any:
    """Settings from a YAML file (or one section of it) and the flags that were given (not None); flags win."""
    values: dict[str, Any] = {}
    if config is not None:
        whole = validate(DecomposeSettings, read_yaml(config), str(config))
        values = whole.finetune if section else whole.model_dump(exclude_unset=True)
        validate(cls, values, f"{config}{': ' + section if section else ''}")
    given = {k: v for k, v in flags.items() if v is not None and v != ()}
    return validate(cls, {**values, **given}, "options")
