"""A job as small values. The settings of the command line become these; nothing below knows settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cnncompress.chains.plan import Budget
from cnncompress.chains.spec import Pair
from cnncompress.latency.setting import TimingSetting
from cnncompress.metrics import get_metric
from cnncompress.names.metrics import DEFAULT
from cnncompress.network.parts import images_at_once
from cnncompress.planning import Choice, RankRequest

READING = 64  # images


@dataclass(frozen=True)
class NetworkAsked:
    """A network by `name`, which may be a run, and what is told of it and of its input; None where nothing is."""

    name: str | None = None
    weights: str = "DEFAULT"
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_size: Pair | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    trust_code: bool = False


@dataclass(frozen=True)
class ImagesAsked:
    """A data set by its `spec`, None for none, and how its images are read and go through a network.

    Without a `batch_size`, they are read 64 at a time, and evaluated so many at a time as the device is fast with.
    """

    spec: str | None = None
    batch_size: int | None = None
    workers: int = 0
    device: str = "auto"

    @property
    def reading(self) -> int:
        """Images that are read at a time."""
        return self.batch_size or READING

    def evaluating(self, pixels: int, device: torch.device) -> int:
        """Images of so many pixels that are evaluated at a time."""
        return self.batch_size or min(READING, images_at_once(pixels, device))


@dataclass(frozen=True)
class Aim:
    """The aim of a job: a budget, a largest loss of accuracy, or a plan in a file.

    None of them leaves it to ranks. `assumed` marks a budget that nobody asked for. With `allow_slower` a budget that
    leaves time out may make the network slower.
    """

    budget: Budget | None = None
    max_drop: float | None = None
    plan: Path | None = None
    assumed: bool = False
    allow_slower: bool = False

    @property
    def searching(self) -> bool:
        """True where a budget, not a rank, decides."""
        return self.budget is not None or self.max_drop is not None

    @property
    def by_latency(self) -> bool:
        """True for a budget of latency."""
        return self.budget is not None and self.budget.latency is not None

    @property
    def guarded(self) -> bool:
        """True where no plan may be slower than the original, though no budget says so."""
        return self.searching and not self.by_latency and not self.allow_slower


@dataclass(frozen=True)
class LayersAsked:
    """The methods and ranks asked for: one for all layers, others by pattern, and the layers to leave alone.

    `ranked` is True where the rank was given and is not the default.
    """

    method: str = "auto"
    rank: RankRequest = 0.25
    per_layer: Mapping[str, Choice] = field(default_factory=dict)
    layers: Sequence[str] = ()
    skip: Sequence[str] = ()
    multiple: int | None = None
    ranked: bool = False

    def rules(self, seed: int) -> tuple[Choice, dict[str, Choice]]:
        """The choice for all layers and those by pattern; methods that draw random numbers have the seed."""
        special = {pattern: replace(choice, seed=seed) for pattern, choice in self.per_layer.items()}
        return Choice(self.method, self.rank, seed), special


@dataclass(frozen=True)
class FitAsked:
    """How chains are fitted: in which metric, corrected in which way, refined and reconstructed by how many steps.

    `metric_assumed` marks a metric that nobody asked for. With `init` scratch nothing is fitted: kernels are random.
    """

    metric: str = DEFAULT
    correct: str = "none"
    refine: int | None = None
    reconstruct: int = 0
    calibration_images: int = 1000
    seed: int = 0
    metric_assumed: bool = False
    init: str = "fit"

    @property
    def guided(self) -> bool:
        """True where the metric needs statistics of images."""
        return bool(get_metric(self.metric).needs)

    @property
    def corrected(self) -> bool:
        """True where outputs are corrected on images, which takes a bias in every chain."""
        return self.correct != "none"

    @property
    def looks_at_images(self) -> bool:
        """True where a correction or a reconstruction looks at images."""
        return self.corrected or self.reconstruct > 0

    @property
    def calibrated(self) -> bool:
        """True where calibration images are looked at at all."""
        return self.looks_at_images or self.guided

    @property
    def predicts_nats(self) -> bool:
        """True where the errors of a plan are nats."""
        return get_metric(self.metric).nats or self.corrected


@dataclass(frozen=True)
class Place:
    """The folder of a run (None: `runs/NAME`), and what may be replaced there; a dry run writes nothing.

    Statistics in the folder `statistics` (None: `explorations/NAME`) are taken where they fit.
    """

    out: Path | None = None
    force: bool = False
    dry_run: bool = False
    keep_statistics: bool = False
    statistics: Path | None = None


@dataclass(frozen=True)
class GridAsked:
    """Budgets to plan within, how many networks of each cost are measured, and where what was found is kept."""

    budgets: tuple[Budget, ...]
    measure: int = 4
    out: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class TrainingAsked:
    """Where a training writes, None for the run itself, whether it replaces what is there, and whether it goes on.

    `augment` says how its images are changed.
    """

    out: Path | None = None
    force: bool = False
    resume: bool = False
    augment: str = "standard"


@dataclass(frozen=True)
class Job:
    """All of `cnncompress decompose`: a network, images, how much is to be kept, what layers may become, and how.

    `timings` say how networks are timed, the first one for budgets of latency too; `timed` asks for the times of the
    result where no budget does; a budget takes those in the file `table` where there is one. `memory_format` is the one
    of the result, "" to leave it to the job.
    """

    network: NetworkAsked
    images: ImagesAsked = ImagesAsked()
    aim: Aim = Aim()
    layers: LayersAsked = field(default_factory=LayersAsked)
    fit: FitAsked = FitAsked()
    timings: Sequence[TimingSetting] = (TimingSetting(device="auto"),)
    timed: bool = False
    table: Path | None = None
    memory_format: str = ""
    place: Place = Place()

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.network.seed
