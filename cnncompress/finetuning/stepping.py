"""One step of a training: losses, gradients and the optimizer, on one of several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from cnncompress.errors import CompressError
from cnncompress.finetuning.averages import Average
from cnncompress.finetuning.batches import Batch
from cnncompress.finetuning.distillation import Answers
from cnncompress.finetuning.learner import Learner
from cnncompress.finetuning.optimization import Objective, make_accelerator, make_optimizer
from cnncompress.finetuning.passes import Passes
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.network.copying import undone


class DivergedError(CompressError):
    """A loss that is not finite: no step is left that helps."""


class Stepper:
    """What a step changes: the network of a learner, its optimizer and the scale of half-precision gradients.

    `size` is the number of images in a batch of all processes. `prepare` comes before the first step. `average` is that
    of the weights, where the settings ask for it.
    """

    def __init__(self, learner: Learner, settings: FinetuneSettings, device: torch.device) -> None:
        self.model, self.teacher, self.classes = learner.network, learner.teacher, learner.classes
        self.settings = settings
        self.accelerator = make_accelerator(device, settings.precision)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.optimizer: Any = make_optimizer(self.model.to(self.device), settings)
        self.average = Average(self.model, settings.ema) if settings.ema else None
        self.mix = v2.MixUp(alpha=settings.mixup, num_classes=learner.classes) if settings.mixup else None
        self.size = 0

    def prepare(self, size: int) -> None:
        """Let the engine wrap the objective and the optimizer."""
        self.size = size
        self.passes = Passes(self.model, self.teacher.passes.places if self.teacher else ())
        self.plain = Objective(self.passes, self.settings)
        self.objective, self.optimizer = self.accelerator.prepare(self.plain, self.optimizer)

    def step(self, batch: Batch, lr: float, stop: bool) -> tuple[float, bool]:
        """Learn from this process's part of a batch: the loss summed over all processes, before the step.

        The second value tells whether one of the processes was told to `stop`. The loss may not be finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        if self.mix is not None:
            batch = self._mixed(batch)
        try:
            loss = self._gradients(batch)
            if self.settings.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.objective.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        except (torch.OutOfMemoryError, CompressError) as error:
            if isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                raise CompressError(
                    f"a batch of {self.size} does not fit the GPU; lower --batch-size, or give --accumulate"
                ) from error
            raise
        if self.average is not None:
            self.average.update()
        told = loss.new_tensor([float(stop)])
        total, stops = self.accelerator.reduce(torch.cat([loss.reshape(1), told]), "sum").tolist()
        return total, stops > 0

    def _all_passes(self) -> list[Passes]:
        return [self.passes, *([self.teacher.passes] if self.teacher else [])]

    def compile(self) -> None:
        """Have the forward passes of steps compiled, with their gradients, until `release`."""
        for passes in self._all_passes():
            passes.compile()

    def release(self) -> None:
        """Have all passes run as they are."""
        for passes in self._all_passes():
            passes.release()

    def rehearse(self, batch: Batch) -> None:
        """Compute the gradients of the parts of a batch that differ in size, and forget them."""
        sizes = {len(part.images): part for part in batch.parts(self.settings.accumulate)}
        try:
            with undone(self.model), self.accelerator.no_sync(self.objective):
                for part in sizes.values():
                    self.accelerator.backward(self._loss(part))
        finally:
            self.optimizer.zero_grad()

    def _gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients part by part; the loss of all of them, in double precision."""
        parts = batch.parts(self.settings.accumulate)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss = self._loss(part)
                # Gradients are averaged over the processes; this makes them those of the mean over the whole batch.
                self.accelerator.backward(loss * (self.processes / self.size))
            total += loss.detach()
        return total

    def _loss(self, batch: Batch) -> Tensor:
        return self.objective(batch.images, batch.labels, self.expected(batch), batch.given)

    def _mixed(self, batch: Batch) -> Batch:
        """Each image and label mixed with another one's (Zhang et al. 2018)."""
        images, labels = batch.images, batch.labels
        given = images.new_zeros(len(images), dtype=torch.long) if labels is None else labels
        mixed, weights = self.mix(images, given)  # type: ignore[misc]
        return Batch(mixed, None if labels is None else weights)

    def loss(self, batches: Iterable[Batch]) -> float:
        """The loss of batches in eval mode, summed over all images of all processes; nothing is learnt."""
        modes = [(m, m.training) for m in self.model.modules()]
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    total += self._loss(batch)
        finally:
            for module, training in modes:
                module.training = training
        return float(self.accelerator.reduce(total, "sum"))

    def expected(self, batch: Batch) -> Answers | None:
        """The teacher's answers to a batch; None without a teacher."""
        if self.teacher is None:
            return None
        if batch.logits is not None:
            return Answers(batch.logits, [])
        with self.accelerator.autocast():
            return self.teacher.answers(batch.images)

    @property
    def finite(self) -> bool:
        """Whether all numbers of this process's network are finite."""
        return all(bool(t.isfinite().all()) for t in self.model.state_dict().values() if isinstance(t, Tensor))

    def state(self) -> dict[str, Any]:
        """All that a step changes, as a checkpoint has it; the tensors are the network's own."""
        scaler = self.accelerator.scaler
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        return state if self.average is None else {**state, "average": self.average.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; RuntimeError, KeyError or ValueError for that of another network."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])

    @contextmanager
    def averaged(self, hold: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Within the block the network has the average of its weights, where there is one.

        They are exchanged within `hold()`, where nothing interrupts.
        """
        swap = self.average.swap if self.average is not None else lambda: None
        try:
            with hold():
                swap()
            yield
        finally:
            with hold():
                swap()
