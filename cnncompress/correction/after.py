"""What comes after a layer, as far as a fit of its output should know: a branch to make up for, a rectification."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cnncompress.correction.target import Positions
from cnncompress.correction.walk import Visit
from cnncompress.network.kinds import kind_of

SMALL_SCALE = 0.1  # of the median scale: a normalisation below it is not undone


@dataclasses.dataclass
class After:
    """`missing`: what to add to the layer's output for the sum it goes into to be that of the original.

    `level`: where the rectification of the compressed network begins, in outputs of the layer; `sign` [F] is -1 where
    what lies below is let through. The first two have the shape of the output, or one that broadcasts to it.
    """

    missing: Tensor | None = None
    level: Tensor | None = None
    sign: Tensor | None = None

    def aim(self, wanted: Tensor, given: Tensor, level: Tensor) -> Tensor:
        """What to fit next, all [R, F]: `wanted`, but what is `given` where both are rectified to nothing.

        Least squares toward it never raises the sum of (y − ŷ)² where y is let through and of max(0, ŷ − level)² where
        it is not: the relaxation of Zhang et al. 2015, section 3.2, in a form that is convex.
        """
        assert self.sign is not None
        wanted, given, level = (t * self.sign for t in (wanted, given, level))
        return self.sign * torch.where(wanted > level, wanted, torch.minimum(given, level))


@dataclasses.dataclass(frozen=True)
class Aims:
    """What a layer's outputs are fitted to, round after round: all [R, F], at the positions looked at.

    `wanted` is what the sum that the output goes into needs. `level` is that of `after` there, None without a further
    round.
    """

    wanted: Tensor
    after: After
    level: Tensor | None
    rounds: int

    @classmethod
    def of(cls, visit: Visit, after: After, positions: Positions, rounds: int) -> Aims:
        """For at most so many rounds; one alone where nothing is rectified."""
        wanted = visit.outputs(positions)
        if after.missing is not None:
            wanted = wanted + positions.outputs(after.missing)
        if after.level is None or rounds <= 1:
            return cls(wanted, after, None, 1)
        return cls(wanted, after, positions.outputs(after.level.expand(visit.shape)), rounds)

    def next(self, given: Tensor | None) -> Tensor:
        """The aim of a round, after one whose fit gives `given`; None before the first one."""
        if given is None or self.level is None:
            return self.wanted
        return self.after.aim(self.wanted, given, self.level)


def after_of(visit: Visit) -> After:
    """What follows a layer, from the values of the original and of the compressed network so far.

    Nothing where it goes into a sum whose rest comes later or has another shape. Channels that a normalisation makes
    very small are left nearly as they are.
    """
    following, shape = visit.following, visit.shape
    axis = kind_of(visit.module).channel_axis
    form = (-1, *[1] * (-1 - axis))
    lacking: Tensor | None = None
    ours: Tensor | float = 0.0
    if following.partner is not None:
        theirs, ours = visit.summands or (None, 0.0)
        if not isinstance(theirs, Tensor) or theirs.shape != shape:
            return After()
        lacking = theirs - ours
    scaling = _scaling(following.norm, shape[axis])
    if scaling is None:
        return After()
    scale, shift, floor = scaling
    inverse = (scale / (scale.square() + floor**2).clamp_min(1e-30)).reshape(form)
    missing = None if lacking is None else lacking * inverse
    if not following.rectified:
        return After(missing)
    sign = torch.where(scale < 0, -1.0, 1.0)
    added = shift.reshape(form) + ours
    unknown = (scale.abs() < floor).reshape(form)
    return After(missing, torch.where(unknown, -sign.reshape(form) * torch.inf, -added * inverse), sign)


def _scaling(norm: nn.BatchNorm2d | None, width: int) -> tuple[Tensor, Tensor, float] | None:
    """What a normalisation multiplies with and adds, [F], and the scale below which it is not undone.

    None where what it divides by is not known before.
    """
    if norm is None:
        return torch.ones(width), torch.zeros(width), 0.0
    if norm.running_var is None or norm.running_mean is None:
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale * (1 if norm.weight is None else norm.weight.detach())
    shift = (0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale
    return scale, shift, SMALL_SCALE * float(scale.abs().median())
