"""The running sums of one layer."""

from __future__ import annotations

import zlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.kinds import kind_of, spec_of, weight_of
from cnncompress.network.positions import sample_positions
from cnncompress.network.processes import add_up
from cnncompress.statistics.moments import Moments, Samples

WIDEST_MOMENT = 8192  # inputs a position; the moment of a wider layer would take half a gigabyte: it keeps samples
PATCHES_AT_ONCE = 2048  # patches gathered at once


class LayerSums:
    """The sums of one layer so far, in this process. `needs`: some of moment, gradient, sensitivity."""

    def __init__(self, name: str, module: nn.Module, needs: Collection[str]) -> None:
        self.name, self.module, self.kind, self.spec = name, module, kind_of(module), spec_of(module)
        self.key = zlib.crc32(name.encode())
        self.called = False
        device, shape = weight_of(module).device, self.spec.weight_shape
        g, n, F = self.spec.groups, shape[1] * shape[2] * shape[3], shape[0]
        self.inputs: Moments | Samples | None = None
        if "moment" in needs:
            self.inputs = Samples(g, n, device) if n > WIDEST_MOMENT else Moments(g, n, device)
        self.gradient = torch.zeros(F, F, dtype=torch.float64, device=device) if "gradient" in needs else None
        # sums of squares lose little in float32, and a network may have 1e8 of them
        self.sensitivity = torch.zeros(shape, device=device) if "sensitivity" in needs else None

    def add_inputs(self, x: Tensor, seeds: list[int], call: int, positions: int | None) -> None:
        """Take in the input of one call.

        `seeds` has one number for each image, `positions` is how many patches of each are looked at.
        """
        if self.inputs is None:
            return
        count = self.kind.position_count(x, self.spec)
        index, priority = sample_positions(seeds, (self.key, call), count, positions)
        each = max(1, len(index) // (len(seeds) if count % len(seeds) == 0 else 1))
        most = max(1, PATCHES_AT_ONCE // each) * each  # whole images
        for part, order in zip(index.split(most), priority.split(most), strict=True):
            self.inputs.add(self.kind.patches(x, self.spec, part), order, len(part) // each)

    def add_gradient(self, gradient: Tensor | None) -> None:
        """Take in the gradient of the loss at the layer's output: Σ over images and positions of ggᵀ.

        None is that behind an operator that lets none through.
        """
        if self.gradient is not None and gradient is not None:
            rows = self.kind.rows(gradient, self.spec)
            self.gradient += rows.T @ rows

    def add_sensitivity(self, gradient: Tensor | None) -> None:
        """Take in the gradient of one image, toward one wrong class, at the layer's weight."""
        if self.sensitivity is not None and gradient is not None:
            gradient = self.kind.dense(self.module, gradient).float()
            self.sensitivity.addcmul_(gradient, gradient)

    def result(self, images: int, wrong_classes: int) -> LayerStatistics:
        """The means over the images of all processes, which must all call it; CompressError where they overflow.

        Empties the sums.
        """
        g, n = self.spec.groups, self.spec.weights // self.spec.out_channels
        statistics = LayerStatistics(images, 0, torch.zeros(g, n))
        if self.inputs is not None:
            statistics.rows, statistics.mean, statistics.moment, statistics.samples = self.inputs.result()
            statistics.independent = self.inputs.independent
        if self.gradient is not None:
            statistics.gradient = (add_up(self.gradient) / images).float().cpu()
        if self.sensitivity is not None:
            statistics.sensitivity = add_up(self.sensitivity).div_(images * wrong_classes).cpu()
        self.inputs = self.gradient = self.sensitivity = None
        for tensor in (
            statistics.mean,
            statistics.moment,
            statistics.samples,
            statistics.gradient,
            statistics.sensitivity,
        ):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise CompressError(f"the statistics of layer {self.name} are not finite: its inputs are too large")
        return statistics
