"""The original of a run: its architecture for latency, its weights for accuracy, its row in a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from cnncompress.data import Data
from cnncompress.errors import CompressError
from cnncompress.files.tensorfile import digest_of
from cnncompress.models import load_model
from cnncompress.models.sources import construct, model_name
from cnncompress.network.costs import Profile
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.profile import profile
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.rows import make_row, recorded
from cnncompress.reporting import Row
from cnncompress.runs import LoadedRun

NOT_AT_HAND = "the original's weights are not at hand: its accuracy was not measured"


def original_of(run: LoadedRun | None) -> nn.Module | None:
    """The original architecture of a run with random weights of its dtype, which are enough for latency.

    None without a run, and for one that was opened as a program, which tells nothing of its original.
    """
    source = run.provenance.source if run else None
    if run is None or source is None or source.kind == "program":
        return None
    dtype = next((p.dtype for p in run.model.parameters() if p.is_floating_point()), torch.float32)
    with torch.random.fork_rng(devices=[]):
        return construct(source, empty=False).to(dtype)


def original_network(opened: Opened) -> nn.Module | None:
    """The very network that a run was made of, tensor by tensor; None where it cannot be had any more."""
    if opened.run is None:
        return opened.model
    known = opened.run.info.get("model") or {}
    source, prepared = opened.provenance.source, opened.run.preprocessing
    try:
        rebuilt = load_model(
            model_name(source),
            known["weights"],
            input_size=prepared.size if prepared else None,
            arguments=source.kwargs,
            seed=known.get("seed", 0),
        ).model
    except (CompressError, KeyError, TypeError):
        return None
    return rebuilt if digest_of(rebuilt.state_dict()) == known.get("sha256") else None


def original_row(
    opened: Opened, cost: Profile, data: Data | None, measure: Callable[[nn.Module], Evaluation | None]
) -> Row:
    """The row of a network, or of a run's original, with its accuracy on the evaluation images of `data`.

    `cost` is that of the opened network. A run's row keeps what was measured on other images where its original is not
    at hand.
    """
    if opened.run is None:
        return make_row(opened.name, "original", cost, measure(opened.model), data)
    rows = recorded(opened).rows[:1]
    if not rows:
        plain = original_of(opened.run)
        rows = [Row.of(opened.name, "original", cost if plain is None else profile(plain, opened.example()))]
    return measured_again(rows[0], opened, data, measure)


def measured_again(
    row: Row, opened: Opened, data: Data | None, measure: Callable[[nn.Module], Evaluation | None]
) -> Row:
    """The row of an original with its accuracy on the evaluation images of `data`, where it is not of these already."""
    if data is None or row.kind != "original" or (row.data, row.images) == (data.fingerprint, len(data.val)):
        return row
    network = original_network(opened)
    return row if network is None else with_accuracy(row, measure(network), data)


def with_accuracy(row: Row, result: Evaluation | None, data: Data | None) -> Row:
    """A row with what was measured on `data`, and nothing else; as it is where that is what it has."""
    top1, top5, images = (result.top1, result.top5, result.images) if result else (None, None, None)
    measured = dataclasses.replace(row, top1=top1, top5=top5, images=images, data=data.fingerprint if data else None)
    return row if measured == row else dataclasses.replace(measured, top1_error=None)
