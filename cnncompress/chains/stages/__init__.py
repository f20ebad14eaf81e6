"""The types of stages. Every module of this package that registers one is found by itself; none imports torch."""

from cnncompress.chains.stages.acdc import Acdc
from cnncompress.chains.stages.base import STAGES, Pair, Stage, TensorSpec, register
from cnncompress.chains.stages.convolution import ConvSpec
from cnncompress.chains.stages.normalised import Normalised
from cnncompress.chains.stages.parallel import Branch, Parallel
from cnncompress.chains.stages.permutation import Permutation
from cnncompress.names.classes import import_all

import_all(__name__, __path__)

__all__ = [
    "STAGES",
    "Acdc",
    "Branch",
    "ConvSpec",
    "Normalised",
    "Pair",
    "Parallel",
    "Permutation",
    "Stage",
    "TensorSpec",
    "register",
]
