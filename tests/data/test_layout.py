"""Folders of images as people lay them out."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnncompress.data import load_data
from cnncompress.data.files import formats
from cnncompress.data.layout import part_of
from cnncompress.errors import DataError
from cnncompress.network.preprocessing import Preprocessing
from tests.data.helpers import PLAIN, labels, refused, tree, write

ONE = {"cats": 1, "dogs": 2}
GREY = Preprocessing(size=(8, 8), resize=None, mean=(0,), std=(1,))


def sizes(data):
    return [None if part is None else len(part) for part in (data.val, data.train, data.test)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "training_set", "train-set", "train images", "train2017")
        ),
        *((name, "val") for name in ("val", "valid", "Validation", "validation_set", "dev", "val_data", "val_2014")),
        *((name, "test") for name in ("test", "Testing", "test_set", "testset")),
        *(
            (name, None)
            for name in ("cats", "trains", "set", "data", "images", "tester", "valley", "test17", "2017", "")
        ),
    ],
)
def test_names_of_parts(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training_set", None, "test_set"),
        ("train", "validation", None),
        ("train", "valid", "test"),
        ("Training", None, "Testing"),
        ("TRAIN", "VAL", "TEST"),
        (None, "valid", "test"),
        (None, None, "test"),
        ("training_set/training_set", None, "test_set/test_set"),
        ("data/train", "data/val", None),
        ("data/Data/train", "data/Data/test", None),
    ],
)
def test_parts_are_recognised_by_their_names(train, val, test, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnncompress")
    for folder, count in ((train, 5), (val, 3), (test, 4)):
        if folder is not None:
            tree(tmp_path / folder, {"cats": 1, "dogs": count - 1})
    data = load_data(str(tmp_path), PLAIN, 2)
    evaluated = 3 if val and "test" not in val else 4 if test else 3
    assert len(data.val) == evaluated
    assert (None if data.train is None else len(data.train)) == (5 if train else None)
    assert (None if data.test is None else len(data.test)) == (4 if val and test else None)
    assert labels(data.val)[:2] == [0, 1]
    assert data.labelled
    assert str(tmp_path) in caplog.text  # it is said what was taken


def test_a_class_may_have_the_name_of_a_part(tmp_path):
    data = load_data(str(tree(tmp_path, {"bus": 1, "car": 1, "train": 2})), PLAIN, 3)
    assert sizes(data) == [4, None, None]
    assert labels(data.val) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0", "1", "2", "10"], "0 is 0, 1 is 1, 10 is 2, ..."),
        (["8", "9"], ""),
        (["00", "01", "10"], ""),
        (["1", "10", "2", "cat"], ""),
    ],
)
def test_numbers_that_are_not_the_numbers_of_their_classes(names, said, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnncompress")
    data = load_data(str(tree(tmp_path, dict.fromkeys(names, 1))), PLAIN, len(names))
    assert [Path(data.val.name(i)).parent.name for i in range(len(names))] == sorted(names)
    assert labels(data.val) == list(range(len(names)))
    assert ("numbered in the order of their names as text" in caplog.text) == bool(said)
    assert said in caplog.text
    (tmp_path / "class_index.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    caplog.clear()
    load_data(str(tmp_path), PLAIN, len(names))
    assert "as text" not in caplog.text


def test_what_stands_beside_the_parts_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnncompress")
    for folder in ("train", "val", "previews"):
        tree(tmp_path / folder, ONE)
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, 3, None]
    assert "previews" in caplog.text


def test_two_folders_for_one_part_are_refused(tmp_path):
    for folder in ("val", "validation"):
        tree(tmp_path / folder, ONE)
    assert "two folders for one part" in refused(DataError, str(tmp_path), 2)


def test_an_empty_part_is_none(tmp_path):
    tree(tmp_path / "train", ONE)
    tree(tmp_path / "test", ONE)
    (tmp_path / "val").mkdir()
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, 3, None]


def test_images_without_class_folders_have_no_labels(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.png", i)
    data = load_data(str(tmp_path), PLAIN, 10)
    assert sizes(data) == [4, None, None]
    assert not data.labelled
    assert labels(data.val) == [-1] * 4


def test_boxes_and_masks_are_no_classes(tmp_path):
    for part in ("train", "valid"):
        for i in range(3):
            write(tmp_path / part / "images" / f"{i}.png", i)
            (tmp_path / part / "labels").mkdir(exist_ok=True)
            (tmp_path / part / "labels" / f"{i}.txt").write_text("0 0.5 0.5 1 1")
    data = load_data(str(tmp_path), PLAIN, 10)
    assert sizes(data) == [3, 3, None]
    assert not data.labelled


def test_labels_are_taken_where_there_are_some(tmp_path):
    tree(tmp_path / "val", ONE)
    write(tmp_path / "test" / "0.png")
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, None, None]
    tree(tmp_path / "train", ONE)
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, 3, None]
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    assert "nothing to evaluate on" in refused(DataError, str(tmp_path), 2)


def test_what_systems_leave_is_no_data(tmp_path):
    tree(tmp_path, ONE)
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        tree(tmp_path / name, {"a": 1})
        tree(tmp_path / "dogs" / name, {"a": 1})
    (tmp_path / "dogs" / "._0.png").write_bytes(b"\0\5\26\7")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "dogs" / name).touch()
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, None, None]


def test_everything_left_out_is_counted_and_named(tmp_path, caplog):
    tree(tmp_path, ONE)
    for name in ("a.heic", "b.heic", "noise"):
        (tmp_path / "dogs" / name).touch()
    write(tmp_path / "stray.png")
    load_data(str(tmp_path), PLAIN, 2)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "2 dogs/a.heic and more (no image by its suffix .heic)" in line
    assert "1 stray.png (beside the class folders)" in line
    assert "1 dogs/noise (no suffix)" in line
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.heic").touch()
    assert "1 a.heic (no image by its suffix .heic)" in refused(DataError, str(only))


def test_an_empty_class_folder_is_named_where_the_number_is_wrong(tmp_path):
    tree(tmp_path, ONE)
    (tmp_path / "new folder").mkdir()
    assert "1 of them without images: new folder" in refused(DataError, str(tmp_path), 2)
    assert load_data(str(tmp_path), PLAIN, 3).classes == 3


@pytest.mark.parametrize(
    "suffix",
    [".jpg", ".JPG", ".jpeg", ".jfif", ".jpe", ".png", ".PNG", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"],
)
def test_suffixes_of_images(suffix, tmp_path):
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / "a" / f"x{suffix}", kind)
    image, _ = load_data(str(tmp_path), PLAIN, 1).val[0]
    assert torch.allclose(image, torch.full((3, 8, 8), 200 / 255), atol=0.02)


def test_no_file_reaches_another_program(tmp_path):
    """Pillow has PostScript drawn by Ghostscript, whatever the file is called."""
    assert not {"EPS", "WMF", "PDF", "MPEG", "FITS"} & set(formats())
    write(tmp_path / "a" / "0.png")
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a" / "1.jpg").write_text(program)
    data = load_data(str(tmp_path), PLAIN, 1)
    with pytest.raises(DataError, match=r"cannot read image a/1\.jpg: it is no image") as error:
        data.val.image(1)
    assert "hostscript" not in str(error.value)


# --- kinds of pixels ---


def read(path: Path, preprocessing=PLAIN):
    return load_data(str(path.parent.parent), preprocessing, 1).val[0][0]


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        ((RAMP * 65535).astype(np.uint16), ".png"),
        ((RAMP * 65535).astype(np.uint16), ".tif"),
        ((RAMP * 65535).astype(np.int32), ".tif"),
        (RAMP.astype(np.float32), ".tif"),
        ((RAMP * 255).astype(np.uint8), ".png"),
    ],
)
@pytest.mark.parametrize("preprocessing", [PLAIN, GREY])
def test_pixels_of_any_depth_are_shares_of_white(pixels, suffix, preprocessing, tmp_path):
    path = tmp_path / "a" / f"x{suffix}"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    image = read(path, preprocessing)
    assert image.shape == (preprocessing.channels, 8, 8)
    assert torch.allclose(image[0], torch.tensor(RAMP, dtype=torch.float32), atol=1 / 255)


@pytest.mark.parametrize("pixels", [RAMP * 2, RAMP - 0.5, RAMP * np.nan, RAMP * 255])
def test_pixels_without_a_known_white_are_refused(pixels, tmp_path):
    path = tmp_path / "a" / "x.tif"
    path.parent.mkdir()
    Image.fromarray(pixels.astype(np.float32)).save(path)
    with pytest.raises(DataError, match=r"save it as 8 bits|not finite"):
        read(path)


def test_a_bomb_is_left_out(tmp_path, monkeypatch):
    write(tmp_path / "a" / "0.png")
    write(tmp_path / "a" / "1.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb"):
        load_data(str(tmp_path), PLAIN, 1).val.image(1)


def test_what_holds_no_images_beside_flat_parts_is_no_class(tmp_path, caplog):
    """As in COCO: `annotations` holds boxes, the parts are images without class folders."""
    caplog.set_level(logging.INFO, "cnncompress")
    tree(tmp_path, {"train2017": 3, "val2017": 2})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text("{}")
    data = load_data(str(tmp_path), PLAIN, 3)
    assert sizes(data) == [2, 3, None]
    assert not data.labelled
    assert "left out what stands beside the parts: annotations" in caplog.text


def test_parts_are_named_by_their_place(tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnncompress")
    for part, count in (("train", 3), ("valid", 2)):
        tree(tmp_path / part, {"images": count})
        (tmp_path / part / "labels").mkdir()
    assert sizes(load_data(str(tmp_path), PLAIN, None)) == [2, 3, None]
    told = "val from valid/images/ (2 images without labels), train from train/images/ (3 images without labels)"
    assert told in caplog.text


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("Fold_0", "Fold_1", "Fold_2"), ("split-1", "split-2")])
def test_folds_are_no_classes(names, tmp_path):
    for name in names:
        tree(tmp_path / name, ONE)
    message = refused(DataError, str(tmp_path), len(names))
    assert f"holds folds ({', '.join(names)}), which are no classes" in message
    assert sizes(load_data(str(tmp_path / names[0]), PLAIN, 2)) == [3, None, None]  # one of them is a data set


def test_classes_that_are_called_like_folds_are_classes(tmp_path):
    tree(tmp_path, {"fold1": 1, "fold2": 2})
    assert sizes(load_data(str(tmp_path), PLAIN, 2)) == [3, None, None]


def test_parts_within_the_images_beside_their_labels_are_recognised(tmp_path):
    for part, more in (("train", {"cats": 2, "dogs": 3}), ("val", ONE)):
        tree(tmp_path / "images" / part, more)
        (tmp_path / "labels" / part).mkdir(parents=True)
    data = load_data(str(tmp_path), PLAIN, 2)
    assert sizes(data) == [3, 5, None]
    assert data.labelled


def test_parts_of_a_detection_set_have_no_labels(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write(tmp_path / "images" / part / f"{i}.png", i)
        (tmp_path / "labels" / part).mkdir(parents=True)
    data = load_data(str(tmp_path), PLAIN, None)
    assert sizes(data) == [2, 4, None]
    assert not data.labelled


@pytest.mark.parametrize("shown", ["images", "Images"])
@pytest.mark.parametrize("beside", [["attributes", "parts"], ["Annotation"], ["segmentations", "lists"]])
def test_classes_within_the_images_beside_what_is_said_about_them_are_recognised(shown, beside, tmp_path, caplog):
    """As in sets of birds and dogs: boxes and attributes lie beside the images, which are in class folders."""
    caplog.set_level(logging.INFO, "cnncompress")
    tree(tmp_path / shown, {"sparrow": 2, "tern": 1})
    for name in beside:
        write(tmp_path / name / "sparrow" / "0.png")
    data = load_data(str(tmp_path), PLAIN, 2)
    assert labels(data.val) == [0, 0, 1]
    assert f"its images are in {tmp_path / shown}" in caplog.text


def test_images_beside_boxes_and_masks_have_no_labels(tmp_path):
    """As in sets for segmentation: images of boxes and of masks are none to look at."""
    tree(tmp_path / "voc" / "2012", {"JPEGImages": 3, "SegmentationClass": 2, "SegmentationObject": 2})
    for name in ("Annotations", "ImageSets"):
        (tmp_path / "voc" / "2012" / name).mkdir()
        (tmp_path / "voc" / "2012" / name / "0.xml").write_text("<annotation/>")
    data = load_data(str(tmp_path), PLAIN, 20)
    assert sizes(data) == [3, None, None]
    assert not data.labelled
