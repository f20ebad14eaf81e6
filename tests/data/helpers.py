"""What the tests of data sets share."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cnncompress.data import load_data
from cnncompress.errors import CompressError
from cnncompress.network.preprocessing import Preprocessing

PLAIN = Preprocessing(size=(8, 8), resize=None, mean=(0, 0, 0), std=(1, 1, 1))


def write(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def tree(root: Path, classes: dict[str, int]) -> Path:
    """Class folders with that many images each, every one of another grey."""
    value = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write(root / name / f"{i}.png", value)
            value += 1
    return root


def labels(images) -> list[int]:
    return [images.label(i) for i in range(len(images))]


def refused(kind: type[CompressError], spec: str, num_classes: int | None = None) -> str:
    with pytest.raises(kind) as error:
        load_data(spec, PLAIN, num_classes)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message
