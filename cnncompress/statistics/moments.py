"""Running means and second moments, in one process or several."""

from __future__ import annotations

import torch
from torch import Tensor

from cnncompress.maths.sampling import energies, independent_rows
from cnncompress.network.processes import add_up, everyone

ROWS_AT_ONCE = (
    2048  # taken in at once: the sums are read and written so seldom that they cost little beside the products
)
SAMPLES_KEPT = 2048  # samples kept of a very wide layer

Result = tuple[int, Tensor, Tensor | None, Tensor | None]


class Moments:
    """Mean [g, n] and scatter [g, n, n] of rows [R, g, n], in float64.

    Rows are centred on their own block's mean before their float32 product is taken, and blocks are merged by the
    update of Chan, Golub and LeVeque (1979), so that a mean far from zero costs no precision. `energy` [g] is that of
    `maths.sampling.energies`, each image's rows less the mean so far.
    """

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.count = self.images = 0
        self.energy = torch.zeros(groups, dtype=torch.float64, device=device)
        self.mean = torch.zeros(groups, width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(groups, width, width, dtype=torch.float64, device=device)
        self.waiting: list[Tensor] = []
        self.owners: list[int] = []  # the images of each of those

    def add(self, rows: Tensor, priority: Tensor, images: int = 1) -> None:
        """Take in rows [R, g, n] of some images, as many of each; the priorities are for `Samples` only."""
        self.waiting.append(rows)
        self.owners.append(images)
        if sum(map(len, self.waiting)) >= ROWS_AT_ONCE:
            self._merge()

    def _merge(self) -> None:
        """Merge the rows that are waiting."""
        if not self.waiting:
            return
        sizes, owners = [len(part) for part in self.waiting], self.owners
        rows = torch.cat(self.waiting).movedim(0, 1)  # [g, R, n]
        self.waiting, self.owners = [], []
        fresh, before = rows.shape[1], self.count
        self.count += fresh
        mean = rows.mean(1, dtype=torch.float64)
        rows = rows - mean[:, None].to(rows.dtype)
        step = mean - self.mean
        self.mean += step * (fresh / self.count)
        apart = (mean - self.mean)[:, None].to(rows.dtype)
        for part, images in zip(rows.split(sizes, 1), owners, strict=True):
            self.energy += energies(part + apart, images)
        self.images += sum(owners)
        self.scatter += rows.mT @ rows
        self.scatter.baddbmm_(step[:, :, None] * (before * fresh / self.count), step[:, None, :])

    def result(self) -> Result:
        """Rows of all processes, their mean, their moment (float32, on the CPU), None."""
        self._merge()
        count = sum(everyone(self.count))
        mean = add_up(self.mean * self.count) / max(count, 1)
        step = self.mean - mean
        self.scatter.baddbmm_(step[:, :, None] * self.count, step[:, None, :])
        moment = add_up(self.scatter).div_(max(count, 1)).float()
        self.independent = independent_rows(moment, add_up(self.energy), sum(everyone(self.images)), count)
        return count, mean.float().cpu(), ((moment + moment.mT) / 2).cpu(), None


class Samples:
    """The `SAMPLES_KEPT` rows [R, g, n] of the lowest priority.

    They are a uniform sample of all rows, the same for every order and split of them.
    """

    independent = None

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.groups = groups
        self.rows = torch.zeros(0, groups * width, device=device)
        self.priority = torch.zeros(0, dtype=torch.float64)

    def add(self, rows: Tensor, priority: Tensor, images: int = 1) -> None:
        """Take in rows [R, g, n] with their priorities [R]."""
        self.rows = torch.cat([self.rows, rows.flatten(1)])
        self.priority = torch.cat([self.priority, priority])
        if len(self.rows) > SAMPLES_KEPT:
            self._keep()

    def _keep(self) -> None:
        order = self.priority.argsort(stable=True)[:SAMPLES_KEPT]
        self.rows, self.priority = self.rows[order.to(self.rows.device)], self.priority[order]

    def result(self) -> Result:
        """Rows kept of all processes, their mean, None, the centred rows (float32, on the CPU)."""
        rows, priorities = zip(*everyone((self.rows.cpu(), self.priority)), strict=True)
        self.rows, self.priority = torch.cat(rows), torch.cat(priorities)
        self._keep()
        mean = self.rows.mean(0, dtype=torch.float64) if len(self.rows) else torch.zeros(self.rows.shape[1])
        centred = (self.rows - mean.to(self.rows.dtype)).float()
        return len(centred), mean.float().view(self.groups, -1), None, centred
