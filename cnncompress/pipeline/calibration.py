"""Calibration: which images it takes, one pass over them, and the cache of its statistics in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.spec import Call
from cnncompress.correction.sequential import most_images
from cnncompress.data import Data, Images, Loader, split
from cnncompress.data.sample import evenly
from cnncompress.errors import NoGradientError, UsageError
from cnncompress.metrics import LayerStatistics, get_metric
from cnncompress.names.metrics import OF_INPUTS
from cnncompress.network.device import resolve_device
from cnncompress.network.divergence import Answers
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.subject import Subject
from cnncompress.pipeline.asked import FitAsked, ImagesAsked
from cnncompress.pipeline.images import batches_for
from cnncompress.pipeline.notes import Note, notes
from cnncompress.statistics import collect_statistics, load_statistics, save_statistics, statistics_key
from cnncompress.terminal.console import LOG

STATISTICS = "statistics.safetensors"
UNSEEN_STEP = 4  # one of so many images is left out of the statistics where a selection of channels has few of them
MANY_IMAGES = 10  # of a class: with as many, what is left out would help more in the statistics
EVALUATION_SHARE = 0.5  # of a set without training images: the rest is for calibration


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """Images to calibrate on: `indices` among the `images`, spread evenly, and which of them a correction looks at.

    `held` are positions in `indices`, spread evenly: all of them, or as many as the largest activation allows. The
    answers of a network are compared on some of these in turn (`divergence.to_check`). The positions of `unseen` are
    left out of the statistics.
    """

    images: Images
    indices: tuple[int, ...]
    held: frozenset[int]
    fingerprint: str
    unseen: frozenset[int] = frozenset()

    @property
    def seen(self) -> tuple[int, ...]:
        """The positions in `indices` of the images that statistics are from."""
        return tuple(position for position in range(len(self.indices)) if position not in self.unseen)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Statistics by layer with their cache key, the images [n, c, H, W] that corrections look at, and what to say.

    `unseen` are those among the images that the statistics are not from, None where they are from all. `answers` are
    the original's to some of the unseen images, or of all, once they were asked for. `source` is the file that the
    statistics were read from, None where they were collected.
    """

    statistics: Mapping[str, LayerStatistics] = dataclasses.field(default_factory=dict)
    images: Tensor | None = None
    key: str = ""
    notes: tuple[Note, ...] = ()
    answers: Answers | None = None
    source: Path | None = None
    unseen: Tensor | None = None


def with_gradients(asked: FitAsked, network: nn.Module, example: Tensor) -> tuple[FitAsked, tuple[Note, ...]]:
    """How to fit, and what to say where the metric, that nobody asked for, needs gradients that do not come."""
    if not asked.metric_assumed or "gradient" not in get_metric(asked.metric).needs:
        return asked, ()
    try:
        collect_statistics(network, [example], asked.metric, positions=1, progress=False)
    except NoGradientError as error:
        told = f"the metric is {OF_INPUTS}, as {error}"
        LOG.warning("%s", told)
        return dataclasses.replace(asked, metric=OF_INPUTS), notes("network", told)
    return asked, ()


def apart(data: Data | None, asked: FitAsked) -> Data | None:
    """The data with images to calibrate on (`train`) that are never evaluated on; as they are where none are needed."""
    if data is None or not asked.calibrated:
        return data
    return split(data, EVALUATION_SHARE, asked.seed)


def calibration_set(
    data: Data | None, asked: FitAsked, calls: Mapping[str, Call], unseen: bool = False
) -> CalibrationSet:
    """The images that statistics, corrections and comparisons of answers are from; UsageError where there are none.

    With `unseen` answers are compared on images that the statistics are not from, where there are few of a class.
    """
    if data is None or data.train is None:
        what = f"metric {asked.metric}" if asked.guided else f"--correct {asked.correct}"
        raise UsageError(f"{what} needs calibration images; give --data FOLDER, cifar10:ROOT or digits")
    indices = evenly(len(data.train), asked.calibration_images)
    held = evenly(len(indices), most_images(calls)) if asked.looks_at_images else []
    apart = unseen and asked.guided and asked.corrected and few(len(indices), calls)
    left_out = left_out_of(held) if apart else ()
    return CalibrationSet(data.train, tuple(indices), frozenset(held), data.fingerprint, frozenset(left_out))


def few(images: int, calls: Mapping[str, Call]) -> bool:
    """Whether so many images are few of each class: channels that only some classes use then look useless."""
    last = max(calls.values(), key=lambda call: call.order, default=None)
    return last is not None and images < MANY_IMAGES * last.spec.out_channels


def left_out_of(images: Sequence[int]) -> list[int]:
    """Every `UNSEEN_STEP`-th of some images: those that show what a fit to the statistics of the others does."""
    return list(images[UNSEEN_STEP - 1 :: UNSEEN_STEP])


def calibrate(
    subject: Subject,
    chosen: CalibrationSet,
    asked: FitAsked,
    layers: Collection[str],
    read: ImagesAsked,
    caches: Sequence[Path],
) -> Calibration:
    """One pass over the calibration images: the statistics of some layers, and the images that corrections look at.

    No image is decoded twice. Statistics come from the first of the files `caches` that fits; then only those images
    are read that are held. A metric that needs nothing has no statistics.
    """
    guided, key, statistics, source = asked.guided, "", None, None
    seen = [chosen.indices[position] for position in chosen.seen]
    if guided:
        wanted = {"metric": asked.metric, "images": seen, "seed": asked.seed, "layers": list(layers)}
        key = statistics_key(subject.network, chosen.fingerprint, wanted)
        statistics, source = _stored(caches, key)
    if statistics is None and guided:
        held = _Held(chosen, read, subject.network)
        statistics = collect_statistics(
            subject.network, held, asked.metric, layers=layers, seed=asked.seed, device=resolve_device(read.device)
        )
        subject.network.to("cpu")
        images = held.images()
    else:
        images = _read(chosen, chosen.held - chosen.unseen, read, subject.network)
    unseen = _read(chosen, chosen.unseen, read, subject.network)
    images = torch.cat([part for part in (images, unseen) if part is not None]) if chosen.held else None
    statistics = statistics or {}
    told = [] if source is None else [f"the statistics are those in {source}"]
    said = notes("calibration", *told, *remarks(statistics))
    return Calibration(statistics, images, key, said, source=source, unseen=unseen)


def _stored(caches: Sequence[Path], key: str) -> tuple[dict[str, LayerStatistics] | None, Path | None]:
    """The statistics of the first file that fits, and that file; None where none does."""
    for path in caches:
        if (statistics := load_statistics(path, key)) is not None:
            LOG.info("the statistics are those in %s", path)
            return statistics, path
    return None, None


class _Held:
    """The batches of a calibration set, of which it keeps the images that are to be held as they pass by."""

    def __init__(self, chosen: CalibrationSet, read: ImagesAsked, network: nn.Module) -> None:
        self.held, self.dtype = chosen.held, input_dtype(network)
        self.seen = chosen.seen
        self.loader = _loader(chosen, read, network, [chosen.indices[position] for position in self.seen])
        self.parts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch, positions in self.loader.numbered():
            kept = [place for place, position in enumerate(positions) if self.seen[position] in self.held]
            if kept:
                self.parts.append(read_batch(batch, self.dtype, labels=False)[0][kept])
            yield batch

    def images(self) -> Tensor | None:
        """The images that were kept, [n, c, H, W]; None where there were none."""
        return torch.cat(self.parts) if self.parts else None


def _read(chosen: CalibrationSet, positions: Collection[int], read: ImagesAsked, network: nn.Module) -> Tensor | None:
    """The images at some positions and no others, [n, c, H, W]; None where there are none."""
    if not positions:
        return None
    loader = _loader(chosen, read, network, [chosen.indices[position] for position in sorted(positions)])
    dtype = input_dtype(network)
    return torch.cat([read_batch(batch, dtype, labels=False)[0] for batch in loader])


def _loader(chosen: CalibrationSet, read: ImagesAsked, network: nn.Module, indices: Sequence[int]) -> Loader:
    return batches_for(network, chosen.images, read, read.reading, indices)


def remarks(statistics: Mapping[str, LayerStatistics]) -> Iterator[str]:
    """Remarks for the user on statistics from too few images."""
    short = [name for name, s in statistics.items() if 0 < s.counted <= s.mean.shape[1]]
    if short:
        first = f"{short[0]}{f' and {len(short) - 1} more' if len(short) > 1 else ''}"
        yield (
            f"{first}: no more independent input samples than dimensions: the second moment is regularised strongly; "
            "more --calibration-images would help"
        )


def cache_file(keep: bool, done: Calibration) -> dict[str, Callable[[Path], None]]:
    """The statistics as a side product of the run, where that was asked for and there are any."""
    if not keep or not done.statistics:
        return {}
    return {STATISTICS: lambda path: save_statistics(path, done.statistics, done.key)}
