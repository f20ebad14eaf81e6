"""Gradient steps without labels: block by block, chains are trained toward what the original's block gives.

The input of a block is what the compressed network before it really produces, so later blocks make up for earlier ones.
An error e of a block's output counts as eᵀΓe, Γ the second moment of the loss gradient there for labels drawn from the
original's own answers (as in the metric `kronecker`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.training import fold, start_training
from cnncompress.correction.blocks import Block, called, columns, gradient_moments, run_block, split_blocks, weighted
from cnncompress.errors import UsageError
from cnncompress.network.copying import clone
from cnncompress.network.divergence import Answers
from cnncompress.network.graph import Runner
from cnncompress.network.inputs import in_single, input_dtype
from cnncompress.network.meaning import meaning_of
from cnncompress.network.run import forward, inference
from cnncompress.terminal.console import bar

HELD_BACK = 8  # one image in so many decides which state is kept
BATCH_IMAGES, BATCH_PIXELS = 32, 2**21  # of a step, at most
STEP_RATE = 0.01  # of a step, as a share of a tensor's own scale
RATE_LEFT = 0.4  # of the rate is left where it made the held-back images worse
CHECKS = 15  # looks at the held-back images
WARM_STEPS = 10  # steps until the rate is reached

Loss = Callable[[Tensor], Tensor]  # the mean loss of the images with these numbers


def reconstruct(
    model: nn.Module, small: nn.Module, images: Tensor, steps: int, *, seed: int = 0, progress: bool = True
) -> tuple[nn.Module, list[str]]:
    """A copy of `small`, compressed from `model`, with its chains trained on `images` [n, c, h, w]; and remarks.

    Each block (`split_blocks`) takes `steps` steps of Adam. Kernels and biases of chains move, everything else stays;
    chains that several blocks call stay too. One image in eight is held back: each block keeps the state that is best
    on those, which may be the first one. A network that torch.fx cannot follow is one block, trained toward the
    original's answers. If in the end the answers to the held-back images are further away (Kullback-Leibler
    divergence), by more than twice the standard error of the difference, the network comes back as it was.

    Half precision is trained in float32 and rounded. The same seed and number of threads give the same network.
    Raises UsageError for a negative number of steps and for fewer than two images.
    """
    if steps < 0:
        raise UsageError(f"{steps} steps of reconstruction; give 0 or more")
    if steps and len(images) < 2:
        raise UsageError(f"reconstruction needs at least 2 images, to fit and to check; there are {len(images)}")
    with torch.inference_mode(False):
        result = clone(small)
        if not steps or not chain_parameters(result):
            return result, []
        precise = images.to(torch.promote_types(input_dtype(model), torch.float32))
        session = _Session(in_single(model), in_single(result), precise, steps, seed, progress)
        start_training(session.work)
        with _frozen(session.work), inference(session.model), inference(session.work):
            session.run()
        fold(session.work)
        with torch.no_grad():
            trained = dict(_tensors(session.work))
            for name, old in _tensors(result):
                old.copy_(trained[name])
        held = images[session.held]
        before, after = divergences(model, (small, result), held)
    change = f"divergence of the answers on {len(held)} held-back images {before.mean():.4g} → {after.mean():.4g} nats"
    if not clearly_worse(before, after):
        within = ", a rise within twice its standard error" if after.mean() > before.mean() else ""
        return result, [*session.remarks, change + within]
    return clone(small), [f"reconstruction was undone, as the answers diverged more: {change}"]


def divergences(model: nn.Module, networks: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    """The Kullback-Leibler divergence of each network's answers from the model's, [n] in nats an image."""
    answers = Answers(model, images)
    return [answers.divergences(network) for network in networks]


def clearly_worse(before: Tensor, after: Tensor) -> bool:
    """Whether `after` [n] is above `before` [n] in the mean, by twice the standard error of their difference.

    The first network was fitted to the held-back images as well, so a small rise says nothing.
    """
    rise = after - before
    error = float(rise.std()) / math.sqrt(len(rise)) if len(rise) > 1 else 0.0
    return not float(rise.mean()) <= 2 * error


class _Session:
    """Trains the chains of `work`; it and the original `model` are in eval mode."""

    def __init__(
        self, model: nn.Module, work: nn.Module, images: Tensor, steps: int, seed: int, progress: bool
    ) -> None:
        self.model, self.work, self.images = model, work, images.to(next(work.parameters()).device)
        self.steps, self.seed, self.progress = steps, seed, progress
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self.held, self.fit = order.tensor_split([max(1, len(images) // HELD_BACK)])
        self.batch = max(1, min(BATCH_IMAGES, BATCH_PIXELS // max(1, images[0, 0].numel())))
        self.remarks: list[str] = []
        self.meaning = meaning_of(model, self.images)

    def run(self) -> None:
        split = split_blocks(self.model, self.work, self.images)
        if split is not None:
            self.in_order(Runner(split[0], self.model), Runner(split[0], self.work), split[1])
            return
        self.remarks.append("torch.fx cannot trace the network: all chains were trained together, not by block")
        wanted = torch.cat([forward(self.model, self.images[part]) for part in self.parts()])

        def loss(index: Tensor) -> Tensor:
            return self.meaning.divergences(wanted[index], forward(self.work, self.images[index])).mean()

        self.descend(loss, self.work, set())

    def in_order(self, theirs: Runner, ours: Runner, blocks: Sequence[Block]) -> None:
        """Train one block after the other."""
        calls = Counter(id(p) for block in blocks for p in chain_parameters(called(ours, block)))
        shared = {key for key, count in calls.items() if count > 1}
        if shared:
            self.remarks.append("chains that several blocks call were not trained")
        images = self.images[self.fit]
        moments = gradient_moments(theirs, blocks, images, self.batch, self.seed, self.meaning)
        x, y = (self.through(runner, blocks[0], self.images) for runner in (ours, theirs))
        better = 0
        todo = bar(blocks[1:], progress=self.progress, desc="reconstruct", unit="block", leave=False)
        for block, moment in zip(todo, moments, strict=True):
            todo.set_postfix_str(str(block.end))
            y = self.through(theirs, block, y)
            better += self.descend(_block_loss(ours, block, x, y, moment), called(ours, block), shared)
            if block is not blocks[-1]:
                x = self.through(ours, block, x)
        if better < len(blocks) - 1:
            self.remarks.append(f"reconstruction improved {better} of {len(blocks) - 1} blocks; the others stay")

    def parts(self) -> Iterator[Tensor]:
        """The numbers of all images, a batch at a time."""
        return iter(torch.arange(len(self.images)).split(self.batch))

    def through(self, runner: Runner, block: Block, x: Tensor) -> Tensor:
        """The block's output for all images."""
        outputs: Tensor | None = None
        for part in self.parts():
            y = run_block(runner, block, x[part])
            outputs = y.new_empty(len(x), *y.shape[1:]) if outputs is None else outputs
            outputs[part] = y
        assert outputs is not None
        return outputs

    def descend(self, loss: Loss, modules: nn.Module | Sequence[nn.Module], shared: set[int]) -> bool:
        """Train the chains among `modules` to the state that is best on the held-back images; False if it is the first.

        Where a look at these images shows no progress, the best state comes back and the rate goes down.
        """
        scales = {p: s for p, s in chain_parameters(modules).items() if id(p) not in shared}
        if not scales:
            return False
        optimizer = torch.optim.Adam([{"params": [p], "lr": 0.0} for p in scales], betas=(0.9, 0.99))
        best, state, rate, moved = self.check(loss), _values(scales), STEP_RATE, False
        every = max(1, self.steps // CHECKS)
        for p in scales:
            p.requires_grad_(True)
        for step, index in enumerate(self.minibatches()):
            now = rate * min(1, (step + 1) / WARM_STEPS) * (1 + math.cos(math.pi * step / self.steps)) / 2
            for group, scale in zip(optimizer.param_groups, scales.values(), strict=True):
                group["lr"] = now * scale
            optimizer.zero_grad()
            with torch.enable_grad():
                loss(index).backward()
            optimizer.step()
            if (step + 1) % every and step + 1 < self.steps:
                continue
            if (value := self.check(loss)) < best:
                best, state, moved = value, _values(scales), True
            else:
                _put(scales, state)
                optimizer.state.clear()
                rate *= RATE_LEFT
        _put(scales, state)
        for p in scales:
            p.requires_grad_(False)
            p.grad = None
        return moved

    def check(self, loss: Loss) -> float:
        """The loss on the held-back images."""
        return sum(float(loss(part)) * len(part) for part in self.held.split(self.batch)) / len(self.held)

    def minibatches(self) -> Iterator[Tensor]:
        """Numbers of images to fit, one minibatch a step; every image comes up before one comes again."""
        generator = torch.Generator().manual_seed(self.seed)
        size, waiting = min(self.batch, len(self.fit)), self.fit[:0]
        for _ in range(self.steps):
            if len(waiting) < size:
                waiting = torch.cat([waiting, self.fit[torch.randperm(len(self.fit), generator=generator)]])
            yield waiting[:size]
            waiting = waiting[size:]


def _block_loss(runner: Runner, block: Block, x: Tensor, y: Tensor, moment: Tensor) -> Loss:
    """How far a block's output for the inputs `x` is from `y`, weighted by `moment`."""
    return lambda index: weighted(columns(run_block(runner, block, x[index]) - y[index]), moment)


def chain_parameters(modules: nn.Module | Sequence[nn.Module]) -> dict[nn.Parameter, float]:
    """The kernels and biases of the chains in some modules, each with its scale: its root mean square.

    That of a bias is at least its kernel's, so that a bias of zeros moves.
    """
    scales: dict[nn.Parameter, float] = {}
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        for part in module.modules():
            for layer in part.weighted if isinstance(part, FactoredLayer) else []:
                scale = 0.0
                for p in layer.parameters():  # the weight comes first
                    scale = max(float(p.detach().square().mean().sqrt()), scale if p.dim() == 1 else 0.0)
                    scales.setdefault(p, scale)
    return scales


def _values(parameters: dict[nn.Parameter, float]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _put(parameters: dict[nn.Parameter, float], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.detach().copy_(value)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient; the flags come back afterwards."""
    flags = [(p, p.requires_grad) for p in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
