"""From the name of a data set to images that fit a network, and the accuracy on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cnncompress.data import Data, Images, Loader, load_data, make_loader, split
from cnncompress.errors import DataError
from cnncompress.network.copying import clone
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, evaluate
from cnncompress.network.inputs import input_dtype
from cnncompress.network.run import takes_channels_last
from cnncompress.pipeline.asked import ImagesAsked
from cnncompress.pipeline.opened import Opened, count_outputs
from cnncompress.terminal.console import LOG


def open_data(spec: str | None, opened: Opened, labels_for: str = "") -> Data | None:
    """The images of a data set, checked against the network's number of outputs; None without data.

    A set that a run was calibrated or trained on a part of is split as it was then, so that no other is evaluated.
    DataError for images without labels where they are needed: `labels_for` says what for.
    """
    if spec is None:
        return None
    data = load_data(spec, opened.preprocessing, count_outputs(opened))
    if labels_for and not data.labelled:
        raise DataError(f"{data.name}: {labels_for} needs labels, which images in folders {data.name}/CLASS/ have")
    for known in held_out(opened):
        if known["fingerprint"] == data.fingerprint:
            data = split(data, known["share"], known["seed"])
            LOG.info("%s: evaluated on the %d images that this run has not seen", data.name, len(data.val))
    return data


def held_out(opened: Opened, data: Data | None = None) -> list[dict[str, Any]]:
    """How data sets were split that a run saw a part of, as run.json has it, and how `data` is."""
    known = list(opened.run.info.get("held_out", [])) if opened.run else []
    if data is not None and data.parted is not None:
        new = dict(zip(("fingerprint", "share", "seed"), (data.fingerprint, *data.parted), strict=True))
        known += [new] if new not in known else []
    return known


def evaluate_on(model: nn.Module, data: Data | None, asked: ImagesAsked) -> Evaluation | None:
    """Accuracy on the evaluation images of `data`, read as `asked`; None without data or labels."""
    if data is None or not data.labelled:
        return None
    device = resolve_device(asked.device)
    height, width = data.val.preprocessing.size
    loader = batches_for(model, data.val, asked, asked.evaluating(height * width, device))
    on_device = model if device.type == "cpu" else clone(model).to(device)
    return evaluate(on_device, loader, device)


def batches_for(
    network: nn.Module, images: Images, asked: ImagesAsked, size: int, indices: Sequence[int] | None = None
) -> Loader:
    """Batches of `size` images, all or those at `indices`, for a network on the CPU or for copies of it on a device.

    On the CPU they are in channels_last where the network takes that.
    """
    prepared, ordered = images.preprocessing, False
    if resolve_device(asked.device).type == "cpu":
        noise = torch.rand(2, prepared.channels, *prepared.size, generator=torch.Generator().manual_seed(0))
        ordered = takes_channels_last(network, noise.to(input_dtype(network)))
    return make_loader(images, size, workers=asked.workers, indices=indices, channels_last=ordered)
