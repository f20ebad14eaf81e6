"""The network that plans are made for."""

from __future__ import annotations

import pytest
from torch import nn

from tests.planning.networks import network


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return network()
