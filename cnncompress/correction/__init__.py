"""Corrections of a compressed network's outputs, without labels."""

from cnncompress.correction.batchnorm import reestimate
from cnncompress.correction.reconstruct import reconstruct
from cnncompress.correction.refit import Correction
from cnncompress.correction.sequential import decompose_in_order

__all__ = ["Correction", "decompose_in_order", "reconstruct", "reestimate"]
