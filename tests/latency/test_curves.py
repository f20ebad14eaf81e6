"""Times at all ranks from the times at some, under clocks that are formulas."""

from __future__ import annotations

import pytest

from cnncompress.chains.lowering import lower
from cnncompress.chains.spec import Call, ConvSpec, chain_macs, convolutions
from cnncompress.decompositions import get_method
from cnncompress.latency.chains import Job
from cnncompress.latency.curves import (
    Curves,
    Timed,
    _monotone,
    anchor_ranks,
    choose_probe,
    padded_jobs,
    regrouped_jobs,
    structure,
)

SPEC = ConvSpec(64, 64, (3, 3), padding=(1, 1))
CALL = Call(0, SPEC, ((10, 10),))
SPATIAL = get_method("spatial-svd")


@pytest.mark.parametrize(
    ("rank", "full", "names", "expected"),
    [
        ((5,), (100,), ["K"], [(8,), (8,)]),
        ((8,), (100,), ["K"], [(8,), (8,)]),
        ((20,), (100,), ["K"], [(16,), (24,)]),
        ((40,), (100,), ["K"], [(32,), (48,)]),
        ((97,), (100,), ["K"], [(96,), (100,)]),
        ((3,), (5,), ["K"], [(5,), (5,)]),
        ((700,), (4096,), ["K"], [(512,), (768,)]),
        ((20, 50), (64, 64), ["K1", "K2"], [(16, 48), (24, 64)]),
        ((2, 4, 20, 9), (2, 4, 32, 32), ["K1", "K2"], [(2, 4, 16, 8), (2, 4, 24, 16)]),
        ((6,), (12,), ["colours"], [(6,), (6,)]),
    ],
)
def test_neighbours_that_are_measured(rank, full, names, expected):
    assert anchor_ranks(rank, full, names) == expected
    assert {structure(near, names) for near in expected} == {structure(rank, names)}


def test_structure_is_what_counts_no_channels():
    assert structure((2, 4, 20, 9), ["K1", "K2"]) == (2, 4)
    assert structure((6,), ["colours"]) == (6,)
    assert structure((6,), ["K"]) == ()


def test_the_nearest_times_that_never_fall():
    # 3 and 1 pool to their mean, which with the 2 before it need not fall; 5 stays
    assert _monotone({30: 1.0, 10: 2.0, 20: 3.0, 40: 5.0}) == ([10, 20, 30, 40], [2.0, 2.0, 2.0, 5.0])


def curves(clock, ranks=(8, 16, 32), probe=None, method=SPATIAL, call=CALL):
    jobs = [job for k in ranks for job in regrouped_jobs(call.spec, method.stages(call.spec, (k,)))]
    return Curves(call, {(): jobs}, probe and ((), method.stages(call.spec, (probe,))), clock)


def macs(job):
    return chain_macs(job.chain, (10, 10))


def chain(rank, method=SPATIAL, spec=SPEC):
    return method.stages(spec, (rank,))


def test_between_and_beyond_the_measured_ranks():
    found = curves(lambda job: 1 + macs(job) / 1e6)
    per_rank = (64 * 3 + 64 * 3) * 100
    for k in (8, 12, 16, 24, 32):
        assert found((), chain(k)).milliseconds == pytest.approx(1 + k * per_rank / 1e6)
    assert found((), chain(2)).milliseconds == pytest.approx(1 + 8 * per_rank / 1e6)
    assert found((), chain(50)).milliseconds == pytest.approx(1 + 32 * per_rank / 1e6)
    assert {found((), chain(k)).lowering for k in range(1, 33)} == {""}


def width(job):
    return next(convolutions(job.chain)).out_channels


def test_padding_where_odd_widths_are_slow():
    def clock(job):
        return width(job) * (4.0 if width(job) % 16 else 1.0)

    found = curves(clock, probe=20, ranks=(16, 32, 48))
    assert found((), chain(16)) == Timed(16, "")
    assert found((), chain(13)) == Timed(16, "pad16")
    assert found((), chain(20)) == Timed(32, "pad16")


def test_the_price_of_odd_widths_where_padding_does_not_help():
    def clock(job):
        return 100 + (50 if width(job) % 8 else 0) + (60 if job.lowering else 0)

    found = curves(clock, probe=12)
    assert found((), chain(16)) == Timed(100, "")
    assert found((), chain(20)) == Timed(150, "")


def test_a_gain_within_the_noise_is_no_reason_to_pad():
    found = curves(lambda job: 0.96 if job.lowering else 1.0, probe=20)
    assert found((), chain(12)) == Timed(1.0, "")


def test_slow_grouped_convolutions_run_in_another_way():
    spec = ConvSpec(32, 32, (3, 3), padding=(1, 1), groups=2)
    method = get_method("channel-svd")
    call = Call(0, spec, ((10, 10),))
    times = {"": 10.0, "split": 4.0, "dense": 3.0}
    for without in ("dense", "split"):
        times[without] = 20.0
        found = curves(lambda job: times[job.lowering], (8, 16), None, method, call)
        best = min(times, key=lambda word: times[word])
        assert found((), chain(8, method, spec)) == Timed(times[best], best)
    assert best == ""


def test_the_way_may_change_with_the_rank():
    spec = ConvSpec(32, 32, (3, 3), padding=(1, 1), groups=2)
    method = get_method("channel-svd")

    def clock(job):
        return 3.0 if job.lowering == "split" else 1.0 if job.lowering == "" and width(job) < 32 else 9.0

    found = curves(clock, (8, 16), None, method, Call(0, spec, ((10, 10),)))
    assert found((), chain(8, method, spec)) == Timed(1.0, "")
    assert found((), chain(16, method, spec)) == Timed(3.0, "split")


def test_the_probe_is_padded_most_ways():
    chains = [((), chain(k)) for k in (8, 13, 17, 18, 19, 24, 30)]
    assert choose_probe(chains) == ((), chain(18))
    assert choose_probe(chains[:2]) == ((), chain(13))
    assert choose_probe(chains[:1]) is None
    assert choose_probe([]) is None


def test_jobs():
    plain = chain(20)
    assert padded_jobs(plain) == [Job(plain), *(Job(lower(plain, w), w) for w in ("pad8", "pad16"))]
    assert regrouped_jobs(SPEC, plain) == [Job(plain)]
