"""What a layer should do, given the inputs that it really gets in the compressed network."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.maths.linalg import mean_eigenvalue, oas_shrinkage, solve_psd
from cnncompress.maths.sampling import energies, independent_rows, row_mean
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
    independent: int = 1  # as how many independent rows they count

    @classmethod
    def of(cls, patches: Tensor, images: int, free: bool = True) -> Samples:
        """From patches [R, g, n]; where no bias is free to take the mean, it stays."""
        patches, count = patches.movedim(1, 0), len(patches)
        mean = row_mean(patches) * free
        centred = patches - mean[:, None].to(patches.dtype) if free else patches
        moment = (centred.mT @ centred).double() / count
        owners = images if count % images == 0 else 1
        independent = independent_rows(moment, energies(centred, owners), owners, count)
        return cls(mean, centred, moment, images, free, independent)

    @property
    def statistics(self) -> LayerStatistics:
        """As the metrics take them."""
        rows, mean, moment = self.centred.shape[1], self.mean.float(), self.moment.float()
        return LayerStatistics(self.images, rows, mean, moment, independent=self.independent)

    def outputs(self, kernel: Tensor) -> Tensor:
        """What a kernel [F, C/g, kh, kw] makes of the inputs, without a bias, [R, F]."""
        parts = kernel.to(self.centred.dtype).flatten(1).unflatten(0, (len(self.mean), -1))  # [g, F/g, n]
        varying = (self.centred @ parts.mT).movedim(1, 0).flatten(1)
        return varying + (parts @ self.mean.to(parts)[:, :, None]).flatten() if self.free else varying

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
        parts = weight.double().flatten(1).unflatten(0, (spec.groups, -1))
        told = [(oas_shrinkage(m, self.independent), mean_eigenvalue(m)) for m in self.moment]
        share, level = torch.tensor(told, dtype=torch.float64)[:, :, None, None].unbind(1)  # [g, 1, 1]
        ridge = share * level * torch.eye(parts.shape[2], dtype=torch.float64)
        moments, right = (1 - share) * self.moment + ridge, (1 - share) * cross + share * level * parts
        return solve_psd(moments, right).reshape(spec.weight_shape)
