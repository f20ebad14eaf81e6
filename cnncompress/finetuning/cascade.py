"""The cascade: layer after layer is decomposed and frozen, what is above it fine-tuned (Denton et al. 2014, 4.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from cnncompress.chains.plan import Plan
from cnncompress.correction.refit import Correction
from cnncompress.correction.sequential import fit_in_order, most_images
from cnncompress.data import make_loader
from cnncompress.data.sample import evenly
from cnncompress.files.tensorfile import digest_of
from cnncompress.finetuning.checkpoints import Checkpoints
from cnncompress.finetuning.lessons import Origin
from cnncompress.finetuning.optimization import better
from cnncompress.finetuning.progress import Progress
from cnncompress.finetuning.schedules import modules_above
from cnncompress.finetuning.session import Session, in_training, rounded_to
from cnncompress.finetuning.settings import CascadeStep, FinetuneResult
from cnncompress.finetuning.steps import Step, check_made_of, in_short, of_layers, steps_of, with_chains
from cnncompress.finetuning.story import StepCheckpoints, Story, read_story
from cnncompress.fitting import fit_alone
from cnncompress.metrics import LayerStatistics, get_metric
from cnncompress.names.schedules import parse_schedule
from cnncompress.network.compressed import Compressed
from cnncompress.network.copying import clone
from cnncompress.network.inputs import in_single, input_dtype, read_batch
from cnncompress.network.processes import as_the_first, processes
from cnncompress.network.provenance import Provenance
from cnncompress.network.subject import look_at
from cnncompress.network.trace import trace
from cnncompress.statistics import collect_statistics
from cnncompress.terminal.console import LOG, is_main_process
from cnncompress.terminal.words import points


class Cascade:
    """Makes of an original, layer by layer, the network that a plan makes of it, and puts its weights into `model`.

    Each step decomposes its layers, by the methods and ranks of the plan, from the weights that the steps before left.
    In the plan's metric, the statistics are those of the network so far, with the layers of all steps before in chains.
    Where these come from images, several layers of a step are fitted in network order, each to what the chains before
    it really give, toward the outputs of the network so far (`correction.decompose_in_order`). Then
    all that is called after these layers is trained; they and all before them keep their parameters, and the statistics
    of their normalisations. A step ends after the epochs of the settings, or as soon as the network is within
    `until_drop` of the original, and leaves its best weights. What no parameters are above is decomposed only.
    Where that ends no better than it was, `model` keeps its weights.

    UsageError for a plan that has no such steps. In several processes, all of them go through the steps together.
    """

    def __init__(self, model: nn.Module, origin: Origin, session: Session, files: Checkpoints) -> None:
        self.model, self.plan, self.session, self.files = model, origin.plan, session, files
        self.images = session.lessons.train if origin.images is None else origin.images
        self.original = clone(in_single(origin.network)).cpu()
        group = parse_schedule(session.settings.schedule)[1]
        self.steps = steps_of(self.plan, self.original, session.example(self.original), group)
        check_made_of(model, self.original, self.plan)
        self.untrained: list[int] = []  # steps with nothing to train
        self.setbacks: list[str] = []  # of steps that went back to a checkpoint
        self.uncompiled: dict[str, list[int]] = {}  # steps, by the reason why they were not compiled
        files.origin |= {
            "the original's weights": digest_of(origin.network.state_dict()),
            "the plan": in_short(self.plan),
        }

    def run(self, resume: bool) -> FinetuneResult:
        """Go through the steps; the compressed network then has the weights of the last one, or keeps its own."""
        network = self._resumed() if resume else self._begun()
        for step in self.steps[self.story.step :]:
            self.story.step = step.number
            self._say(step)
            network = self._decomposed(network, step)
            self._trained(network, step, None)
        return self._result(network)

    def _begun(self) -> nn.Module:
        start, original = self.session.validated(self.model), self.session.validated(self.original)
        self.story = Story(len(self.steps), start, original)
        self.session = self.session.until(original)
        first = Progress()
        first.record(0, 0, original, step=0, lr=None, train_loss=None)
        self.story.rows = self.story.told([], first.history)
        return self.original

    def _resumed(self) -> nn.Module:
        """The network of the step that was under way, which is gone through to its end."""
        settings = dataclasses.asdict(self.session.settings)
        state = self.files.load_last(settings, len(self.session.lessons.train))  # type: ignore[arg-type]
        self.story = read_story(state, len(self.steps), self.files)
        self.session = self.session.until(self.story.original)
        step = self.steps[self.story.step - 1]
        self._say(step)
        network = with_chains(self.original, self.plan, self._layers())
        self._trained(network, step, state)
        return network

    def _say(self, step: Step) -> None:
        LOG.info("cascade: step %d of %d: %s", step.number, len(self.steps), step.words)

    def _layers(self) -> list[str]:
        """The layers that are decomposed so far."""
        return [name for step in self.steps[: self.story.step] for name in step.layers]

    def _decomposed(self, network: nn.Module, step: Step) -> nn.Module:
        """A copy of the network with the layers of a step decomposed."""
        part, statistics = of_layers(self.plan, step.layers), self._statistics(network, list(step.layers))
        if statistics and len(step.layers) > 1:
            found = self._in_order(network, part, statistics)
        else:
            found = fit_alone(network, Provenance(), part, statistics=statistics, progress=False)
        self.story.errors |= {name: found.provenance.errors[name] for name in step.layers}
        as_the_first(found.network)
        return found.network

    def _in_order(self, network: nn.Module, part: Plan, statistics: Mapping[str, LayerStatistics]) -> Compressed:
        """The network with some layers decomposed, each fitted to what the chains before it make of the images."""
        example = self.session.example(network)
        indices = self._indices(most_images(trace(network, example)))
        images = torch.cat([read_batch(batch, example.dtype, labels=False)[0] for batch in self._loader(indices)])
        subject, how = look_at(network, images[:1]), Correction(seed=self.session.settings.seed)
        return fit_in_order(subject, part, images, statistics, how, progress=False).made

    def _statistics(self, network: nn.Module, names: list[str]) -> dict[str, LayerStatistics]:
        """The statistics of the inputs and outputs of some layers in the network so far, as far as the metric needs."""
        if not get_metric(self.plan.metric).needs:
            return {}
        settings, (rank, world) = self.session.settings, processes()
        loader = self._loader(self._indices(settings.calibration_images)[rank::world])
        found = collect_statistics(
            network, loader, self.plan.metric, layers=names, seed=settings.seed, device=self.session.device
        )
        network.to("cpu")
        return found

    def _indices(self, most: int) -> list[int]:
        """The images to decompose by, at most so many."""
        return evenly(len(self.images), min(most, self.session.settings.calibration_images))  # type: ignore[arg-type]

    def _loader(self, indices: list[int]) -> Iterable[Any]:
        """These images, in batches."""
        if hasattr(self.images, "set_epoch"):
            self.images.set_epoch(0)
        settings = self.session.settings
        return make_loader(self.images, settings.batch_size, workers=settings.workers, indices=indices)

    def _trained(self, network: nn.Module, step: Step, state: dict[str, Any] | None) -> None:
        """Train what is above the layers so far, and note what came out."""
        settings, layers = self.session.settings, list(step.layers)
        files = StepCheckpoints(self.files, self.story, layers, state)
        with in_training(network, self.session.device, False):
            names = modules_above(network, self.session.example(network), self._layers())
            if names and settings.epochs:
                session = dataclasses.replace(self.session, epochs_before=settings.epochs * (step.number - 1))
                result = session.run(network, names, files, state is not None)
            else:
                result = self._only_decomposed(network, files)
        if not names:
            self.untrained.append(step.number)
        self.setbacks += [f"step {step.number}: {result.note}"] if "went back" in result.note else []
        if result.uncompiled:
            self.uncompiled.setdefault(result.uncompiled, []).append(step.number)
        done = CascadeStep(
            tuple(layers), step.words, self.story.reached, result.start, result.best, len(result.history) - 1
        )
        self.story.rows = self.story.told(layers, result.history)
        self.story.done.append(done)

    def _only_decomposed(self, network: nn.Module, files: StepCheckpoints) -> FinetuneResult:
        """The result of a step that nothing is left to train in."""
        found, progress = self.session.validated(network), Progress()
        if self.story.step == 1 and is_main_process():
            files.clear()
        progress.record(0, 0, found, step=0, lr=None, train_loss=None)
        return FinetuneResult(found, 0, found, found, progress.history)

    def _result(self, network: nn.Module) -> FinetuneResult:
        """What the cascade came to, after putting the weights into the compressed network where they are better."""
        story = self.story
        if is_main_process():
            self.files.save_history(story.rows)
        last, notes = story.reached, self._notes()
        changed = better(last, story.start, self.session.settings.unlabelled)
        if changed:
            self.model.load_state_dict(network.state_dict())
            if (dtype := input_dtype(self.model)).itemsize < torch.float32.itemsize:
                notes.append(rounded_to(dtype))
                last = self.session.validated(self.model)
        else:
            notes.append("the cascade came to nothing better than the network was, whose weights are kept")
            last = story.start
        for note in notes:
            LOG.info(note)
        said, steps = "; ".join(notes), tuple(story.done)
        found = FinetuneResult(last, 0, story.reached, story.start, story.rows, said, steps=steps)
        return dataclasses.replace(found, best_epoch=len(story.done), errors=story.errors) if changed else found

    def _notes(self) -> list[str]:
        """What is to be said of steps that trained nothing, or did not come near the original again."""
        enough = self.session.enough
        notes = [f"{_numbered(steps)}: {reason}" for reason, steps in self.uncompiled.items()]
        notes += self.setbacks
        if self.untrained:
            notes.append(f"nothing is left to train above the layers of {_numbered(self.untrained)}")
        far = [i for i, done in enumerate(self.story.done, 1) if enough is not None and done.tuned.top1 < enough]
        if far:
            drop = points(self.session.settings.until_drop or 0.0)
            notes.append(f"top-1 was not within {drop} of the original's after {_numbered(far)}")
        return notes


def _numbered(steps: list[int]) -> str:
    return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
