"""Files of a training run that survive being killed: each is whole, old or new."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from cnncompress.errors import RunError, UsageError
from cnncompress.files import schemas
from cnncompress.files.place import BEST, HISTORY, LAST, PREVIOUS, SECOND, half_written
from cnncompress.files.reading import check
from cnncompress.files.regular import kind_of
from cnncompress.network.evaluate import Evaluation, with_answers
from cnncompress.terminal.console import LOG
from cnncompress.text import plain

FORMAT = 1
FREE_SETTINGS = ("workers", "checkpoint_minutes")  # settings that do not change the result
# Settings that earlier versions lack, with the value that stands for them.
LATER_SETTINGS: dict[str, Any] = {
    "distill": "none",
    "images_per_epoch": None,
    "unlabelled": False,
    "freeze_bn": None,
    "lr_rest": 1.0,
    "ema": 0.0,
    "accumulate": 1,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "clip_norm": None,
    "augmentation": "standard",
    "calibration_images": 1000,
    "cache_gib": 2.0,
    "compile": False,
}


class NotWrittenError(RunError):
    """A file that the system did not take: a full disk, say. What was there before stays."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it and rename it; NotWrittenError if that fails.

    What was at `path` is then at `keep`, if given.
    """
    temporary = half_written(path)
    try:
        check_plain(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                check_plain(keep)
                os.replace(path, keep)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).strip().split("\n")[0]
        raise NotWrittenError(f"cannot write {path}: {reason}") from error


def check_plain(path: Path) -> None:
    """RunError where something else than a file is at `path`: a link, a pipe, a folder."""
    if kind := kind_of(path):
        raise RunError(f"{path} is {kind}, which a training neither follows nor replaces; remove it")


class Checkpoints:
    """The files of a training that can go on.

    `last.pt` is where it stands and `previous.pt` where it stood before, `best.safetensors` has the best weights, and
    `history.jsonl`, beside their folder, the epochs. `ready` is called before anything is written. `origin` is what a
    training is of: it resumes only where these values are the same.
    """

    def __init__(
        self, folder: Path, ready: Callable[[], None] = lambda: None, origin: Mapping[str, Any] | None = None
    ) -> None:
        self.last = folder / LAST
        self.previous = folder / PREVIOUS
        self.best = folder / BEST
        self.history = folder.parent / HISTORY
        self._files = (self.last, self.previous, folder / BEST, folder / SECOND, self.history)
        self.ready = ready
        self.origin = dict(origin or {})

    def clear(self) -> None:
        """Remove what an earlier training left; RunError where that fails."""
        self.ready()
        for path in self._files:
            check_plain(path)
        self._remove(*self._files)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a process that was killed left half-written."""
        self.ready()
        self._remove(*map(half_written, self._files))

    def _remove(self, *paths: Path) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {error.filename}: {error.strerror}") from error

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the state of a training: tensors and plain values only. The one before stays."""
        self.ready()
        content = {"format": FORMAT, "origin": self.origin, **state}
        write_atomically(self.last, lambda file: torch.save(content, file), keep=self.previous)

    def unfinished(self) -> str:
        """The position of an unfinished training, in words; empty where there is none."""
        state = _read_state(self.last) if self.last.exists() else None
        epoch, epochs = (state or {}).get("epoch"), (state or {}).get("settings", {}).get("epochs")
        at, steps = (((state or {}).get("cascade") or {}).get(key) for key in ("step", "steps"))
        if isinstance(at, int) and isinstance(steps, int) and at < steps:
            return f"in step {at} of {steps}"
        going = isinstance(epoch, int) and isinstance(epochs, int) and epoch <= epochs
        return f"in epoch {epoch} of {epochs}" if going else ""

    def load_last(self, settings: Mapping[str, Any], images: int) -> dict[str, Any]:
        """The state of a training of this origin, with these settings and this number of images, on the CPU.

        Where `last.pt` is missing or damaged, that of `previous.pt`. Raises UsageError where there is none, or one of
        another training; RunError for damaged files.
        """
        paths = [path for path in (self.last, self.previous) if path.exists()]
        if not paths:
            raise UsageError(f"nothing to resume: there is no {self.last}; run without --resume")
        for path in paths:
            state = _read_state(path)
            if state is not None:
                self._check_same(path, state, {**self.origin, **settings, "training images": images})
                return state
            LOG.warning(f"warning: {path} is damaged; the checkpoint before it serves")
        raise RunError(f"{self.last} is damaged; run without --resume to start again")

    def _check_same(self, path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """UsageError that names the first value in which the training of `state` was another."""
        then = {**LATER_SETTINGS, **state["settings"], "training images": state["images"], **state.get("origin", {})}
        for key, value in now.items():
            if key not in FREE_SETTINGS and then.get(key) != value:
                raise UsageError(
                    f"cannot resume {path}: {key} was {plain(str(then.get(key)))}, now {value}; "
                    "give the same settings, or run without --resume to start again"
                )

    def save_history(self, rows: list[dict[str, Any]]) -> None:
        """Write one JSON object a line."""
        self.ready()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.history, lambda file: file.write(text.encode()))

    def save_best(self, model: nn.Module, epoch: int, result: Evaluation) -> None:
        """Write the weights with their epoch, their accuracy and their answers to the images."""
        self.ready()
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors_of(model).items()}
        metadata = {"epoch": str(epoch), "evaluation": json.dumps(result.numbers)}
        if result.answers is not None:
            metadata["answers"] = _as_text(result.answers)
        write_atomically(self.best, lambda file: file.write(to_safetensors(tensors, metadata)))

    def load_best(self, model: nn.Module | None = None) -> tuple[int, Evaluation]:
        """The epoch and accuracy of the best weights, which are put into `model`; RunError for a damaged file."""
        check_plain(self.best)
        try:
            with safe_open(self.best, framework="pt") as file:
                metadata = file.metadata()
                evaluation = json.loads(metadata["evaluation"])
                check(schemas.Evaluation, evaluation)
                if model is not None:
                    model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            result = Evaluation(**evaluation)
            if "answers" in metadata:
                result = with_answers(result, _of_text(metadata["answers"], result.images))
            return int(metadata["epoch"]), result
        except (OSError, SafetensorError, RuntimeError, RecursionError, TypeError, KeyError, ValueError) as error:
            raise RunError(f"{self.best} is missing or damaged; run without --resume to start again") from error


def _as_text(answers: Tensor) -> str:
    """Labels and first guesses [images, 2] as Base64 of four bytes each."""
    return base64.b64encode(answers.cpu().numpy().astype("<i4").tobytes()).decode()


def _of_text(text: str, images: int) -> Tensor:
    """What `_as_text` wrote; ValueError where it is not of so many images."""
    numbers = np.frombuffer(base64.b64decode(text), "<i4")
    return torch.from_numpy(numbers.astype(np.int64).reshape(images, 2))


def _read_state(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, None where it is damaged; RunError for one of a newer version."""
    check_plain(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        newer = state["format"] > FORMAT
        if not newer and state.keys() >= {"settings", "images"}:
            return dict(state)
    except Exception:  # a damaged file has the unpickler raise anything
        return None
    if newer:
        raise RunError(f"{path} was written by a newer version; update the program to resume from it")
    return None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
