"""What torch still has and plans to drop: tests of how it is met are skipped once it is gone."""

from functools import reduce

import pytest
import torch


def still_has(name):
    """A mark for tests that need `torch.NAME`."""
    found = reduce(lambda owner, part: getattr(owner, part, None), name.split("."), torch)
    return pytest.mark.skipif(found is None, reason=f"torch {torch.__version__} has no {name} any more")
