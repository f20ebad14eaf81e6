"""Least squares in the kernels of a chain: each stage but a few is linear in its own kernel, whatever the metric.

`refit_last` solves for the last kernel exactly, `improve_stage` lowers the error in any other by conjugate gradients,
or by L-BFGS where the stage is not linear in its kernel. Neither ever raises the error. Weights are those of one group,
[F, C, kh, kw]. A `ridge` is what the squares of a kernel's entries cost beside the error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from cnncompress.chains.compose import compose, in_double, last_computing
from cnncompress.chains.spec import Chain
from cnncompress.maths.descent import descend
from cnncompress.maths.linalg import mean_eigenvalue, psd_root, solve_psd
from cnncompress.metrics import Metric

GRADIENT_STEPS = 12  # conjugate gradient steps for one stage in one sweep
ROWWISE_CHANNELS = 128  # a last stage that takes in more channels is not solved filter by filter
ROUNDING_SHARE = 1e-24  # share of the squared length of the weight below which an error is rounding

Ridge = Tensor | float  # in a shape that broadcasts to that of the kernel


class Bounds(ABC):
    """What keeps kernels small while they are refined."""

    @abstractmethod
    def ridge(self, kernels: Sequence[Tensor], i: int, error: float) -> Ridge:
        """That of kernel `i` at a squared error."""

    @abstractmethod
    def evened(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """The kernels with the scale of each component spread evenly over them; they compose to the same."""


def refine(
    chain: Chain,
    kernels: Sequence[Tensor],
    weight: Tensor,
    metric: Metric,
    sweeps: int,
    bounds: Bounds | None = None,
) -> list[Tensor]:
    """Kernels with a lower error: the last stage refitted, and from the second sweep on the other stages too.

    `bounds` gives the ridge of each step. With no sweeps, or nothing to improve, the kernels come back as they are.
    """
    if sweeps == 0:
        return list(kernels)
    best = in_double(chain, kernels)
    weight = weight.double()
    if float((weight - compose(chain, best)).square().sum()) <= ROUNDING_SHARE * float(weight.square().sum()):
        return best

    def ridge(i: int) -> Ridge:
        return 0.0 if bounds is None else bounds.ridge(best, i, error_of(chain, best, weight, metric))

    stages = [i for i, stage in enumerate(chain) if not stage.reorders]
    for sweep in range(sweeps):
        for i in stages[:-1] if sweep else ():
            best = improve_stage(chain, best, i, weight, metric, ridge(i))
        best = refit_last(chain, best, weight, metric, ridge(stages[-1]))
        best = best if bounds is None else bounds.evened(best)
    return best


def error_of(chain: Chain, kernels: Sequence[Tensor], weight: Tensor, metric: Metric) -> float:
    """The metric's squared error of a chain's composed kernel."""
    return metric.squared_error(weight - compose(chain, kernels))


def refit_last(
    chain: Chain, kernels: Sequence[Tensor], weight: Tensor, metric: Metric, ridge: Ridge = 0.0
) -> list[Tensor]:
    """The last kernel in closed form, given the stages before it.

    Conjugate gradients take over where that is not to be had. With Γ and a grouped last stage, the groups depend on
    each other: they start from the solution without Γ. With α, every filter has a system of equations of its own, which
    is not solved where the stage takes in more than `ROWWISE_CHANNELS` channels. Other forms have no closed one,
    and neither have stages that are no plain convolutions.
    """
    last = last_computing(chain)
    stage = chain[last]
    if last == 0:
        return improve_stage(chain, kernels, last, weight, metric, ridge)
    rowwise = metric.alpha is not None and kernels[last].shape[1] <= ROWWISE_CHANNELS
    if not stage.free_kernel or not (metric.separable or rowwise):
        return improve_stage(chain, kernels, last, weight, metric, ridge)
    order = torch.arange(len(weight), device=weight.device)  # original row of each row before the permutations
    for index in reversed(kernels[last + 1 :]):
        order = torch.empty_like(order).index_copy_(0, index, order)
    before = compose(chain[:last], kernels[:last])
    extra = torch.as_tensor(ridge, dtype=torch.float64).expand(kernels[last].shape)[0]  # the same for all filters
    if metric.alpha is not None:
        alpha = metric.alpha.double().reshape(weight.shape)
        kernel = _solve_rows(before, weight[order], alpha[order].square(), extra, stage.groups)
    else:
        kernel = _solve_groups(before, weight.flatten(1)[order], extra, stage.groups, metric)
    candidate = [*kernels[:last], kernel.reshape(kernels[last].shape), *kernels[last + 1 :]]
    if metric.gamma is not None and stage.groups > 1:
        candidate = improve_stage(chain, candidate, last, weight, metric, ridge)
    better = error_of(chain, candidate, weight, metric) <= error_of(chain, kernels, weight, metric)
    return candidate if better else list(kernels)


def nested_errors(
    chain: Chain, kernels: Sequence[Tensor], weight: Tensor, metric: Metric, ranks: Sequence[int]
) -> Tensor:
    """The metric's squared error at every rank in `ranks`, float64, with the last of two stages refitted at each.

    For a chain whose first K channels are its rank-K chain, and a separable metric. One Cholesky factor serves all
    ranks: the first rows of L⁻¹b span what the first channels explain.
    """
    before, taps = compose(chain[:1], kernels[:1]), kernels[1].shape[2:]
    seen, inner = products(before, taps, metric)
    root = psd_root((inner + inner.mT) / 2, 1e-12)
    rows = torch.linalg.solve_triangular(root, seen @ weight.flatten(1).mT, upper=False)
    explained = (rows if metric.left_root is None else rows @ metric.left_root).square().sum(1)
    total = metric.squared_error(weight)
    return torch.stack([(total - explained[: rank * taps.numel()].sum()).clamp_min(0) for rank in ranks])


def products(before: Tensor, taps: torch.Size, metric: Metric) -> tuple[Tensor, Tensor]:
    """ΦΣ [m, n] and ΦΣΦᵀ [m, m] of what a kernel of `taps` (bh, bw) is multiplied with, after `before` [M, C, ah, aw].

    Row (k, y, x) of Φ is channel k of `before` at tap (y, x), zero elsewhere, so only parts of Σ meet: with its zeros
    the products would take bh·bw times as long.
    """
    (_, C, ah, aw), (bh, bw) = before.shape, taps
    rows = before.flatten(1)
    places = torch.arange(rows.shape[1] * bh * bw, device=rows.device).reshape(C, bh, ah, bw, aw)
    parts = [places[:, y, :, x].flatten() for y in range(bh) for x in range(bw)]
    seen = torch.stack([_times_part(rows, part, places.numel(), metric) for part in parts], 1)
    inner = torch.stack([seen[:, :, part] @ rows.mT for part in parts], 3)  # [M, taps, M, taps]
    return seen.flatten(0, 1), inner.flatten(2, 3).flatten(0, 1)


def _times_part(rows: Tensor, part: Tensor, width: int, metric: Metric) -> Tensor:
    """`rows` [M, p] at the inputs `part` [p], zero at all others, times Σ [n, n]."""
    if metric.sigma is not None and metric.sigma.dense is not None:
        return rows @ metric.sigma.dense[part].to(rows.dtype)
    spread = rows.new_zeros(len(rows), width)
    spread[:, part] = rows
    return spread if metric.sigma is None else metric.sigma.times(spread)


def _solve_groups(before: Tensor, target: Tensor, ridge: Tensor, groups: int, metric: Metric) -> Tensor:
    """Least squares of each group of the last stage, after `before` [M, C, ah, aw]: [F, taps of a group].

    `ridge` [M/g, bh, bw] is that of a filter. With Γ, it counts in what the filters' errors count on average.
    """
    level = 1.0 if metric.gamma is None else mean_eigenvalue(metric.gamma)
    solved = []
    for basis, wanted in zip(before.chunk(groups), target.chunk(groups), strict=True):
        seen, inner = products(basis, ridge.shape[1:], metric)
        solved.append(solve_psd(inner + (ridge / level).flatten().diag(), wanted @ seen.mT))
    return torch.cat(solved)


def _solve_rows(before: Tensor, target: Tensor, weights: Tensor, ridge: Tensor, groups: int) -> Tensor:
    """Weighted least squares of each filter of the last stage, [F, M/g, bh, bw], after a kernel [M, C, ah, aw].

    `target` and `weights` are [F, C, kh, kw], `ridge` [M/g, bh, bw]. The taps of a filter meet different entries.
    """
    F, C = target.shape[:2]
    (ah, aw), (bh, bw) = before.shape[2:], ridge.shape[1:]
    bases = before.flatten(1).chunk(groups)
    solved = before.new_empty(F, len(bases[0]), bh, bw)
    target, weights = (t.reshape(F, C, bh, ah, bw, aw) for t in (target, weights))
    for f in range(F):
        basis = bases[f * groups // F]
        for y in range(bh):
            for x in range(bw):
                scaled = basis * weights[f, :, y, :, x].flatten()
                right = (scaled @ target[f, :, y, :, x].flatten())[None]
                solved[f, :, y, x] = solve_psd(scaled @ basis.mT + ridge[:, y, x].diag(), right)[0]
    return solved


def improve_stage(
    chain: Chain, kernels: Sequence[Tensor], i: int, weight: Tensor, metric: Metric, ridge: Ridge = 0.0
) -> list[Tensor]:
    """A kernel of stage `i` with a lower error, by conjugate gradients or L-BFGS from the present one."""
    kernels = list(kernels)
    if not chain[i].linear_kernel:
        return descend_together(chain, kernels, [i], weight, metric, GRADIENT_STEPS)

    def dense(kernel: Tensor) -> Tensor:
        return compose(chain, [*kernels[:i], kernel, *kernels[i + 1 :]]).flatten(1)

    def adjoint(form: Tensor) -> Tensor:
        probe = torch.zeros_like(kernels[i], requires_grad=True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((dense(probe) * form).sum(), probe)
        return gradient

    x = kernels[i]
    residual = adjoint(metric.apply(weight.flatten(1) - dense(x))) - ridge * x
    direction, size = residual, float(residual.square().sum())
    start = size
    for _ in range(GRADIENT_STEPS):
        if size <= 1e-20 * start or size == 0:
            break
        image = dense(direction)
        curvature = float((image * metric.apply(image)).sum() + (ridge * direction.square()).sum())
        if curvature <= 0:
            break
        step = size / curvature
        x = x + step * direction
        residual = residual - step * (adjoint(metric.apply(image)) + ridge * direction)
        previous, size = size, float(residual.square().sum())
        direction = residual + size / previous * direction
    candidate = [*kernels[:i], x, *kernels[i + 1 :]]
    better = error_of(chain, candidate, weight, metric) <= error_of(chain, kernels, weight, metric)
    return candidate if better else kernels


def descend_together(
    chain: Chain, kernels: Sequence[Tensor], places: Sequence[int], weight: Tensor, metric: Metric, steps: int
) -> list[Tensor]:
    """Kernels with a lower error, by steps of L-BFGS on those of the stages at `places` together."""
    total = metric.squared_error(weight)
    if not total > 0:
        return list(kernels)

    def put(changed: Sequence[Tensor]) -> list[Tensor]:
        new = dict(zip(places, changed, strict=True))
        return [new.get(i, kernel) for i, kernel in enumerate(kernels)]

    def loss(changed: Sequence[Tensor]) -> Tensor:
        delta = (weight - compose(chain, put(changed))).flatten(1)
        return (delta * metric.apply(delta)).sum() / total

    return put(descend(loss, [kernels[i] for i in places], steps))
