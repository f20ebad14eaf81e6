"""How many images go through a network together."""

from __future__ import annotations

import pytest
import torch

from cnncompress.network.parts import images_at_once


@pytest.mark.parametrize(
    ("side", "device", "count"),
    [(224, "cpu", 4), (112, "cpu", 16), (64, "cpu", 49), (2000, "cpu", 1), (0, "cpu", 200_704), (512, "cuda", 8)],
)
def test_a_processor_takes_four_images_of_imagenets_size(side, device, count):
    assert images_at_once(side * side, torch.device(device)) == count
