"""Two evaluations, class by class."""

import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import cnncompress as cc
from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline.classes import class_changes, class_names
from cnncompress.pipeline.examples import changed_images
from cnncompress.reporting import Report
from cnncompress.reporting.classes import ClassChanges, ClassRow, Confusion
from cnncompress.reporting.report_page import report_page
from cnncompress.reporting.rows import merge
from tests.reporting.pages import look_at

LABELS = [0, 0, 0, 0, 1, 1, 2]
BEFORE = [0, 0, 0, 1, 1, 1, 2]
AFTER = [0, 1, 1, 0, 1, 5, 2]


class Named:
    """A data set of these labels, by the names of its images."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def label(self, index):
        return LABELS[index]


def evaluation(guesses):
    return Evaluation(0.0, 0.0, 0.0, len(LABELS), None, torch.tensor([LABELS, guesses]).T)


def changes():
    data = SimpleNamespace(val=Named([f"{'abc'[label]}/{i}.png" for i, label in enumerate(LABELS)]))
    return class_changes("small", evaluation(BEFORE), evaluation(AFTER), data)


def test_classes_that_lost_and_confusions_that_grew():
    """Of class a, 3 of 4 were right and 2 are, other ones by 3: 100 √3/4 points; of b, 2 of 2 and 1: 100 √1/2."""
    (found,) = changes()
    assert (found.network, found.classes) == ("small", 3)
    assert found.lost == (
        ClassRow("b", 2, 100.0, 50.0, 50.0),
        ClassRow("a", 4, 75.0, 50.0, pytest.approx(25 * 3**0.5)),
    )
    assert found.confused == (Confusion("b", "class 5", 0, 1), Confusion("a", "b", 1, 2))


def test_nothing_is_compared_that_is_not_of_the_same_images():
    other = Evaluation(0.0, 0.0, 0.0, 2, None, torch.tensor([[0, 0], [1, 1]]))
    data = SimpleNamespace(val=Named(["a/0"] * 7))
    for one in (None, other, Evaluation(0.0, 0.0, 0.0, 7)):
        assert class_changes("small", evaluation(BEFORE), one, data) == []
    assert class_changes("small", evaluation(BEFORE), evaluation(AFTER), None) == []


def test_images_without_folders_have_numbers_for_classes():
    assert class_names(Named(list("0123456"))) == {0: "class 0", 1: "class 1", 2: "class 2"}


def test_an_evaluation_keeps_what_was_answered_in_order():
    network = torch.nn.Flatten()  # the answer is the largest of three pixels
    images = torch.eye(3)[[2, 0, 1, 1]][:, None]
    batches = [(images[:3], torch.tensor([2, 1, 1])), (images[3:], torch.tensor([0]))]
    found = cc.evaluate(network, batches, progress=False)
    assert found.answers.tolist() == [[2, 2], [1, 0], [1, 1], [0, 1]]
    assert found.hits.tolist() == [True, False, True, False]


def pictured(skipped=()):
    images = Named([f"{'abc'[label]}/{i}.png" for i, label in enumerate(LABELS)])
    images.skipped = dict.fromkeys(skipped, "damaged")
    images.image = lambda index: Image.new("RGB", (300, 200), (30 * index, 0, 0))
    return SimpleNamespace(val=images)


def place_of(example):
    """The place of the image that a picture is of, which its red tells."""
    with Image.open(io.BytesIO(example.file)) as image:
        assert max(image.size) == 96
        return round(image.convert("RGB").getpixel((5, 5))[0] / 30)


@pytest.mark.parametrize(("most", "images"), [(1, [1]), (3, [1, 5, 3]), (10, [1, 2, 5, 3]), (2, [1, 3])])
def test_images_that_one_network_alone_is_right_on(most, images):
    """1, 2 and 5 are wrong now, 3 is right now."""
    found = changed_images("small", evaluation(BEFORE), evaluation(AFTER), pictured(), most)
    assert [place_of(one) for one in found] == images
    assert (found[0].label, found[0].before, found[0].after) == ("a", "a", "b")
    seen = look_at(report_page(Report(examples=found)))
    assert seen.wrong == []
    assert seen.named("img")[0]["alt"] == "a: a → b, small"


def test_images_are_found_beside_those_that_cannot_be_read():
    """The image at place 0 was skipped, so that answer i is to image i + 1."""
    part = [
        Evaluation(0.0, 0.0, 0.0, 6, None, torch.tensor([LABELS[1:], guesses[1:]]).T) for guesses in (BEFORE, AFTER)
    ]
    data = pictured(["a/0.png"])
    assert [place_of(one) for one in changed_images("small", *part, data, 10)] == [1, 2, 5, 3]
    assert changed_images("small", *part, pictured(), 10) == []


def test_images_are_not_stored():
    found = changed_images("small", evaluation(BEFORE), evaluation(AFTER), pictured(), 2)
    assert Report(examples=found).to_json() == Report().to_json()


def test_changes_are_stored_and_shown():
    report = Report(changes=changes())
    assert Report.from_json(report.to_json()).changes == report.changes
    assert "class_changes" not in Report().to_json()
    both = merge({"one": report, "two": Report(changes=changes())})
    assert [one.network for one in both.changes] == ["one: small", "two: small"]
    seen = look_at(report_page(both))
    assert seen.wrong == []
    text = " ".join(seen.text)
    assert "−25.0 ± 43.3 points, within noise" in text
    assert "No class lost an image." in " ".join(look_at(report_page(Report(changes=[ClassChanges("n", 2)]))).text)


def test_a_class_is_called_as_its_folder_whatever_folders_are_in_it():
    names = ["cat/2021/0", *["cat/1"] * 3, *["dog/old/may/2"] * 2, "owl/3"]
    assert class_names(Named(names)) == {0: "cat", 1: "dog", 2: "owl"}
