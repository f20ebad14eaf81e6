import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from cnncompress.errors import RunError
from cnncompress.statistics import layers as statistics_layers
from cnncompress.statistics import load_statistics, save_statistics, statistics_key
from tests.statistics.helpers import collect, images, small_network


def test_saved_statistics_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics_layers, "WIDEST_MOMENT", 30)
    found = collect(small_network(), [(images(3), torch.arange(3))], ["kronecker", "mahalanobis"])
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, found, "one")
    again = load_statistics(path, "one")
    assert list(again) == list(found)
    for name, s in found.items():
        assert (again[name].images, again[name].rows, again[name].counted) == (s.images, s.rows, s.counted)
        for field in ("mean", "moment", "samples", "gradient", "sensitivity"):
            a, b = getattr(s, field), getattr(again[name], field)
            assert a is b is None or torch.equal(a, b)
    assert load_statistics(path, "two") is None
    assert load_statistics(tmp_path / "other") is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_garbled_file_is_one_line(tmp_path):
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, collect(small_network(), [images(2)]))
    whole = path.read_bytes()
    for content in (b"", b"\0" * 100, whole[: len(whole) // 2], whole[:-1], json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(RunError, match="truncated or garbled") as caught:
            load_statistics(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="cannot write"):
        save_statistics(tmp_path / "statistics.safetensors" / "below", {})


@pytest.mark.parametrize(
    "layers",
    [
        "[" * 100_000,
        '{"0": [1, 2], "0": [1, 2]}',
        '{"0": [1]}',
        '{"0": [-1, 2]}',
        '{"0": ["1", 2]}',
        '{"0": [1e999, 2]}',
        "[]",
    ],
)
def test_counts_in_a_file_are_checked(tmp_path, layers):
    path = tmp_path / "statistics.safetensors"
    save_file({"0:mean": torch.zeros(1, 3)}, path, {"key": "", "layers": layers})
    with pytest.raises(RunError, match="truncated or garbled") as caught:
        load_statistics(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("mean", [torch.zeros(3), torch.full((1, 3), float("nan")), torch.full((1, 3), float("inf"))])
def test_tensors_in_a_file_are_checked(tmp_path, mean):
    path = tmp_path / "statistics.safetensors"
    save_file({"0:mean": mean}, path, {"key": "", "layers": '{"0": [1, 2]}'})
    with pytest.raises(RunError, match="mean is not 2-dimensional and finite"):
        load_statistics(path)


def test_key_follows_network_data_and_settings():
    model = small_network()
    key = statistics_key(model, "data", {"positions": 3, "seed": 0})
    assert key == statistics_key(copy.deepcopy(model), "data", {"seed": 0, "positions": 3})
    others = {key, statistics_key(model, "other", {"positions": 3, "seed": 0})}
    others.add(statistics_key(model, "data", {"positions": 4, "seed": 0}))
    wider = copy.deepcopy(model)
    wider[0].stride = (1, 1)
    others.add(statistics_key(wider, "data", {"positions": 3, "seed": 0}))
    with torch.no_grad():
        model[1].running_mean[0] += 1
    others.add(statistics_key(model, "data", {"positions": 3, "seed": 0}))
    assert len(others) == 5
