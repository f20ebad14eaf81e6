"""The run that a fine-tuning trains in: locked, copied when the first checkpoint is due, and watched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from cnncompress.data import Data
from cnncompress.data.sample import content_of
from cnncompress.errors import RunError
from cnncompress.files.place import LAST, is_run
from cnncompress.files.regular import kind_of
from cnncompress.finetuning import is_main_process
from cnncompress.pipeline.asked import TrainingAsked
from cnncompress.pipeline.opened import Opened, is_program
from cnncompress.runs import copy_run
from cnncompress.runs.lock import reserved
from cnncompress.runs.record import read_info
from cnncompress.runs.snapshot import snapshot, version

CHECKPOINTS = "checkpoints"


class TrainingPlace:
    """The run that is trained: the run itself, or `--out`, which becomes a copy of it first.

    Nobody else may write there meanwhile: where the run was replaced or removed all the same, `ready` says so.
    """

    def __init__(self, run: Path, asked: TrainingAsked) -> None:
        self.run, self.target, self.asked = run, asked.out or run, asked
        self.folder = self.target / CHECKPOINTS
        self.apart = self.target.resolve() != run.resolve()
        self.copies = self.apart and not asked.resume
        self.version = version(run if self.copies else self.target)
        self.made: list[Path] = []
        self._before = self._stamp()

    def ready(self) -> None:
        """Call before anything is written: RunError where the run is no longer the one that the training began in."""
        if self.copies:
            self.made = [p for p in (self.target, *self.target.parents) if not p.exists()]
            copy_run(self.run, self.target, force=self.asked.force)
            self.version, self.copies = version(self.target), False
        try:
            same = version(self.target) == self.version
        except RunError:
            same = False
        if not same:
            raise RunError(
                f"{self.target} was replaced or removed while this training ran; it stops here and writes nothing more"
            )

    @property
    def started(self) -> bool:
        """True once a checkpoint has been written."""
        return self._stamp() != self._before

    def _stamp(self) -> int | None:
        last = self.folder / LAST
        return last.stat().st_mtime_ns if last.is_file() else None

    def undo(self) -> None:
        """Remove a copy that was made for a training that never started."""
        if self.made and not self.started:
            shutil.rmtree(self.made[0], ignore_errors=True)
            for parent in self.made[1:]:
                with suppress(OSError):
                    parent.rmdir()


@contextmanager
def training_in(run: Path, asked: TrainingAsked) -> Iterator[TrainingPlace]:
    """The place to train in, where no other process trains or writes.

    RunError where there is none. Ctrl-C passes on with the words that tell how to go on.
    """
    with snapshot(run) as files:
        read_info(files)
    target = asked.out or run
    apart = target.resolve() != run.resolve()
    if apart and asked.resume and not is_run(target):
        raise RunError(f"{target} is not a run to resume in; leave out --resume")
    force = asked.force or asked.resume or not apart
    with reserved(target, force) if is_main_process() else nullcontext():
        place = TrainingPlace(run, asked)
        if kind := kind_of(place.folder).replace("a folder", ""):
            raise RunError(f"{place.folder} is {kind}, which a training does not follow; remove it")
        try:
            yield place
        except BaseException as error:
            place.undo()
            if isinstance(error, KeyboardInterrupt) and place.started:
                raise KeyboardInterrupt(
                    f"interrupted; {target} has a checkpoint: go on with the same command and --resume"
                ) from None
            raise


def origin_of(opened: Opened, data: Data) -> dict[str, Any]:
    """The identity of a training: it resumes only where all these values are the same."""
    prepared = opened.preprocessing
    return {
        "what is trained": "the stored program" if is_program(opened) else "the network",
        "the data's fingerprint": data.fingerprint,
        "the training images' content": content_of(data.train) if data.train else "",
        "the evaluation images' content": content_of(data.val),
        "input size": list(prepared.size),
        "resize": prepared.resize,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "interpolation": prepared.interpolation,
        "the time the run was made": opened.run.info.get("created", "") if opened.run else "",
    }
