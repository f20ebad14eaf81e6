from dataclasses import replace

import pytest

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting import Report, Row
from cnncompress.reporting.summary import summaries, summary

ORIGINAL = Row("net", "original", 1000, 1000, 4000, 87.7, 99.0, 5000, data="d")
SMALL = replace(ORIGINAL, name="net macs=0.5", kind="decomposed", macs=500, top1=87.4, top1_error=0.4)


def test_a_sentence():
    setting = TimingSetting("onnxruntime", dtype="float32")
    timed = replace(SMALL, latency=Latency(7.1, 7.0, 7.2, setting, 10.0))
    expected = "Half the MACs, 0.71 of the time in onnxruntime, top-1 87.7 → 87.4 (−0.3 ± 0.4, within noise)"
    assert summary(timed, ORIGINAL) == expected
    assert summary(replace(SMALL, top1=86.7), ORIGINAL) == "Half the MACs, top-1 87.7 → 86.7 (−1.0 ± 0.4)"
    assert summary(replace(SMALL, top1=87.68, top1_error=0.012), ORIGINAL).endswith(
        "87.70 → 87.68 (−0.02 ± 0.01, within noise)"
    )


@pytest.mark.parametrize(
    ("macs", "params", "words"),
    [
        (250, 900, "A quarter of the MACs"),
        (420, 1, "0.42 of the MACs"),
        (12, 1, "0.012 of the MACs"),
        (1000, 300, "0.30 of the parameters"),
        (1000, 1000, "All the MACs"),
        (1500, 1500, "1.50 times the MACs"),
    ],
)
def test_shares_in_words(macs, params, words):
    assert summary(replace(SMALL, macs=macs, params=params), ORIGINAL).startswith(words)


def test_what_is_not_known_is_said():
    assert summary(replace(SMALL, top1=None), ORIGINAL) == "Half the MACs, accuracy not measured"
    assert "standard error not known" in summary(replace(SMALL, top1_error=None), ORIGINAL)
    assert "on other images" in summary(replace(SMALL, data="e"), ORIGINAL)
    assert "the original's is not known" in summary(SMALL, replace(ORIGINAL, top1=None))


def test_of_several_networks_each_has_its_name_and_the_newest_version_counts():
    tuned = replace(SMALL, name="net macs=0.5, fine-tuned", kind="finetuned", top1=88.0)
    other = replace(SMALL, name="net macs=0.3", macs=300)
    assert summaries(Report([ORIGINAL, SMALL, tuned])) == [summary(tuned, ORIGINAL)]
    first, second = summaries(Report([ORIGINAL, SMALL, tuned, other]))
    assert first.startswith("net macs=0.5, fine-tuned: half the MACs")
    assert second.startswith("net macs=0.3: 0.30 of the MACs")
    assert summaries(Report([ORIGINAL])) == []
