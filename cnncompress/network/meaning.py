"""What the answers of a network mean: how far two of them are apart, and what the network itself would draw.

Rows of two or more numbers are logits of classes, or their probabilities where the network ends in a softmax. After a
sigmoid every number is a probability of its own. All else (a single number, maps) are numbers, normally distributed
around what the network says, with the spread of its own answers.
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

Kind = Literal["logits", "probabilities", "separate", "numbers"]
RESHAPING = frozenset({"flatten", "squeeze", "unsqueeze", "view", "reshape", "__getitem__", "contiguous", "permute"})
SAID: dict[Kind, str] = {
    "probabilities": "the network ends in a softmax: its outputs are read as the probabilities of classes",
    "separate": "the network ends in a sigmoid: each of its outputs is read as a probability",
    "numbers": "the network's outputs are no [images, classes]: they are read as numbers, and an error of them is "
    "measured against their spread; no accuracy is known",
}


@dataclass(frozen=True)
class Meaning:
    """How the answers [n, ...] of a network are read."""

    kind: Kind = "logits"

    @property
    def classes(self) -> bool:
        """True where the answers tell classes apart."""
        return self.kind in ("logits", "probabilities")

    def log_probabilities(self, answers: Tensor) -> Tensor:
        """The logarithm of the probability of each class, [n, classes]."""
        if self.kind == "probabilities":
            return answers.clamp_min(torch.finfo(answers.dtype).tiny).log()
        return F.log_softmax(answers, 1)

    def divergences(self, expected: Tensor, found: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of the answers `found` from those `expected`, [n] in nats an image.

        Of maps it is the mean over the positions.
        """
        if self.classes:
            p, q = self.log_probabilities(expected), self.log_probabilities(found)
            return (p.exp() * (p - q)).sum(1)
        if self.kind == "numbers":
            return _an_image((found - expected).square() / (2 * spread(expected)))
        p, q = (x.clamp(TINY, 1 - TINY) for x in (expected, found))
        return _an_image(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())

    def sampled_loss(self, answers: Tensor, seeds: Sequence[int]) -> Tensor:
        """The sum over the images of −log p of what is drawn from the network's own answers, one draw for each seed.

        Only its gradient means something. For numbers it is that of a spread of 1.
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
        losses = F.binary_cross_entropy(answers.clamp(TINY, 1 - TINY), wanted, reduction="sum")
        return losses / _positions(answers) ** 0.5


TINY = 1e-7


def spread(answers: Tensor) -> float:
    """The variance of all the numbers in some answers; 1 where they are all the same."""
    return float(answers.detach().double().var(unbiased=False)) or 1.0


def _positions(answers: Tensor) -> int:
    return answers[0, 0].numel() if answers.dim() > 2 else 1


def _an_image(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1) / _positions(values)


def meaning_of(model: nn.Module, images: Tensor) -> Meaning:
    """How the answers of a network are to be read, from a forward pass on the first of `images`."""
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
    """Knows which function made which tensor, of what."""

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
        """The name of the function that made a tensor, whatever only gave it another shape afterwards."""
        name, source, _ = self.made.get(id(tensor), ("", None, tensor))
        while name in RESHAPING and source is not None:
            name, source, _ = self.made.get(id(source), ("", None, source))
        return name.rstrip("_")
