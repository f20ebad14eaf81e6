"""Two evaluations on the same images, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cnncompress.data import Data
from cnncompress.data.loading import Images
from cnncompress.network.evaluate import Evaluation
from cnncompress.reporting.classes import ClassChanges, ClassRow, Confusion

MOST = 10  # classes and confusions that are told


@dataclass(frozen=True)
class Answered:
    """The labels of images [n], and what a network's original and the network take them for."""

    labels: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, before: Evaluation | None, after: Evaluation | None) -> Answered | None:
        """Of two evaluations; None where one is not known, or the images are not the same."""
        if before is None or after is None or before.answers is None or after.answers is None:
            return None
        if not torch.equal(before.answers[:, 0], after.answers[:, 0]):
            return None
        return cls(before.answers[:, 0], before.answers[:, 1], after.answers[:, 1])

    def at(self, image: int) -> tuple[int, int, int]:
        """The label of an image and both answers."""
        return int(self.labels[image]), int(self.before[image]), int(self.after[image])


def class_changes(
    network: str, before: Evaluation | None, after: Evaluation | None, data: Data | None
) -> list[ClassChanges]:
    """What `network` answers otherwise than its original, class by class; nothing where that is not known."""
    answered = Answered.of(before, after)
    if answered is None or data is None:
        return []
    names = class_names(data.val)
    classes = len(answered.labels.unique())
    return [ClassChanges(network, classes, _lost(answered, names), _grown(answered, names))]


def class_names(images: Images) -> dict[int, str]:
    """The names of classes by their index: those of their folders, or numbers where images lie in none."""
    names: dict[int, str] = {}
    for i in range(len(images)):
        folder, slash, _ = images.name(i).partition("/")  # folders within one are no classes of their own
        names.setdefault(images.label(i), folder if slash else number_of(images.label(i)))
    return names


def number_of(label: int) -> str:
    """What a class without a name is called."""
    return f"class {label}"


def _lost(answered: Answered, names: Mapping[int, str]) -> tuple[ClassRow, ...]:
    """The classes of which fewer images are right than before, those that lost most first."""
    rows = []
    for label in answered.labels.unique().tolist():
        mine = answered.labels == label
        was, now = answered.before[mine] == label, answered.after[mine] == label
        count, alone = int(mine.sum()), int((was != now).sum())
        before, after = (100 * int(hits.sum()) / count for hits in (was, now))
        rows.append((int(was.sum()) - int(now.sum()), names[label], count, before, after, 100 * alone**0.5 / count))
    rows.sort(key=lambda row: (-row[0], row[2]))
    return tuple(ClassRow(*row[1:]) for row in rows[:MOST] if row[0] > 0)


def _grown(answered: Answered, names: Mapping[int, str]) -> tuple[Confusion, ...]:
    """The pairs of a class and another that more images of it are taken for than before, the largest rise first."""
    counts: dict[tuple[int, int], list[int]] = {}
    for place, guesses in enumerate((answered.before, answered.after)):
        wrong = torch.stack([answered.labels, guesses], 1)[guesses != answered.labels]
        for label, guess in wrong.tolist():
            counts.setdefault((label, guess), [0, 0])[place] += 1
    grown = [(now - was, label, guess, was, now) for (label, guess), (was, now) in counts.items() if now > was]
    grown.sort(key=lambda row: (-row[0], row[3], row[1], row[2]))
    told = [(names[label], names.get(guess, number_of(guess)), was, now) for _, label, guess, was, now in grown[:MOST]]
    return tuple(Confusion(*row) for row in told)
