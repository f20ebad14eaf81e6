"""One class of settings a command; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from cnncompress.chains.plan import Budget
from cnncompress.config.parsing import (
    parse_arguments,
    parse_budget,
    parse_budgets,
    parse_deviations,
    parse_floats,
    parse_place,
    parse_rank,
    parse_runtimes,
    parse_size,
    parse_training,
)
from cnncompress.errors import UsageError
from cnncompress.latency.setting import TimingSetting, in_runtimes
from cnncompress.names import metrics
from cnncompress.names.methods import SELECT, catalogue

DEFAULT_BUDGET = Budget(macs=0.5)

RankField = Annotated[Any, BeforeValidator(parse_rank)]
SizeField = Annotated[tuple[int, int], BeforeValidator(parse_size)]
BudgetField = Annotated[Budget, BeforeValidator(parse_budget)]
BudgetsField = Annotated[tuple[Budget, ...], BeforeValidator(parse_budgets)]
FloatsField = Annotated[tuple[float, ...], BeforeValidator(parse_floats)]
DeviationsField = Annotated[tuple[float, ...], BeforeValidator(parse_deviations)]
RuntimesField = Annotated[list[str], BeforeValidator(parse_runtimes)]
ArgumentsField = Annotated[dict[str, Any], BeforeValidator(parse_arguments)]
ScheduleField = Annotated[str, BeforeValidator(parse_training)]
Name = Annotated[str, Field(min_length=1), BeforeValidator(parse_place)]
Place = Annotated[Path, BeforeValidator(parse_place)]
Count = Annotated[int, Field(ge=1)]

MOST_WORKERS = 256  # processes that read images; the system gives out far more before it fails


class Settings(BaseModel):
    """Base of all sections: no unknown keys."""

    # fields may begin with "model_", which pydantic before 2.10 wants for itself
    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False, protected_namespaces=())


S = TypeVar("S", bound=Settings)


class LayerRule(Settings):
    """Method and rank of the layers of one pattern; the top level gives the one that is missing."""

    method: str | None = None
    rank: RankField | None = None


class ModelSettings(Settings):
    """The network, and how its input is prepared."""

    model: Name | None = None
    weights: Name = "DEFAULT"
    num_classes: Count | None = None
    model_arg: ArgumentsField = {}
    input_size: SizeField | None = None
    mean: FloatsField | None = None
    std: DeviationsField | None = None
    data: Name | None = None
    batch_size: Count | None = None
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    trust_code: bool = False


class TuneSettings(ModelSettings):
    """Everything `cnncompress finetune` can be told; `model` is the run."""

    batch_size: Count = 64
    schedule: ScheduleField = "all"
    until_drop: float | None = None
    calibration_images: Count = 1000
    cache_gib: float = 2.0
    compile: bool = False
    epochs: int = 1
    images_per_epoch: int | None = None
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    precision: str = "auto"
    checkpoint_minutes: float = 10
    distill: str = "none"
    temperature: float | None = None
    teacher_share: float | None = None
    attention_weight: float | None = None
    unlabelled: bool = False
    freeze_bn: bool | None = None
    lr_rest: float = 1.0
    ema: float = 0.0
    accumulate: Count = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip_norm: float | None = None
    augment: str = "standard"
    out: Place | None = None
    force: bool = False
    resume: bool = False


class DecomposeSettings(ModelSettings):
    """Everything `cnncompress decompose` can be told; `resolved` fills in what depends on the rest."""

    method: str = "auto"
    rank: RankField = 0.25
    budget: BudgetField | None = None
    max_drop: Annotated[float, Field(ge=0)] | None = None
    plan: Place | None = None
    multiple: Count | None = None
    metric: str | None = None
    refine: Annotated[int, Field(ge=0)] | None = None
    correct: Literal["auto", "none", "bias", "refit"] = "auto"
    init: Literal["fit", "scratch"] = "fit"
    reconstruct: Annotated[int, Field(ge=0)] = 0
    runtime: RuntimesField = []
    allow_slower: bool = False
    latency_table: Place | None = None
    latency_batch: Count = 1
    threads: Count | None = None
    memory_format: Literal["contiguous", "channels_last"] | None = None
    calibration_images: Count = 1000
    keep_statistics: bool = False
    statistics: Place | None = None
    layers: list[str] = []
    skip: list[str] = []
    per_layer: dict[str, LayerRule] = {}
    out: Place | None = None
    force: bool = False
    dry_run: bool = False
    finetune: TuneSettings = TuneSettings()
    _assumes_budget: bool = PrivateAttr(False)
    _assumes_metric: bool = PrivateAttr(False)

    @property
    def assumes_budget(self) -> bool:
        """True where the budget is the default one, which nobody asked for."""
        return self._assumes_budget

    @property
    def assumes_metric(self) -> bool:
        """True where the metric is the default one, which nobody asked for."""
        return self._assumes_metric

    @property
    def timings(self) -> tuple[TimingSetting, ...]:
        """How networks are timed: in each runtime, the first of which a budget of latency plans for."""
        setting = TimingSetting(device=self.device, batch=self.latency_batch, threads=self.threads)
        return in_runtimes(setting, self.runtime)

    @property
    def searching(self) -> bool:
        """True where a budget, not a rank, decides."""
        return self.budget is not None or self.max_drop is not None

    def _says_how_much(self) -> bool:
        """Whether a rank, a budget or a plan is given, also in the options of a method or for some layers."""
        ways = (self.budget, self.max_drop, self.plan)
        if any(way is not None for way in ways) or "rank" in self.model_fields_set or self.per_layer:
            return True
        name, _, options = self.method.partition(":")
        method = catalogue().get(name)
        given = {option.partition("=")[0] for option in options.split(",")}
        return method is not None and bool(given & {*method.rank_names, *method.sizing})

    def _from_scratch(self) -> DecomposeSettings:
        """With nothing that looks at errors, of which random kernels have none to speak of."""
        given = {
            "--budget": self.budget is not None,
            "--max-drop": self.max_drop is not None,
            f"--correct {self.correct}": self.correct in ("bias", "refit"),
            "--reconstruct": self.reconstruct > 0,
            "--refine": self.refine is not None,
            "--metric": self.metric not in (None, metrics.DEFAULT),
        }
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise UsageError(
                f"--init scratch has random kernels, so there is no error for {flag}; leave one of them out"
            )
        return self.model_copy(update={"metric": metrics.DEFAULT, "correct": "none"})

    def resolved(self) -> DecomposeSettings:
        """With a metric and a correction; UsageError for settings that exclude each other.

        With images and nothing that says how much is to be kept, the budget is `DEFAULT_BUDGET`. With images and a
        budget, a plan or the method select, the metric is `GUIDED` and outputs are corrected in order; otherwise the
        metric is `DEFAULT` and nothing is corrected.
        """
        if self.init == "scratch":
            return self._from_scratch()
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
        if self.latency_table is not None and not self.searching:
            raise UsageError("--latency-table is for budgets; give --budget or --max-drop with it")
        if self.multiple is not None and not self.searching:
            raise UsageError("--multiple is for budgets; give --budget or --max-drop with it")
        if self.data is None:
            for flag, needs in (("--max-drop", self.max_drop is not None), ("--reconstruct", self.reconstruct > 0)):
                if needs:
                    raise UsageError(f"{flag} needs images; give --data FOLDER, cifar10:ROOT or digits")
            if self.correct in ("bias", "refit"):
                raise UsageError(f"--correct {self.correct} needs images; give --data FOLDER, cifar10:ROOT or digits")
        selects = SELECT in self.method.split("+") or any(r.method == SELECT for r in self.per_layer.values())
        guided = (self.searching or self.plan is not None or selects) and self.data is not None
        metric = self.metric or (metrics.GUIDED if guided else metrics.DEFAULT)
        correct = self.correct if self.correct != "auto" else "refit" if guided else "none"
        settings = self.model_copy(update={"metric": metric, "correct": correct})
        settings._assumes_metric = self._assumes_metric or self.metric is None
        return settings


class ExploreSettings(DecomposeSettings):
    """Everything `cnncompress explore` can be told; `out` is the folder of what is found."""

    budgets: BudgetsField = parse_budgets("macs")
    measure: Annotated[int, Field(ge=0)] = 4

    def resolved(self) -> DecomposeSettings:
        """With a budget, one of latency where there is any, so that its times are at hand for all of them."""
        by_latency = [budget for budget in self.budgets if budget.latency is not None]
        one = next(iter(by_latency or self.budgets))
        return DecomposeSettings.resolved(self.model_copy(update={"budget": one, "allow_slower": True}))
