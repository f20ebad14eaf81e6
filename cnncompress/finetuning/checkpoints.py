"""Files of a training run that survive being killed: each is whole, old or new."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from cnncompress import schemas
from cnncompress.errors import RunError, UsageError
from cnncompress.evaluation import Evaluation
from cnncompress.reading import check

FORMAT = 1
FREE = ("workers", "checkpoint_minutes")  # settings that do not change the result


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it; RunError if that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).strip().split("\n")[0]
        raise RunError(f"cannot write {path}: {reason}") from error


class Checkpoints:
    """`last.pt`, from which training goes on, `best.safetensors`, and `history.jsonl` beside their folder."""

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.pt"
        self.best = folder / "best.safetensors"
        self.history = folder.parent / "history.jsonl"

    def clear(self) -> None:
        """Remove what an earlier training left; RunError where that fails."""
        try:
            for path in (self.last, self.best, self.history):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {error.filename}: {error.strerror}") from error

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the state of a training: tensors and plain values only."""
        write_atomically(self.last, lambda file: torch.save({"format": FORMAT, **state}, file))

    def load_last(self, settings: Mapping[str, Any], images: int) -> dict[str, Any]:
        """The state of a training with these settings and this number of training images, on the CPU.

        Raises UsageError where there is none, or one of other settings; RunError for a damaged file.
        """
        if not self.last.is_file():
            raise UsageError(f"nothing to resume: there is no {self.last}; run without --resume")
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
            if state["format"] > FORMAT:
                raise RunError(f"{self.last} was written by a newer version; update the program to resume from it")
            then = {**state["settings"], "training images": state["images"]}
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, pickle.UnpicklingError) as error:
            raise RunError(f"{self.last} is damaged; run without --resume to start again") from error
        for key, now in {**settings, "training images": images}.items():
            if key not in FREE and then.get(key) != now:
                raise UsageError(
                    f"cannot resume {self.last}: {key} was {then.get(key)}, now {now}; "
                    "give the same settings, or run without --resume to start again"
                )
        return state

    def save_history(self, rows: list[dict[str, Any]]) -> None:
        """Write one JSON object a line."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.history, lambda file: file.write(text.encode()))

    def save_best(self, model: nn.Module, epoch: int, result: Evaluation) -> None:
        """Write the weights with their epoch and accuracy."""
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors_of(model).items()}
        metadata = {"epoch": str(epoch), "evaluation": json.dumps(dataclasses.asdict(result))}
        write_atomically(self.best, lambda file: file.write(to_safetensors(tensors, metadata)))

    def load_best(self, model: nn.Module | None = None) -> tuple[int, Evaluation]:
        """The epoch and accuracy of the best weights, which are put into `model`; RunError for a damaged file."""
        try:
            with safe_open(self.best, framework="pt") as file:
                metadata = file.metadata()
                evaluation = json.loads(metadata["evaluation"])
                check(schemas.Evaluation, evaluation)
                if model is not None:
                    model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return int(metadata["epoch"]), Evaluation(**evaluation)
        except (OSError, SafetensorError, RuntimeError, RecursionError, TypeError, KeyError, ValueError) as error:
            raise RunError(f"{self.best} is missing or damaged; run without --resume to start again") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
