"""Images that are not there, cannot be read, or do not fit the network."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import complaint, image_folder


@pytest.fixture
def folders(cli):
    """Data folders of every kind."""
    Path("empty").mkdir()
    Path("no_images/class0").mkdir(parents=True)
    Path("file").touch()
    image_folder("eleven", 11)
    image_folder("corrupt", 10, broken=2)
    image_folder("half", 10, broken=1)
    for name, index in (("beyond", {"class0": 0, "class1": 12}), ("partial", {"class0": 0}), ("garbled", None)):
        image_folder(name, 2)
        Path(name, "class_index.json").write_text("{" if index is None else json.dumps(index))


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("none", 1, "no such folder: none"),
        ("digit", 1, "did you mean 'digits'?"),
        ("empty", 1, "empty holds no images"),
        ("no_images", 1, "no_images holds no images"),
        ("file", 1, "file is a file"),
        ("eleven", 1, "11 folders in eleven, 10 in the network"),
        ("corrupt", 1, "none of the 20 images can be read"),
        ("beyond", 1, "class1 has index 12"),
        ("partial", 1, "no class index for 1"),
        ("garbled", 1, "class_index.json"),
        ("cifar10:none", 1, "cannot open cifar10 in none"),
        ("cifar11:none", 2, "did you mean 'cifar10'?"),
        ("cifar10:", 2, "cifar10:FOLDER"),
    ],
)
def test_wrong_data(data, code, words, folders, saved, refused):
    assert words in refused("decompose", "digits_vgg", "--out", "out", "--data", data, code=code)
    assert words in refused("finetune", saved, "--out", "out", "--data", data, code=code)
    assert words in refused("evaluate", saved, "--data", data, code=code)
    assert words in refused("report", saved, "--data", data, "--output", "report.md", code=code)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_counted_and_named_once(workers, folders, cli):
    result = cli("evaluate", "digits_vgg", "--data", "half", "--workers", workers)
    assert result.code == 0
    assert "on 10 images" in result.out
    line = complaint(result.err)
    assert line.startswith("warning: skipped 10 of 20 images")
    assert "class0/0.png" in line
    assert line.count("\n") == 1
