"""Tucker-2: a 1×1 convolution to K1 channels, the kernel between K1 and K2 channels, a 1×1 back to F."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Rank
from cnncompress.decompositions.base import Decomposition, refuse_matrix, register
from cnncompress.errors import UsageError, nearest
from cnncompress.maths.linalg import gram, leading_eigenvectors
from cnncompress.metrics import Metric

ALGORITHMS = ("hosvd", "hooi")


@register
class Tucker2(Decomposition):
    """1×1 C→K1, kh×kw K1→K2, 1×1 K2→F.

    `algorithm` hosvd truncates the input channels, then the output channels, by one SVD each (Denton et al. 2014);
    hooi improves both in turn, `sweeps` times, from there (Kim et al. 2016): its error is never larger.
    `seed` is that of the vectors that fill up a basis where one rank exceeds what the other leaves.
    """

    name = "tucker2"
    any_width = True
    source = "Denton et al. 2014 §3.2.2 (hosvd); Kim et al. 2016 (hooi)"
    rank_names = ("K1", "K2")
    options = {"algorithm": "hosvd", "sweeps": 5, "seed": 0}  # noqa: RUF012
    counts = ("sweeps",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        algorithm = self.settings["algorithm"]
        if algorithm not in ALGORITHMS:
            hint = nearest(algorithm, ALGORITHMS)
            raise UsageError(f"method tucker2 has no algorithm '{algorithm}' (it has: {', '.join(ALGORITHMS)}){hint}")

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A 1×1 kernel between two 1×1 layers is one matrix too many."""
        return refuse_matrix(spec)

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """(min(C, F·kh·kw), min(F, C·kh·kw))."""
        F, C, kh, kw = spec.weight_shape
        return min(C, F * kh * kw), min(F, C * kh * kw)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The middle stage keeps the layer's geometry."""
        first = ConvSpec(spec.in_channels, rank[0])
        middle = spec.replace(in_channels=rank[0], out_channels=rank[1], bias=False)
        return first, middle, ConvSpec(rank[1], spec.out_channels, bias=spec.bias)

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """Orthonormal 1×1 kernels and the core between them."""
        core, U_in, U_out = hosvd(weight, rank)
        if self.settings["algorithm"] == "hooi" and weight.any():
            seed = self.settings["seed"] % 2**32  # what numpy takes
            core, U_in, U_out = hooi(weight, (core, U_in, U_out), self.settings["sweeps"], seed)
        return [U_in.mT[:, :, None, None], core, U_out[:, :, None, None]]


def hosvd(
    weight: Float[Tensor, "f c kh kw"], rank: Rank
) -> tuple[Float[Tensor, "k2 k1 kh kw"], Float[Tensor, "c k1"], Float[Tensor, "f k2"]]:
    """Core [K2, K1, kh, kw] and bases [C, K1], [F, K2]: input channels first, then the output channels of the rest."""
    U_in = leading_eigenvectors(gram(weight.transpose(0, 1).flatten(1)), rank[0])
    narrowed = torch.einsum("fcij,ck->fkij", weight, U_in)
    U_out = leading_eigenvectors(gram(narrowed.flatten(1)), rank[1])
    return torch.einsum("fkij,fm->mkij", narrowed, U_out), U_in, U_out


def hooi(
    weight: Float[Tensor, "f c kh kw"],
    start: tuple[Float[Tensor, "k2 k1 kh kw"], Float[Tensor, "c k1"], Float[Tensor, "f k2"]],
    sweeps: int,
    seed: int = 0,
) -> tuple[Float[Tensor, "k2 k1 kh kw"], Float[Tensor, "c k1"], Float[Tensor, "f k2"]]:
    """Higher-order orthogonal iteration from a given start; shapes as in `hosvd`."""
    import tensorly as tl  # a tenth of a second, which other methods do without
    from tensorly.decomposition import partial_tucker

    core, U_in, U_out = start
    init = (core.cpu().numpy(), [U_out.cpu().numpy(), U_in.cpu().numpy()])
    with tl.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rank above what the other one leaves is filled up, which is meant
        (better, bases), _ = partial_tucker(
            weight.cpu().numpy(),
            rank=[U_out.shape[1], U_in.shape[1]],
            modes=[0, 1],
            n_iter_max=sweeps,
            init=init,
            tol=1e-6,
            random_state=seed,
        )
    better, U_out, U_in = (torch.tensor(x, device=weight.device) for x in (better, *bases))
    return better, U_in, U_out
