"""The loop: steps, validation, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from cnncompress.data import make_loader
from cnncompress.errors import CompressError, RunError
from cnncompress.finetuning.batches import Batches, Process
from cnncompress.finetuning.checkpoints import Checkpoints, NotWrittenError, tensors_of
from cnncompress.finetuning.distillation import Teacher
from cnncompress.finetuning.interrupts import Interrupts
from cnncompress.finetuning.lessons import Lessons
from cnncompress.finetuning.optimization import Objective, better, cosine, make_accelerator, make_optimizer, mixed_seed
from cnncompress.finetuning.progress import Progress
from cnncompress.finetuning.schedules import training_modes
from cnncompress.finetuning.settings import FinetuneResult, FinetuneSettings
from cnncompress.network.evaluate import Evaluation, summarise, tally
from cnncompress.network.inputs import input_dtype
from cnncompress.terminal.console import LOG, bar


@dataclass(frozen=True)
class Learner:
    """A network to train, the names of its modules that train, and the number of its classes.

    With a `teacher` it learns from that network's answers too.
    """

    network: nn.Module
    names: list[str]
    classes: int
    teacher: Teacher | None = None


class Trainer:
    """One training: `run` takes it from the start, or from its last checkpoint, to the end."""

    def __init__(
        self,
        learner: Learner,
        lessons: Lessons,
        settings: FinetuneSettings,
        checkpoints: Checkpoints,
        device: torch.device,
    ) -> None:
        self.model, self.classes, self.teacher = learner.network, learner.classes, learner.teacher
        self.val, self.settings, self.checkpoints = lessons.val, settings, checkpoints
        self.set_modes = training_modes(self.model, learner.names)
        self.accelerator = make_accelerator(device, settings.precision)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.batches = Batches(lessons.train, settings, Process(self.rank, self.processes, self.device))
        self.optimizer: Any = make_optimizer(self.model.to(self.device), settings)
        self.interrupts = Interrupts(shared=self.processes > 1)
        self.progress = Progress()
        self.between_steps = False
        self.unwritten: dict[str, Tensor] = {}  # the best weights, where the system does not take their file

    def run(self, resume: bool) -> FinetuneResult:
        """Train; the network then holds the best weights."""
        state = self.checkpoints.load_last(self._comparable(), self.batches.images) if resume else None
        if state is None and self.main and (where := self.checkpoints.unfinished()):
            LOG.warning(
                f"warning: {self.checkpoints.last.parent} holds an unfinished training ({where}), which is started "
                "over: to go on with it, stop now and resume (--resume)"
            )
        if state is not None:
            self._restore(state)
            if self.main:
                self.checkpoints.tidy()
        self.objective, self.optimizer = self.accelerator.prepare(Objective(self.model, self.settings), self.optimizer)
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        with self.interrupts:
            try:
                if state is None:
                    self._start()
                self.saved = time.monotonic()
                self.between_steps = True
                while self.progress.epoch <= self.settings.epochs:
                    self._train_epoch()
                    self._finish_epoch()
            except (KeyboardInterrupt, RuntimeError) as error:
                # A process that stopped first, or a worker that Ctrl-C ended, shows as RuntimeError in the others.
                if not isinstance(error, KeyboardInterrupt) and not self.interrupts.requested:
                    raise
                if self.between_steps:
                    self._keep()
                raise KeyboardInterrupt from None
        self.accelerator.wait_for_everyone()
        result = self._result()
        self.accelerator.end_training()
        return result

    def _comparable(self) -> dict[str, Any]:
        taught = {"the teacher's weights": self.teacher.digest} if self.teacher else {}
        return {**dataclasses.asdict(self.settings), "processes": self.processes, **taught}

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress.of(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(
                f"{self.checkpoints.last} does not fit this network; run without --resume to start again"
            ) from error
        self.best_epoch, self.best = self.checkpoints.load_best()

    def _start(self) -> None:
        self.best_epoch, self.best = 0, self._validate()
        self._record(0, self.best, lr=None, train_loss=None)
        if self.main:
            self.checkpoints.clear()
            self.checkpoints.save_best(self.model, 0, self.best)
        self._save()

    def _save(self) -> None:
        """Write the last checkpoint and the history."""
        if not self.main:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": self._comparable(),
            "images": self.batches.images,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            **self.progress.state(),
        }
        self.checkpoints.save_last(state)
        self.checkpoints.save_history(self.progress.history)
        self.saved = time.monotonic()

    def _keep(self) -> None:
        """Write the last checkpoint and the history; where the system does not take them, say so and go on."""
        try:
            self._save()
        except NotWrittenError as error:
            self.saved = time.monotonic()
            LOG.warning(f"warning: {error}; the training goes on, and the checkpoint before stays")

    def _keep_best(self) -> None:
        """Write the network as the best one, or keep its weights in memory where the system does not take the file."""
        self.unwritten = {}
        try:
            self.checkpoints.save_best(self.model, self.best_epoch, self.best)
        except NotWrittenError as error:
            self.unwritten = {name: t.detach().cpu().clone() for name, t in tensors_of(self.model).items()}
            LOG.warning(f"warning: {error}; the training goes on with the best weights in memory alone")

    def _train_epoch(self) -> None:
        at, settings = self.progress, self.settings
        self.set_modes()
        steps = bar(
            progress=self.main,
            total=self.batches.steps,
            initial=at.step,
            desc=f"epoch {at.epoch}/{settings.epochs}",
            unit="step",
            leave=False,
        )
        with steps:
            batches = self.batches.of_epoch(at.epoch, at.step)
            while at.step < self.batches.steps:
                began = time.monotonic()
                # Seeded for every step, so that dropout is the same after an interruption.
                torch.manual_seed(mixed_seed(settings.seed, at.epoch, at.step, self.rank))
                images, labels = self.batches.read(batches, input_dtype(self.model), self.classes)
                with self.interrupts.hold():
                    self.between_steps = False
                    lr, loss, stop = self._step(images, labels)
                    at.loss_sum += loss
                    at.seconds += time.monotonic() - began
                    at.step += 1
                    self.between_steps = True
                    if time.monotonic() - self.saved > 60 * settings.checkpoint_minutes:
                        self._keep()
                if stop:
                    raise KeyboardInterrupt
                steps.update()
                steps.set_postfix(loss=f"{loss / self.batches.size:.3f}", lr=f"{lr:.2g}")

    def _lr(self, step: int) -> float:
        return cosine(cast(float, self.settings.lr), step, self.batches.steps * self.settings.epochs)

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, float, bool]:
        """The learning rate, the loss summed over all processes, and whether one of them was told to stop."""
        step = (self.progress.epoch - 1) * self.batches.steps + self.progress.step
        lr = self._lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        try:
            loss = self.objective(images, labels, self._expected(images))
            # Gradients are averaged over the processes; this makes them those of the mean over the whole batch.
            self.accelerator.backward(loss * (self.processes / self.batches.size))
            self.optimizer.step()
            self.optimizer.zero_grad()
        except (torch.OutOfMemoryError, CompressError) as error:
            if isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                raise CompressError(
                    f"a batch of {self.batches.size} does not fit the GPU; lower --batch-size"
                ) from error
            raise
        flags = loss.new_tensor([float(self.interrupts.requested)])
        total, stop = self.accelerator.reduce(torch.cat([loss.detach().reshape(1), flags]).double(), "sum").tolist()
        if not math.isfinite(total):
            raise CompressError(
                f"the training loss is {total} at step {step + 1} (epoch {self.progress.epoch}); lower --lr (it is "
                f"{self.settings.lr:g}); the best weights so far, of epoch {self.best_epoch}, are in "
                f"{self.checkpoints.best}"
            )
        return lr, total, self.interrupts.shared and stop > 0

    def _expected(self, images: Tensor) -> Tensor | None:
        """The teacher's logits of a batch; None without a teacher."""
        if self.teacher is None:
            return None
        with self.accelerator.autocast():
            return self.teacher.answers(images)

    def _finish_epoch(self) -> None:
        at, began = self.progress, time.monotonic()
        result = self._validate()
        with self.interrupts.hold():
            at.seconds += time.monotonic() - began
            images = self.batches.steps * self.batches.size
            lr = self._lr(at.epoch * self.batches.steps - 1)
            self._record(at.epoch, result, lr=lr, train_loss=at.loss_sum / images)
            if better(result, self.best):
                self.best_epoch, self.best = at.epoch, result
                if self.main:
                    self._keep_best()
            at.start_epoch()
            self._keep()

    def _validate(self) -> Evaluation:
        """The accuracy over all processes, each of which sees its share of the images."""
        for buffer in self.model.buffers():
            broadcast(buffer)  # BatchNorm statistics differ between processes
        mine = range(self.rank, len(self.val), self.processes)
        loader = make_loader(
            self.val, max(1, self.batches.size // self.processes), workers=self.settings.workers, indices=mine
        )
        return summarise(self.accelerator.reduce(tally(self.model, loader, self.device, progress=self.main), "sum"))

    def _record(self, epoch: int, result: Evaluation, lr: float | None, train_loss: float | None) -> None:
        step = epoch * self.batches.steps
        self.progress.record(epoch, self.settings.epochs, result, step=step, lr=lr, train_loss=train_loss)

    def _result(self) -> FinetuneResult:
        """The result, after putting the best weights into the network."""
        best_epoch, best = self.checkpoints.load_best(self.model)
        if self.unwritten:
            self.model.load_state_dict(self.unwritten)
            best_epoch, best = self.best_epoch, self.best
        return self.progress.result(best_epoch, best)
