"""What a decomposition does once: looking at how a network calls its layers, and decoding an image."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cnncompress.api import run_decompose
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.config import DecomposeSettings
from cnncompress.correction import blocks, sequential
from cnncompress.data import Images
from cnncompress.network import graph, profile, standing_in
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.trace import trace
from cnncompress.pipeline import calibration
from cnncompress.pipeline.asked import FitAsked, ImagesAsked
from cnncompress.pipeline.calibration import CalibrationSet
from tests.marks import with_slow
from tests.pipeline.networks import write_factory, write_images

WAYS = {
    "budget": {"budget": "macs=0.8", "method": "spatial-svd"},
    "rank": {"rank": 2, "correct": "refit"},
    "biases": {"budget": "macs=0.8", "method": "spatial-svd", "metric": "data-covariance", "correct": "bias"},
    "plain": {"rank": 2, "metric": "kronecker", "correct": "none"},
    "reconstructed": {"rank": 2, "reconstruct": 2},
}
SLOW = ("biases", "reconstructed")


@pytest.fixture
def decomposed(tmp_path, monkeypatch):
    """Runs a decomposition of a small network on 8×8 images, 2 classes of 10."""
    monkeypatch.chdir(tmp_path)
    asked = {"model": write_factory(tmp_path), "data": write_images(tmp_path / "images", images=10), "input_size": 8}

    def run(**settings):
        return run_decompose(DecomposeSettings.model_validate({**asked, "out": "run", **settings}), [])

    return run


@pytest.mark.parametrize("way", with_slow(WAYS, SLOW))
def test_a_network_is_traced_once(decomposed, monkeypatch, way):
    """The original once, and what comes out once, for what it costs."""
    traced = []

    def counted(model, example):
        traced.append(model)
        return trace(model, example)

    for module in (profile, standing_in):
        monkeypatch.setattr(module, "trace", counted)
    decomposed(**WAYS[way])
    assert len(traced) == 2


@pytest.mark.parametrize(("way", "graphs"), [("budget", 1), ("biases", 1), ("plain", 0), ("reconstructed", 1)])
def test_operations_are_traced_once(decomposed, monkeypatch, way, graphs):
    """By torch.fx, for the correction or for the reconstruction."""
    traced = []

    def counted(model, example):
        traced.append(model)
        return graph.trace_graph(model, example)

    for module in (sequential, blocks):
        monkeypatch.setattr(module, "trace_graph", counted)
    decomposed(**WAYS[way])
    assert len(traced) == graphs


@pytest.mark.parametrize("way", with_slow(WAYS, SLOW))
def test_a_calibration_image_is_decoded_once(decomposed, monkeypatch, way):
    """For statistics, for the comparison of answers, for the correction: half of the 20 images, once each.

    So is the other half, which is evaluated before and after; only one was opened before, to see that there are images.
    """
    decoded, original = Counter(), Images.image

    def counted(self, index):
        decoded[self.name(index)] += 1
        return original(self, index)

    monkeypatch.setattr(Images, "image", counted)
    decomposed(**WAYS[way])
    assert Counter(decoded.values()) == {1: 19, 2: 1}


class Recorded:
    """Numbers in place of images: item i is an image full of i."""

    preprocessing = Preprocessing(size=(2, 2), mean=(0.0,), std=(1.0,))

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return torch.full((1, 2, 2), float(index)), 0


@pytest.mark.parametrize(("limit", "held"), [(100, [0, 3, 6, 9, 12]), (3, [0, 6, 12]), (1, [0])])
def test_a_correction_looks_at_images_of_the_statistics(monkeypatch, limit, held):
    """Five of 13 images calibrate, spread evenly; those that memory allows of them are held, spread evenly too."""
    monkeypatch.setattr(calibration, "most_images", lambda calls: limit)
    data, network = type("D", (), {"train": Recorded(13), "fingerprint": "f"}), torch.nn.Conv2d(1, 1, 1)
    chosen = calibration.calibration_set(data, FitAsked("kronecker", "refit", calibration_images=5), {})
    assert chosen.indices == (0, 3, 6, 9, 12)
    passing = calibration._Held(chosen, ImagesAsked(batch_size=2), network)
    seen = torch.cat([batch[0] for batch in passing])
    assert seen[:, 0, 0, 0].tolist() == [0, 3, 6, 9, 12]
    assert passing.images()[:, 0, 0, 0].tolist() == held
    again = calibration._read(chosen, chosen.held, ImagesAsked(batch_size=2), network)
    assert torch.equal(again, passing.images())
    assert isinstance(chosen, CalibrationSet)


def test_images_that_show_what_a_cut_costs_are_not_in_the_statistics(monkeypatch):
    """Every fourth of the images that are held; a correction looks at those of the statistics and at these."""
    monkeypatch.setattr(calibration, "most_images", lambda calls: 100)
    data = type("D", (), {"train": Recorded(10), "fingerprint": "f"})
    asked, read = FitAsked("data-covariance", "refit", calibration_images=10), ImagesAsked(batch_size=3)
    calls = {"last": Call(0, ConvSpec(1, 2, linear=True), ((1, 1),))}
    chosen = calibration.calibration_set(data, asked, calls, unseen=True)
    assert chosen.unseen == {3, 7}
    seen: list[float] = []

    def collected(network, loader, metric, **settings):
        seen.extend(float(x[0, 0, 0]) for batch in loader for x in batch[0])
        return {}

    monkeypatch.setattr(calibration, "collect_statistics", collected)
    subject = type("S", (), {"network": torch.nn.Conv2d(1, 1, 1)})
    made = calibration.calibrate(subject, chosen, asked, [], read, ())
    assert seen == [0, 1, 2, 4, 5, 6, 8, 9]
    assert made.unseen[:, 0, 0, 0].tolist() == [3, 7]
    assert sorted(made.images[:, 0, 0, 0].tolist()) == list(range(10))
    assert not calibration.calibration_set(data, asked, calls).unseen
    assert not calibration.calibration_set(data, FitAsked("frobenius", "refit"), calls, unseen=True).unseen


@pytest.mark.parametrize(("images", "classes", "few"), [(250, 1000, True), (19, 2, True), (20, 2, False)])
def test_images_are_few_where_a_class_has_fewer_than_ten(images, classes, few):
    calls = {
        "first": Call(0, ConvSpec(3, 4000), ((1, 1),)),
        "last": Call(1, ConvSpec(8, classes, linear=True), ((1, 1),)),
    }
    assert calibration.few(images, calls) == few
