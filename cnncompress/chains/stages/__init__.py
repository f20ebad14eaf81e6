"""The types of stages, one file each. `STAGES` has them by the kind that is stored."""

from cnncompress.chains.stages.base import STAGES, Pair, Stage, TensorSpec, register
from cnncompress.chains.stages.convolution import ConvSpec
from cnncompress.chains.stages.parallel import Branch, Parallel
from cnncompress.chains.stages.permutation import Permutation

__all__ = ["STAGES", "Branch", "ConvSpec", "Pair", "Parallel", "Permutation", "Stage", "TensorSpec", "register"]
