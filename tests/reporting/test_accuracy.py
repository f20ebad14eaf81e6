import pytest

from cnncompress.reporting.accuracy import change_words, is_noise, judged, signed


@pytest.mark.parametrize(
    ("change", "error", "noise"), [(-0.3, 0.2, True), (-0.4, 0.2, False), (0.0, None, True), (-0.1, None, False)]
)
def test_less_than_two_standard_errors_are_noise(change, error, noise):
    assert is_noise(change, error) is noise


def test_changes_in_words():
    assert change_words(-0.325, 0.4, 1) == "−0.3 ± 0.4"
    assert change_words(None, 0.4) == "–"
    assert signed(0.001) == "0.00"
    assert judged(0.5, 0.3) == "+0.50 ± 0.30 points, within noise"
    assert judged(-1.5, 0.3) == "−1.50 ± 0.30 points"
    assert judged(-1.5, None) == "−1.50 points, standard error not known"
