"""Which chains are measured first, and how many of them."""

from __future__ import annotations

import math

import pytest

from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.latency.wanted import Wanted, affordable, halved, job_key

SPEC = ConvSpec(64, 64, (3, 3), padding=(1, 1))
CALL = Call(0, SPEC, ((10, 10),))
SPATIAL = get_method("spatial-svd")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, []),
        (1, [[0]]),
        (2, [[0, 1]]),
        (3, [[0, 2], [1]]),
        (6, [[0, 5], [2], [1, 3], [4]]),
        (9, [[0, 8], [4], [2, 6], [1, 3, 5, 7]]),
    ],
)
def test_from_the_ends_to_the_middle(number, expected):
    assert halved(range(number)) == expected


def ranks_of(jobs):
    """The rank of each job, with its lowering."""
    return [(job.chain[0].out_channels, job.lowering) for job in jobs]


def test_levels_have_the_ends_first_and_every_anchor_once():
    wanted = Wanted(CALL, SPATIAL, [(k,) for k in range(1, 65)])
    first, *more = wanted.levels
    assert {(8, ""), (64, "")} < set(ranks_of(first))
    assert {word for _, word in ranks_of(first)} == {"", "pad8", "pad16"}  # with the probe of odd width
    assert [ranks_of(level) for level in more] == [[(24, "")], [(16, ""), (32, "")], [(48, "")]]
    assert all(stage.bias for job in first for stage in job.chain[-1:])


def test_a_method_of_several_structures_has_the_ends_of_each():
    spec = ConvSpec(64, 64, (3, 3), padding=(1, 1))
    method = get_method("bicluster-svd")
    wanted = Wanted(Call(0, spec, ((6, 6),)), method, [(1, 1, 8, 8), (1, 1, 32, 32), (2, 2, 8, 8), (2, 2, 16, 16)])
    plain = [job for job in wanted.levels[0] if not job.lowering]
    chains = [method.stages(spec.replace(bias=True), rank) for rank in wanted.ranks]
    assert [chain in [job.chain for job in plain] for chain in chains] == [True] * 4


def test_as_many_levels_as_can_be_afforded():
    one, other = (Wanted(CALL, SPATIAL, [(k,) for k in range(8, top + 1, 8)]) for top in (64, 16))
    everything = affordable([one, other], {}, math.inf)
    assert len(everything) == len(set(everything)) == 6  # at 8, 16, 24, 32, 48, 64
    assert ranks_of(affordable([one], {}, 0)) == [(8, ""), (64, "")]
    assert ranks_of(affordable([one, other], {}, 4)) == [(8, ""), (64, ""), (16, ""), (24, "")]
    known = {job_key(job) for job in affordable([one], {}, 0)}
    assert ranks_of(affordable([one], known, 3)) == [(24, ""), (16, ""), (32, "")]
    assert affordable([one, other], {job_key(job) for job in everything}, 5) == []
    assert affordable([], {}, 5) == []
