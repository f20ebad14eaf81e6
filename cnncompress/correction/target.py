"""What a layer should do, given the inputs that it really gets in the compressed network."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.maths.linalg import mean_eigenvalue, oas_shrinkage, solve_psd
from cnncompress.metrics import LayerStatistics
from cnncompress.network.kinds import LayerKind


@dataclasses.dataclass(frozen=True)
class Positions:
    """The output positions of a layer that are looked at: `index` [R], counted as its kind counts them."""

    kind: LayerKind
    spec: ConvSpec
    index: Tensor

    def patches(self, x: Tensor) -> Tensor:
        """What the kernel sees there of an input, [R, g, n]."""
        return self.kind.patches(x, self.spec, self.index)

    def outputs(self, y: Tensor) -> Tensor:
        """The outputs there, [R, F]."""
        return self.kind.outputs(y, self.spec, self.index)


@dataclasses.dataclass
class Samples:
    """Real inputs x̃ of a layer less their `mean` [g, n]: `centred` [g, R, n], of `images`, and their second moment."""

    mean: Tensor
    centred: Tensor
    moment: Tensor  # float64 [g, n, n]
    images: int
    free: bool = True  # a bias takes the mean

    @classmethod
    def of(cls, patches: Tensor, images: int, free: bool = True) -> Samples:
        """From patches [R, g, n]; where no bias is free to take the mean, it stays."""
        patches, count = patches.movedim(1, 0), len(patches)
        mean = patches.mean(1, dtype=torch.float64) * free
        centred = patches - mean[:, None].to(patches.dtype) if free else patches
        return cls(mean, centred, (centred.mT @ centred).double() / count, images, free)

    @property
    def statistics(self) -> LayerStatistics:
        """As the metrics take them."""
        return LayerStatistics(self.images, self.centred.shape[1], self.mean.float(), self.moment.float())

    def outputs(self, kernel: Tensor) -> Tensor:
        """What a kernel [F, C/g, kh, kw] makes of the inputs, without a bias, [R, F]."""
        parts = kernel.to(self.centred.dtype).flatten(1).chunk(len(self.mean))
        varying = torch.cat([rows @ part.mT for rows, part in zip(self.centred, parts, strict=True)], 1)
        if not self.free:
            return varying
        return varying + torch.cat([part @ mean.to(part) for mean, part in zip(self.mean, parts, strict=True)])

    def target(self, weight: Tensor, spec: ConvSpec, outputs: Tensor) -> Tensor:
        """W' [F, C/g, kh, kw], whose outputs from these inputs are nearest to `outputs` [R, F] but for a bias.

        W' is drawn to W as the second moment is to a multiple of the identity: as if there were further samples whose
        inputs are those of the original network, so that few images change little.
        """
        count = self.centred.shape[1]
        wanted = outputs.unflatten(1, (spec.groups, -1)).movedim(1, 0)  # [g, R, F/g]
        if self.free:
            wanted = wanted - wanted.mean(1, keepdim=True, dtype=torch.float64).to(outputs.dtype)
        cross = (wanted.mT @ self.centred).double() / count
        solutions = []
        parts = weight.double().flatten(1).chunk(spec.groups)
        for part, m, c in zip(parts, self.moment, cross, strict=True):
            share, level = oas_shrinkage(m, count), mean_eigenvalue(m)
            ridge = share * level * torch.eye(len(m), dtype=torch.float64)
            solutions.append(solve_psd((1 - share) * m + ridge, (1 - share) * c + share * level * part))
        return torch.cat(solutions).reshape(spec.weight_shape)
