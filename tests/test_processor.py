"""What is read out of what the system tells of the processor."""

from __future__ import annotations

import pytest

from cnncompress import processor


@pytest.mark.parametrize(
    ("features", "overflow"),
    [
        ("sse2 avx2", True),
        ("sse2 avx2 avx512f", True),
        ("sse2 avx2 avx512_vnni", False),
        ("sse2 avx2 avx_vnni", False),
        ("fp asimd asimddp", False),
        ("", False),
    ],
)
def test_sums_of_products_overflow_on_x86_without_vnni(monkeypatch, features, overflow):
    monkeypatch.setattr(processor, "features", lambda: frozenset(features.split()))
    assert processor.sums_overflow() is overflow
    assert processor.weight_bits() == (7 if overflow else 8)
