"""What a file of tensors cannot hold."""

import pytest
import torch

from cnncompress.files.state import packed, plain_tensors, same_values
from cnncompress.files.tensorfile import digest_of
from tests.deprecated import still_has

# torch plans to move these tensors elsewhere
pytestmark = [still_has("quantize_per_tensor"), pytest.mark.filterwarnings("ignore::UserWarning")]


def quantised(scale=0.1):
    return torch.quantize_per_tensor(torch.eye(3), scale, 0, torch.qint8)


def state(**changed):
    return {
        "plain": torch.ones(2),
        "packed": (quantised(), torch.ones(3)),
        "kind": torch.qint8,
        "more": {"n": 3},
    } | changed


def test_a_state_is_parted():
    assert list(plain_tensors(state(sparse=torch.eye(3).to_sparse()))) == ["plain"]
    assert list(packed(state(direct=quantised()))) == ["packed", "kind", "more", "direct"]


OTHER = {
    "scale": lambda: {"packed": (quantised(0.3), torch.ones(3))},
    "bias": lambda: {"packed": (quantised(), torch.zeros(3))},
    "no bias": lambda: {"packed": (quantised(), None)},
    "type": lambda: {"kind": torch.quint8},
    "number": lambda: {"more": {"n": 4}},
    "object": lambda: {"more": object()},
}


@pytest.mark.parametrize("change", OTHER)
def test_other_values_are_noticed(change):
    changed = OTHER[change]()
    other = state(**changed)
    names = [name for name, value in state().items() if not same_values(value, other[name])]
    assert names == list(changed)
    assert digest_of(other) != digest_of(state())


def test_the_same_values_are_the_same():
    assert all(same_values(value, state()[name]) for name, value in state().items())
    assert digest_of(state()) == digest_of(state())
    assert not same_values(object(), object())
