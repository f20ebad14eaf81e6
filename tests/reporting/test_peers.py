"""Others' networks in a CSV file, and in the charts of a page."""

from dataclasses import replace

import pytest

from cnncompress.errors import UsageError
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting import Report, Row
from cnncompress.reporting.peers import Peer, read_peers
from cnncompress.reporting.report_page import report_page
from tests.reporting.pages import look_at

EVIL = "<script>alert(1)</script>"


def read(folder, text):
    place = folder / "peers.csv"
    place.write_text(text)
    return read_peers(place)


def test_lines_become_peers(tmp_path):
    text = 'name,top1,macs,ms,seed\none,70.5,0.5,,1\n"two, b",71,2e6,3.5,2\n'
    assert read(tmp_path, text) == [Peer("one", 0.5, 70.5), Peer("two, b", 2e6, 71.0, 3.5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no lines"),
        ("name,top1\na,3\n", "lacks the column macs"),
        ("name,macs,top1\na,1,70\nb,1,170\n", "line 3: top1 is 170; give percent"),
        ("name,macs,top1\na,nan,70\n", "line 2: macs is 'nan'; give a positive number"),
        ("name,macs,top1\na,1\n", "line 2: top1 is None"),
        ("name,macs,top1,ms\na,1,70,-3\n", "line 2: ms is '-3'"),
        ('name,macs,top1\n"a,1,70\n', "no CSV file of peers"),
    ],
)
def test_what_is_none_is_refused_in_one_line(text, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the peers"):
        read_peers(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="is larger than"):
        read(tmp_path, "name,macs,top1\n" + "a,1,70\n" * 200_000)


def test_shares_are_of_the_original_and_times_stand_in_the_first_runtime_alone():
    original = Row("net", "original", 10, 4_000_000, 40, 80.0, 100.0, 100)
    times = [Latency(2.0, 1.0, 3.0, TimingSetting(runtime, "", "cpu")) for runtime in ("torch", "onnxruntime")]
    rows = [original.timed(times), replace(original, name="small", kind="decomposed", macs=1_000_000).timed(times)]
    page = report_page(Report(rows), peers=[Peer(EVIL, 0.5, 79.0, 1.5), Peer("other", 3_000_000, 78.0)])
    seen = look_at(page)
    assert seen.wrong == []
    assert EVIL not in page
    charts = [a["aria-label"] for a in seen.named("svg") if "wide" in (a.get("class") or "")]
    assert f"{EVIL}: 2.000M MACs, top-1 79.00 %; other: 3.000M MACs, top-1 78.00 %" in charts[0]
    assert f"{EVIL}: 1.5 ms in torch" in charts[1]
    assert "alert" not in charts[2]
