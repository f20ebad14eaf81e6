"""From a plan to a compressed network: fitted, corrected and reconstructed as asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.correction import Correction, reconstruct, reestimate
from cnncompress.correction.sequential import UNFOLLOWED, fit_in_order
from cnncompress.data import Data
from cnncompress.errors import DataError
from cnncompress.fitting import fit_alone, initialise
from cnncompress.network.compressed import Compressed, compressed
from cnncompress.network.divergence import Answers, agreement, to_check
from cnncompress.network.subject import Subject
from cnncompress.pipeline.asked import FitAsked, ImagesAsked
from cnncompress.pipeline.calibration import Calibration
from cnncompress.pipeline.images import batches_for
from cnncompress.pipeline.notes import Note, notes
from cnncompress.terminal.console import Steps
from cnncompress.terminal.words import counted

SCRATCH = "the chains have random kernels: train the network with finetune"


@dataclass(frozen=True)
class Fitted:
    """A compressed network, and what is to be said of how it was made."""

    made: Compressed
    notes: tuple[Note, ...] = ()

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.made.network

    def instead(self, network: nn.Module, *said: str) -> Fitted:
        """Another network of the same provenance, with more to be said of it."""
        return Fitted(compressed(network, self.made.provenance), (*self.notes, *notes("fit", *said)))


def answers_of(subject: Subject, calibration: Calibration) -> Answers:
    """The original's answers to some of the calibration images: those that are known, or new ones.

    They are to images that the statistics have not seen, where there are such.
    """
    if calibration.answers is not None:
        return calibration.answers
    images = _images(calibration) if calibration.unseen is None else calibration.unseen
    return Answers(subject.network, to_check(images, subject.cost.total_macs))


def _images(calibration: Calibration) -> Tensor:
    if calibration.images is None:
        raise DataError("no images to correct the outputs on; check the data set")
    return calibration.images


def fit(
    subject: Subject, plan: Plan, calibration: Calibration, asked: FitAsked, adjust: Collection[str], steps: Steps
) -> Fitted:
    """The compressed network of a plan; convolutions of `adjust` that stay get kernels that suit their new inputs."""
    if asked.init == "scratch":
        with steps("factorize", f"initialise {counted(len(plan.changes), 'layer')}"):
            return Fitted(initialise(subject.network, subject.provenance, plan, asked.seed), notes("fit", SCRATCH))
    with steps("factorize", f"fit {counted(len(plan.changes), 'layer')}"):
        made = _corrected if asked.corrected else _plain
        fitted = made(subject, plan, calibration, asked, adjust)
    if not asked.reconstruct:
        return fitted
    with steps("reconstruct", f"reconstruct blocks, {asked.reconstruct} gradient steps each"):
        images = _images(calibration)
        small, said = reconstruct(subject.network, fitted.network, images, asked.reconstruct, seed=asked.seed)
    return fitted.instead(small, *said)


def _plain(subject: Subject, plan: Plan, calibration: Calibration, asked: FitAsked, adjust: Collection[str]) -> Fitted:
    """Every layer fitted alone."""
    refine = 1 if asked.refine is None else asked.refine
    return Fitted(
        fit_alone(subject.network, subject.provenance, plan, statistics=calibration.statistics, refine=refine)
    )


def _corrected(
    subject: Subject, plan: Plan, calibration: Calibration, asked: FitAsked, adjust: Collection[str]
) -> Fitted:
    """Every layer fitted to what the compressed layers before it really give."""
    images = _images(calibration)
    how = Correction(refine=asked.refine, refit=asked.correct == "refit", adjust=adjust, seed=asked.seed)
    in_order = fit_in_order(subject, plan, images, calibration.statistics, how)
    fitted = Fitted(in_order.made, () if in_order.followed else notes("fit", UNFOLLOWED))
    return fitted if asked.correct == "refit" else _normalised(fitted, images, answers_of(subject, calibration))


def _normalised(made: Fitted, images: Tensor, answers: Answers) -> Fitted:
    """The network with its batch normalisations estimated again, where that brings its answers nearer.

    Not after a refit, which already gives every layer the outputs of the original: it then makes things worse.
    """
    other = reestimate(made.network, images)
    if other is None:
        return made
    before, after = answers.divergence(made.network), answers.divergence(other)
    what = f"divergence on calibration images {before:.3g} nats without, {after:.3g} with"
    better = after < before
    said = f"batch normalisation {'estimated again' if better else 'left as it was'}: {what}"
    return made.instead(other if better else made.network, said)


def compared(subject: Subject, small: nn.Module, data: Data, read: ImagesAsked) -> tuple[Note, ...]:
    """How near the answers are to the original's, on images that calibrated nothing."""
    loader = batches_for(subject.network, data.val, read, read.reading)
    agreed = agreement(subject.network, small, loader)
    told = f"the answers diverge by {agreed.divergence:.3g} nats"
    if agreed.same is not None:
        told = f"the most probable class is the original's for {agreed.same:.2f} %, and {told}"
    return notes("answers", f"on {agreed.images} images{' without labels' * (not data.labelled)}, {told}")
