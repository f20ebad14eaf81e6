"""Settings: flags and a YAML file become one validated set of values; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from cnncompress.chains.plan import Budget
from cnncompress.errors import UsageError, nearest
from cnncompress.files import reading
from cnncompress.files.reading import MalformedError, word
from cnncompress.names.methods import catalogue
from cnncompress.text import QUOTED, plain, quote

DEFAULT_BUDGET = Budget(macs=0.5)
BUDGET_HINT = "is not a budget such as macs=0.5, params=0.3 or latency=0.6"


def parse_rank(value: Any) -> int | float | tuple[int, ...]:
    """A rank: a whole number from 1 on, a fraction in (0, 1], or a list of whole numbers; ValueError otherwise."""
    hint = "give a whole number from 1 on (8) or a fraction of the full rank in (0, 1] (0.25)"
    if isinstance(value, list | tuple) and value:
        ranks = [parse_rank(v) for v in value]
        if all(isinstance(r, int) for r in ranks):
            return tuple(ranks)  # type: ignore[arg-type]
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value) if any(c in value for c in ".eEn") else int(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"rank {quote(value)} is not a number; {hint}")
    if (isinstance(number, float) and not 0 < number <= 1) or number <= 0:
        raise ValueError(f"rank {quote(value)} makes no sense; {hint}")
    return number


def parse_size(value: Any) -> tuple[int, int]:
    """`224`, `"224"`, `"224x192"` or `[224, 192]` as (height, width); ValueError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).lower().split("x")
    try:
        numbers = [int(p) for p in parts]
    except (ValueError, TypeError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"{quote(str(value))} is not H or HxW in pixels, such as 224 or 224x192")
    return numbers[0], numbers[-1]


def parse_floats(value: Any) -> tuple[float, ...]:
    """`"0.5,0.5,0.5"`, one number for all channels, or a list of numbers; ValueError otherwise."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        numbers = tuple(float(p) for p in parts)
    except (ValueError, TypeError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{quote(str(value))} is not one number, or one a channel separated by commas")
    return numbers


def parse_deviations(value: Any) -> tuple[float, ...]:
    """As `parse_floats`, and positive."""
    numbers = parse_floats(value)
    if min(numbers) <= 0:
        raise ValueError(f"a standard deviation is positive, unlike {quote(str(value))}")
    return numbers


def parse_arguments(value: Any) -> dict[str, Any]:
    """`["width=0.5", "pretrained=false"]`, or a mapping, as keyword arguments of plain values; ValueError otherwise.

    Values are read as YAML: numbers, true and false, null, [1, 2], and text.
    """
    if not isinstance(value, dict):
        items = [value] if isinstance(value, str) else list(value)
        pairs = [str(item).partition("=") for item in items]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"'{' '.join(map(str, items))}' is not NAME=VALUE, such as width=0.5")
        value = {name.strip(): word(text) for name, _, text in pairs}
    for name, given in value.items():
        if not str(name).isidentifier():
            raise ValueError(f"'{name}' is not the name of an argument; give NAME=VALUE, such as width=0.5")
        parts = given if isinstance(given, list) else [given]
        if not all(part is None or isinstance(part, str | int | float) for part in parts):
            raise ValueError(f"{name} is to be a number, a text, true, false, null or a list of these")
    return value


def parse_budget(value: Any) -> Budget:
    """`"macs=0.5"`, several of them in a list or separated by commas, or a mapping; ValueError otherwise."""
    if isinstance(value, Budget):
        return value
    if isinstance(value, str | list | tuple):
        items = [item for text in ([value] if isinstance(value, str) else value) for item in str(text).split(",")]
        pairs = [item.partition("=") for item in items]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"'{value if isinstance(value, str) else ','.join(map(str, value))}' {BUDGET_HINT}")
        value = {name.strip(): share for name, _, share in pairs}
    names = [f.name for f in dataclasses.fields(Budget)]
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise ValueError(f"{BUDGET_HINT}; what can be limited is {', '.join(names)}")
    try:
        return Budget(**{name: float(share) for name, share in value.items() if share is not None})
    except (ValueError, TypeError):
        raise ValueError(BUDGET_HINT) from None
    except UsageError as error:
        raise ValueError(str(error)) from None


RankField = Annotated[Any, BeforeValidator(parse_rank)]
SizeField = Annotated[tuple[int, int], BeforeValidator(parse_size)]
BudgetField = Annotated[Budget, BeforeValidator(parse_budget)]
FloatsField = Annotated[tuple[float, ...], BeforeValidator(parse_floats)]
DeviationsField = Annotated[tuple[float, ...], BeforeValidator(parse_deviations)]
ArgumentsField = Annotated[dict[str, Any], BeforeValidator(parse_arguments)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

MOST_WORKERS = 256  # processes that read images; the system gives out far more before it fails


class Settings(BaseModel):
    """Base of all sections: no unknown keys."""

    # fields may begin with "model_", which pydantic before 2.10 wants for itself
    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False, protected_namespaces=())


S = TypeVar("S", bound=Settings)


class LayerRule(Settings):
    """What the layers of one pattern become; what is not given comes from the top level."""

    method: str | None = None
    rank: RankField | None = None


class ModelSettings(Settings):
    """Which network, and how its input is prepared."""

    model: Name | None = None
    weights: Name = "DEFAULT"
    num_classes: Count | None = None
    model_arg: ArgumentsField = {}
    input_size: SizeField | None = None
    mean: FloatsField | None = None
    std: DeviationsField | None = None
    data: Name | None = None
    batch_size: Count = 64
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    trust_code: bool = False


class TuneSettings(ModelSettings):
    """Everything `cnncompress finetune` can be told; `model` is the run."""

    schedule: str = "all"
    epochs: int = 1
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    precision: str = "auto"
    checkpoint_minutes: float = 10
    out: Path | None = None
    force: bool = False
    resume: bool = False


class DecomposeSettings(ModelSettings):
    """Everything `cnncompress decompose` can be told; `resolved` fills in what depends on the rest."""

    method: str = "auto"
    rank: RankField = 0.25
    budget: BudgetField | None = None
    max_drop: Annotated[float, Field(ge=0)] | None = None
    plan: Path | None = None
    multiple: Count | None = None
    metric: str | None = None
    refine: Annotated[int, Field(ge=0)] | None = None
    correct: Literal["auto", "none", "bias", "refit"] = "auto"
    reconstruct: Annotated[int, Field(ge=0)] = 0
    latency_batch: Count = 1
    threads: Count | None = None
    memory_format: Literal["contiguous", "channels_last"] | None = None
    calibration_images: Count = 1000
    keep_statistics: bool = False
    layers: list[str] = []
    skip: list[str] = []
    per_layer: dict[str, LayerRule] = {}
    out: Path | None = None
    force: bool = False
    dry_run: bool = False
    finetune: TuneSettings = TuneSettings()
    _assumes_budget: bool = PrivateAttr(False)

    @property
    def assumes_budget(self) -> bool:
        """True where the budget is the default one, which nobody asked for."""
        return self._assumes_budget

    @property
    def searching(self) -> bool:
        """True where a budget, not a rank, decides."""
        return self.budget is not None or self.max_drop is not None

    @property
    def uses_images(self) -> bool:
        """True where calibration images are looked at, which are then not evaluated on."""
        own = self.resolved()
        return own.metric != "frobenius" or own.correct != "none" or own.reconstruct > 0

    def _says_how_much(self) -> bool:
        """Whether a rank, a budget or a plan is given, also in the options of a method or for some layers."""
        ways = (self.budget, self.max_drop, self.plan)
        if any(way is not None for way in ways) or "rank" in self.model_fields_set or self.per_layer:
            return True
        name, _, options = self.method.partition(":")
        method = catalogue().get(name)
        given = {option.partition("=")[0] for option in options.split(",")}
        return method is not None and bool(given & set(method.rank_names))

    def resolved(self) -> DecomposeSettings:
        """With a metric and a correction; UsageError for settings that exclude each other.

        With images and nothing that says how much is to be kept, the budget is `DEFAULT_BUDGET`. With a budget (or a
        plan) and images, the metric is kronecker and chains are refitted in order; otherwise the metric is frobenius
        and nothing is corrected.
        """
        if self.data is not None and not self._says_how_much():
            assumed = self.model_copy(update={"budget": DEFAULT_BUDGET})
            assumed._assumes_budget = True
            return assumed.resolved()
        ways = {"--budget": self.budget, "--max-drop": self.max_drop, "--plan": self.plan}
        given = [flag for flag, value in ways.items() if value is not None]
        if "rank" in self.model_fields_set:
            given.append("--rank")
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
        if self.max_drop is not None and self.dry_run:
            raise UsageError("--max-drop makes and measures networks to find its plan; leave out --dry-run")
        if self.multiple is not None and not self.searching:
            raise UsageError("--multiple is for budgets; give --budget or --max-drop with it")
        if self.data is None:
            for flag, needs in (("--max-drop", self.max_drop is not None), ("--reconstruct", self.reconstruct > 0)):
                if needs:
                    raise UsageError(f"{flag} needs images; give --data FOLDER, cifar10:ROOT or digits")
            if self.correct in ("bias", "refit"):
                raise UsageError(f"--correct {self.correct} needs images; give --data FOLDER, cifar10:ROOT or digits")
        guided = (self.searching or self.plan is not None) and self.data is not None
        metric = self.metric or ("kronecker" if guided else "frobenius")
        correct = self.correct if self.correct != "auto" else "refit" if guided else "none"
        return self.model_copy(update={"metric": metric, "correct": correct})


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
    key = plain(".".join(str(part) for part in first["loc"]))[:QUOTED]
    at = f"{where}: {key}" if where else f"--{key.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:QUOTED]
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
