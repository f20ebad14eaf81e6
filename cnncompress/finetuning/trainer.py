"""The loop: steps, validation, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor

from cnncompress.errors import CompressError, DataError, RunError
from cnncompress.finetuning.batches import Batch, Batches, Process
from cnncompress.finetuning.checkpoints import Checkpoints, NotWrittenError, tensors_of
from cnncompress.finetuning.compiling import compile_steps
from cnncompress.finetuning.interrupts import Interrupts
from cnncompress.finetuning.learner import Learner
from cnncompress.finetuning.lessons import Lessons
from cnncompress.finetuning.memory import remember
from cnncompress.finetuning.optimization import better, mixed_seed
from cnncompress.finetuning.progress import Progress
from cnncompress.finetuning.rates import find_rate, rate_at
from cnncompress.finetuning.schedules import knows, training_modes
from cnncompress.finetuning.settings import FinetuneResult, FinetuneSettings
from cnncompress.finetuning.stepping import DivergedError, Stepper
from cnncompress.finetuning.validation import validated
from cnncompress.network.evaluate import Evaluation, NotFiniteError
from cnncompress.network.inputs import input_dtype
from cnncompress.terminal.console import LOG, bar

SETBACKS = 2  # that a training goes on from, each with half the rate


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
        self.enough, self.epochs_before = learner.enough, learner.epochs_before
        self.val, self.settings, self.checkpoints = lessons.val, settings, checkpoints
        self.names, self.example = learner.names, lessons.example
        self.stepper = Stepper(learner, settings, device)
        self.accelerator, self.device, self.main = self.stepper.accelerator, self.stepper.device, self.stepper.main
        self.rank, self.processes = self.stepper.rank, self.stepper.processes
        self.batches = Batches(lessons.train, settings, Process(self.rank, self.processes, self.device))
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
        self.stepper.prepare(self.batches.size)
        if state is not None:
            self._restore(state)
            if self.main:
                self.checkpoints.tidy()
        with self.interrupts:
            try:
                if self.example is not None:
                    example = self.example.to(self.device, input_dtype(self.model))
                    remember(self.stepper, self.batches, self.names, example, self.epochs_before)
                if state is None:
                    self._start()
                else:
                    self._compile()
                self.saved = time.monotonic()
                self.between_steps = True
                while self.progress.epoch <= self.settings.epochs:
                    try:
                        self._train_epoch()
                        self._finish_epoch()
                    except DivergedError as error:
                        self._go_back(error)
            except (KeyboardInterrupt, RuntimeError) as error:
                # A process that stopped first, or a worker that Ctrl-C ended, shows as RuntimeError in the others.
                if not isinstance(error, KeyboardInterrupt) and not self.interrupts.requested:
                    raise
                if self.between_steps:
                    self._keep()
                raise KeyboardInterrupt from None
            except DataError:  # an image, say: what was learnt so far is not lost
                if self.between_steps:
                    self._keep()
                raise
            finally:
                self.stepper.release()
        self.accelerator.wait_for_everyone()
        return self._result()

    def _comparable(self) -> dict[str, Any]:
        taught = {"the teacher's weights": self.teacher.digest} if self.teacher else {}
        return {**dataclasses.asdict(self.settings), "processes": self.processes, **taught}

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.stepper.load(state)
            self.progress = Progress.of(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(
                f"{self.checkpoints.last} does not fit this network; run without --resume to start again"
            ) from error
        self.best_epoch, self.best = self.checkpoints.load_best()

    def _go_back(self, error: DivergedError) -> None:
        """Go on from the last checkpoint with half the learning rate, and say so; the error where that was in vain."""
        before = self.progress.setbacks
        if len(before) == SETBACKS:
            raise CompressError(
                f"{error}, and so it was before with {2**SETBACKS} and {SETBACKS} times the learning rate: check the "
                f"images and the weights, lower --lr (it is {self._peak():.2g}), or give --clip-norm 1; the best "
                f"weights so far, of epoch {self.best_epoch}, are in {self.checkpoints.best}"
            ) from error
        self.between_steps = False
        self.accelerator.wait_for_everyone()
        state = self.checkpoints.load_last(self._comparable(), self.batches.images)
        best = self.best_epoch, self.best
        self._restore(state)
        self.best_epoch, self.best = best  # its weights may be in memory alone
        self.accelerator.wait_for_everyone()
        self.progress.setbacks = [*before, str(error)]
        told = f"{error}: gone back to step {self._number()} with half the learning rate, {self._peak():.2g}"
        LOG.warning(f"warning: {told}")
        self.between_steps = True
        self._keep()

    def _number(self) -> int:
        """The number of steps that are done."""
        return (self.progress.epoch - 1) * self.batches.steps + self.progress.step

    def _start(self) -> None:
        self.best_epoch, self.best = 0, self._validate()
        self._record(0, self.best, lr=None, train_loss=None)
        frozen = self.settings.freeze_bn
        self.progress.frozen = knows(self.best.loss, self.classes) if frozen is None else frozen
        self._compile()
        self.progress.rate = self.settings.lr
        if self.progress.rate is None:
            found = find_rate(self.stepper, self.batches, self.val, self.settings, self._set_modes)
            self.progress.rate, self.progress.found = found.rate, str(found)
            LOG.info(str(found))
        if self.main:
            self.checkpoints.clear()
            self.checkpoints.save_best(self.model, 0, self.best)
        self._end_if_restored()
        self._save()

    def _compile(self) -> None:
        """Have steps compiled where that is asked for and works."""
        if self.settings.compile:
            failed = compile_steps(self.stepper, self.batches, self._set_modes)
            self.progress.uncompiled = failed or self.progress.uncompiled

    def _end_if_restored(self) -> None:
        """Have the epoch that was done be the last one, where the network has learnt enough."""
        if self.enough is not None and self.best.top1 >= self.enough:
            self.progress.epoch = self.settings.epochs + 1

    def _save(self) -> None:
        """Write the last checkpoint and the history."""
        if not self.main or not self.stepper.finite:  # a state that is not finite is none to go back to
            return
        state = {
            "settings": self._comparable(),
            "images": self.batches.images,
            **self.stepper.state(),
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
        self._set_modes()
        steps = bar(
            progress=self.main,
            total=self.batches.steps,
            initial=at.step,
            desc=f"epoch {at.epoch}/{settings.epochs}",
            unit="step",
            leave=False,
        )
        with steps:
            number = self.epochs_before + at.epoch
            batches = self.batches.of_epoch(number, at.step)
            while at.step < self.batches.steps:
                began = time.monotonic()
                # Seeded for every step, so that dropout is the same after an interruption.
                torch.manual_seed(mixed_seed(settings.seed, number, at.step, self.rank))
                batch = self.batches.read(batches, input_dtype(self.model), self.classes)
                with self.interrupts.hold():
                    self.between_steps = False
                    lr, loss, stop = self._step(batch)
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

    def _set_modes(self) -> None:
        training_modes(self.model, self.names, self.progress.frozen)()

    def _peak(self) -> float:
        """The highest learning rate, halved at each setback."""
        return cast(float, self.progress.rate) * 0.5 ** len(self.progress.setbacks)

    def _lr(self, step: int) -> float:
        return rate_at(self._peak(), step, self.batches.steps * self.settings.epochs)

    def _step(self, batch: Batch) -> tuple[float, float, bool]:
        """The learning rate, the loss summed over all processes, and whether one of them was told to stop."""
        lr = self._lr(self._number())
        total, stop = self.stepper.step(batch, lr, self.interrupts.requested)
        if not math.isfinite(total):
            raise DivergedError(
                f"the training loss is {total} at step {self._number() + 1} (epoch {self.progress.epoch})"
            )
        return lr, total, self.interrupts.shared and stop

    def _finish_epoch(self) -> None:
        at, began = self.progress, time.monotonic()
        bad = self.accelerator.reduce(torch.tensor([float(not self.stepper.finite)], device=self.device), "sum")
        if float(bad):
            raise DivergedError(f"the weights are not finite after epoch {at.epoch}")
        with self.stepper.averaged(self.interrupts.hold):
            try:
                result = self._validate()
            except NotFiniteError as error:
                raise DivergedError(f"the network's outputs are not finite after epoch {at.epoch}") from error
            with self.interrupts.hold():
                at.seconds += time.monotonic() - began
                images = self.batches.steps * self.batches.size
                lr = self._lr(at.epoch * self.batches.steps - 1)
                self._record(at.epoch, result, lr=lr, train_loss=at.loss_sum / images)
                if better(result, self.best, self.settings.unlabelled):
                    self.best_epoch, self.best = at.epoch, result
                    if self.main:
                        self._keep_best()
                at.start_epoch()
                self._end_if_restored()
        self._keep()

    def _validate(self) -> Evaluation:
        """The accuracy of the network as the first process has it."""
        for buffer in self.model.buffers():
            broadcast(buffer)  # BatchNorm statistics differ between processes
        judge = self.teacher if self.settings.unlabelled else None
        return validated(self.model, self.val, judge, self.settings, self.device, self.example)

    def _record(self, epoch: int, result: Evaluation, lr: float | None, train_loss: float | None) -> None:
        step, what = epoch * self.batches.steps, "the teacher's class" if self.settings.unlabelled else "top-1"
        self.progress.record(epoch, self.settings.epochs, result, what, step=step, lr=lr, train_loss=train_loss)

    def _result(self) -> FinetuneResult:
        """The result, after putting the best weights into the network."""
        best_epoch, best = self.checkpoints.load_best(self.model)
        if self.unwritten:
            self.model.load_state_dict(self.unwritten)
            best_epoch, best = self.best_epoch, self.best
        return self.progress.result(best_epoch, best, self._peak())
