"""How far a training has come, and what it has measured on its way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cnncompress.finetuning.settings import FinetuneResult
from cnncompress.network.evaluate import Evaluation
from cnncompress.terminal.console import LOG
from cnncompress.terminal.events import event


@dataclass
class Progress:
    """`step` steps are done in epoch `epoch` (from 1 on); `loss_sum` and `seconds` belong to that epoch.

    `history` has one row for each epoch that is done, and one, of epoch 0, for the network before training. `rate` is
    the learning rate at its highest, `found` says how it was chosen where the training did that itself, and `setbacks`
    why the training went back, each of which halves it. `frozen`: batch normalisation keeps its statistics.
    `uncompiled` says why steps were not compiled where that was asked for.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    rate: float | None = None
    frozen: bool = False
    found: str = ""
    setbacks: list[str] = field(default_factory=list)
    uncompiled: str = ""

    def state(self) -> dict[str, Any]:
        """The values as a checkpoint has them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """From a checkpoint; KeyError where it lacks a value. Earlier versions have the rate in the settings."""
        later = {"rate": state["settings"].get("lr"), "frozen": False, "found": "", "setbacks": [], "uncompiled": ""}
        values = {**later, **state}
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})

    def start_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0

    def record(self, epoch: int, epochs: int, result: Evaluation, what: str = "top-1", **training: Any) -> None:
        """Add epoch number `epoch` of `epochs`: its accuracy, and `training`, the values that describe its steps.

        `what` its percentage is, in words.
        """
        accuracy = {f"val_{name}": getattr(result, name) for name in ("top1", "top5", "loss", "images")}
        self.history.append({"epoch": epoch, **training, **accuracy, "seconds": round(self.seconds, 3)})
        when = f"epoch {epoch} of {epochs}" if epoch else "before training"
        told = event("epoch", of=epochs, **self.history[-1])
        LOG.info("%s: %s %.2f %%, loss %.4f (%.0f s)", when, what, result.top1, result.loss, self.seconds, extra=told)

    def result(self, best_epoch: int, best: Evaluation, rate: float) -> FinetuneResult:
        """The result of a training whose best weights are those of `best_epoch`, and whose learning rate was `rate`."""
        start, last = (
            Evaluation(row["val_top1"], row["val_top5"], row["val_loss"], row["val_images"])
            for row in (self.history[0], self.history[-1])
        )
        went_back = [f"{reason}, so it went back and halved the rate" for reason in self.setbacks]
        note = "; ".join(filter(None, [self.found, *went_back]))
        found = FinetuneResult(best, best_epoch, last, start, self.history, note, rate, self.frozen)
        return replace(found, uncompiled=self.uncompiled)
