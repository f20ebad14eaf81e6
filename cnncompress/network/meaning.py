"""How the outputs of a network are read as distributions: their divergence, and samples from them.

Rows of two or more numbers are the logits of classes. They are probabilities of classes where the network ends in a
softmax, and independent probabilities where it ends in a sigmoid. All other outputs (a single number, maps) are real
numbers: the network gives the mean of a normal distribution, whose variance is that of its outputs over the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnncompress.network.run import forward, inference

LEAST_PROBABILITY = 1e-7  # of a sigmoid: keeps its logarithm finite
Kind = Literal["logits", "probabilities", "separate", "numbers"]
RESHAPING = frozenset({"flatten", "squeeze", "unsqueeze", "view", "reshape", "__getitem__", "contiguous", "permute"})
NOTES: dict[Kind, str] = {
    "probabilities": "the network ends in a softmax: its outputs are read as the probabilities of classes",
    "separate": "the network ends in a sigmoid: each of its outputs is read as a probability",
    "numbers": "the network's outputs are not scores [images, classes]: they are read as real numbers, whose errors "
    "are measured relative to their variance; accuracy is not defined",
}


@dataclass(frozen=True)
class Meaning:
    """How the answers [n, ...] of a network are read: as logits, probabilities or real numbers."""

    kind: Kind = "logits"

    @property
    def classes(self) -> bool:
        """True where the answers are scores or probabilities of exclusive classes."""
        return self.kind in ("logits", "probabilities")

    def log_probabilities(self, answers: Tensor) -> Tensor:
        """The logarithm of the probability of each class, [n, classes]."""
        if self.kind == "probabilities":
            return answers.clamp_min(torch.finfo(answers.dtype).tiny).log()
        return F.log_softmax(answers, 1)

    def divergences(self, expected: Tensor, answers: Tensor) -> Tensor:
        """The Kullback-Leibler divergence KL(expected ‖ answers) of each image, [n] in nats.

        For maps it is the mean over the positions.
        """
        if self.classes:
            p, q = self.log_probabilities(expected), self.log_probabilities(answers)
            return (p.exp() * (p - q)).sum(1)
        if self.kind == "numbers":
            return _per_image((answers - expected).square() / (2 * spread(expected)))
        p, q = (x.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY) for x in (expected, answers))
        return _per_image(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())

    def sampled_loss(self, answers: Tensor, seeds: Sequence[int]) -> Tensor:
        """−Σ log p(sample) over the images; each image has one sample from its own answer, drawn with its seed.

        Only the gradient is of use. For real numbers it is that of a normal distribution of variance 1.
        """
        rows = answers.detach().double().cpu().numpy()
        draws = [np.random.default_rng(seed) for seed in seeds]
        if self.classes:
            chances = self.log_probabilities(answers.detach().double()).exp().cumsum(1).cpu()
            chance = torch.tensor([draw.random() for draw in draws], dtype=torch.float64)
            label = torch.searchsorted(chances, chance[:, None]).flatten()
            label = label.clamp(max=answers.shape[1] - 1).to(answers.device)
            return F.nll_loss(self.log_probabilities(answers), label, reduction="sum")
        if self.kind == "numbers":
            noise = np.stack([draw.standard_normal(row.shape) for draw, row in zip(draws, rows, strict=True)])
            return (answers * torch.from_numpy(noise).to(answers)).sum() / _positions(answers) ** 0.5
        drawn = np.stack([draw.random(row.shape) < row for draw, row in zip(draws, rows, strict=True)])
        wanted = torch.from_numpy(drawn).to(answers)
        clamped = answers.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        losses = F.binary_cross_entropy(clamped, wanted, reduction="sum")
        return losses / _positions(answers) ** 0.5


def spread(answers: Tensor) -> float:
    """The variance of all the numbers in some answers; 1 where they are all the same."""
    return float(answers.detach().double().var(unbiased=False)) or 1.0


def _positions(answers: Tensor) -> int:
    return answers[0, 0].numel() if answers.dim() > 2 else 1


def _per_image(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1) / _positions(values)


def meaning_of(model: nn.Module, images: Tensor) -> Meaning:
    """How the answers of a network are to be read, found in a forward pass of the first of `images`."""
    with inference(model), _Watch() as watch:
        answers = forward(model, images[:1])
    rows = answers.dim() == 2 and answers.shape[1] > 1
    last = watch.last(answers)
    if "sigmoid" in last and "log" not in last:
        return Meaning("separate")
    if not rows:
        return Meaning("numbers")
    return Meaning("probabilities" if last in ("softmax", "_softmax") else "logits")


class _Watch(TorchFunctionMode):
    """Records which function made each tensor, and from which tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[str, Tensor | None, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(result, Tensor) and not (name in RESHAPING and any(a is result for a in args)):
            source = next((a for a in args if isinstance(a, Tensor) and a is not result), None)
            self.made[id(result)] = name, source, result
        return result

    def last(self, tensor: Tensor) -> str:
        """The name of the function that computed a tensor; functions that only reshape it do not count."""
        name, source, _ = self.made.get(id(tensor), ("", None, tensor))
        while name in RESHAPING and source is not None:
            name, source, _ = self.made.get(id(source), ("", None, source))
        return name.rstrip("_")
