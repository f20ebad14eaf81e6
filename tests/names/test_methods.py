"""What the files of the decompositions say of themselves is what is registered."""

import pytest

from cnncompress.decompositions import REGISTRY
from cnncompress.names.methods import catalogue


def test_every_registered_method_is_in_it():
    assert set(catalogue()) == set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_an_entry_says_what_the_class_says(name):
    entry, method = catalogue()[name], REGISTRY[name]
    assert (entry.name, entry.source) == (method.name, method.source)
    assert (entry.rank_names, entry.options) == (method.rank_names, method.options)
    assert entry.chain == method.__doc__.split("\n")[0] != ""
