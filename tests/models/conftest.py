"""A network and weights for it, which the tests of files of weights share."""

import pytest
import torch

from tests.models.helpers import Network


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def state(network):
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in network.state_dict().items()}
