"""The types of stages. Every module of this package that registers one is found by itself; none imports torch."""

import importlib
import pkgutil

from cnncompress.chains.stages.base import STAGES, Pair, Stage, TensorSpec, register
from cnncompress.chains.stages.convolution import ConvSpec
from cnncompress.chains.stages.parallel import Branch, Parallel
from cnncompress.chains.stages.permutation import Permutation

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["STAGES", "Branch", "ConvSpec", "Pair", "Parallel", "Permutation", "Stage", "TensorSpec", "register"]
