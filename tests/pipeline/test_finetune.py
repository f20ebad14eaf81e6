"""The rows of a fine-tuned run: what the newest network differs by from the original, and how certain that is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline import finetune
from cnncompress.reporting import Row

ORIGINAL = Row("net", "original", 10, 10, 40, 50.0, 100.0, 4, data="d")
TUNED = Row("net macs=0.5, fine-tuned", "finetuned", 5, 5, 20, 75.0, 100.0, 4, data="d")


def evaluation(*hits):
    return Evaluation(100 * sum(hits) / len(hits), 100.0, 1.0, len(hits), torch.tensor(hits, dtype=torch.bool))


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_the_newest_row_has_its_paired_standard_error(there, kept, monkeypatch):
    """One image of four changes from wrong to right: the variance is 3/16, its error 100 √(3/16/4) points.

    The tuned network answers again only where the images that it was right on were not kept.
    """
    results = {"original": evaluation(1, 1, 0, 0), "tuned": evaluation(1, 1, 1, 0)}
    after = results.pop("tuned") if kept else dataclasses.replace(results["tuned"], hits=None)
    monkeypatch.setattr(finetune, "original_network", lambda opened: "original" if there else None)
    opened, data = SimpleNamespace(model="tuned"), SimpleNamespace(fingerprint="d")
    first, last = finetune.beside_original([ORIGINAL, TUNED], opened, data, results.__getitem__, after)
    assert (first, last.top1) == (ORIGINAL, 75.0)
    assert last.top1_error == (pytest.approx(100 * (3 / 64) ** 0.5) if there else None)
    assert finetune.beside_original([TUNED], opened, data, results.__getitem__, after) == [TUNED]
