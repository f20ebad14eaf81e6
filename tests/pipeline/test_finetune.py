"""The rows of a fine-tuned run: what the newest network differs by from the original, and how certain that is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from cnncompress.network.evaluate import Evaluation, with_answers
from cnncompress.pipeline import finetune
from cnncompress.reporting import Report, Row

ORIGINAL = Row("net", "original", 10, 10, 40, 50.0, 100.0, 4, data="d")
TUNED = Row("net macs=0.5, fine-tuned", "finetuned", 5, 5, 20, 75.0, 100.0, 4, data="d")


class Labelled:
    """An image of each class."""

    def __len__(self):
        return 2

    def name(self, i):
        return ("dog/a.png", "cat/a.png")[i]

    def label(self, i):
        return i


def evaluation(*hits):
    """Of images of class 1, which all others are taken for class 0."""
    answers = torch.tensor([[1, hit] for hit in hits])
    return with_answers(Evaluation(100 * sum(hits) / len(hits), 100.0, 1.0, len(hits)), answers)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_the_newest_row_has_its_paired_standard_error(there, kept, monkeypatch):
    """One image of four changes from wrong to right: the variance is 3/16, its error 100 √(3/16/4) points.

    The tuned network answers again only where its answers were not kept.
    """
    results = {"original": evaluation(1, 1, 0, 0), "tuned": evaluation(1, 1, 1, 0)}
    after = results.pop("tuned") if kept else dataclasses.replace(results["tuned"], answers=None)
    monkeypatch.setattr(finetune, "original_network", lambda opened: "original" if there else None)
    opened, data = SimpleNamespace(model="tuned"), SimpleNamespace(fingerprint="d", val=Labelled())
    report = Report([ORIGINAL, TUNED])
    finetune.beside_original(report, opened, data, results.__getitem__, after)
    first, last = report.rows
    assert (first, last.top1) == (ORIGINAL, 75.0)
    assert last.top1_error == (pytest.approx(100 * (3 / 64) ** 0.5) if there else None)
    alone = Report([TUNED])
    finetune.beside_original(alone, opened, data, results.__getitem__, after)
    assert alone.rows == [TUNED]


def test_the_newest_network_has_the_classes_that_it_lost(monkeypatch):
    """Two of four images of class 1 are taken for class 0 by the tuned network, none by the original."""
    results = {"original": evaluation(1, 1, 1, 1), "tuned": evaluation(1, 1, 0, 0)}
    monkeypatch.setattr(finetune, "original_network", lambda opened: "original")
    opened, data = SimpleNamespace(model="tuned"), SimpleNamespace(fingerprint="d", val=Labelled())
    report = Report([ORIGINAL, TUNED])
    finetune.beside_original(report, opened, data, results.__getitem__, results["tuned"])
    (change,) = report.changes
    assert change.network == TUNED.name
    assert [(row.name, row.before, row.after) for row in change.lost] == [("cat", 100.0, 50.0)]
    assert [(one.name, one.taken_for, one.before, one.after) for one in change.confused] == [("cat", "dog", 0, 2)]
