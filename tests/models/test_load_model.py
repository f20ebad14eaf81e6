"""Networks by name: what is built, what it is filled with, and what is said when that fails."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from cnncompress.errors import CompressError, UsageError
from cnncompress.models import ModelSource, build_architecture, list_models, load_model, load_weights
from cnncompress.models.builtin import BUILTIN
from cnncompress.network.preprocessing import IMAGENET_MEAN
from tests.models.helpers import one_line

# --- torchvision ---


def test_random_weights_are_torchvisions_own_for_the_seed():
    state = torch.get_rng_state()
    loaded = load_model("squeezenet1_1", "none", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    expected = torchvision.models.squeezenet1_1().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert loaded.weights == "random (seed 5)"


def test_preprocessing_is_that_of_the_weights():
    loaded = load_model("efficientnet_b0", "none")
    assert loaded.preprocessing.size == (224, 224)
    assert loaded.preprocessing.resize == 256
    assert loaded.preprocessing.interpolation == "bicubic"
    assert loaded.preprocessing.mean == IMAGENET_MEAN


def test_preprocessing_can_be_overridden():
    loaded = load_model("squeezenet1_1", "none", input_size=(64, 48), mean=(0, 0.5, 1), std=(1, 2, 3))
    assert loaded.preprocessing.size == (64, 48)
    assert loaded.preprocessing.resize is None
    assert loaded.preprocessing.mean == (0, 0.5, 1)
    assert loaded.preprocessing.std == (1, 2, 3)


@pytest.mark.parametrize(
    "bad", [{"input_size": 0}, {"mean": (1, 2)}, {"std": (1, 0, 1)}, {"std": (1, float("nan"), 1)}, {"mean": []}]
)
def test_bad_preprocessing_is_refused(bad):
    with pytest.raises(UsageError) as error:
        load_model("digits_vgg", "none", **bad)
    one_line(error)


@pytest.mark.parametrize("name", list_models())
def test_every_architecture_is_built_without_weights(name):
    source = load_model(name, "none").source if name in BUILTIN else ModelSource("torchvision", name)
    model = build_architecture(source)
    assert not model.training
    if name not in BUILTIN:
        assert all(p.is_meta for p in model.parameters())
        published = torchvision.models.get_model_weights(name)
        counts = {w.meta["num_params"] for w in published}
        count = sum(p.numel() for p in model.parameters())
        # The published files of the two have no auxiliary heads in their counts; the default image size of one differs.
        assert count in counts or name in ("googlenet", "vit_h_14")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name):
    loaded = load_model(name, "none", num_classes=3)
    assert loaded.source.kwargs["aux_logits"] is False
    again = build_architecture(loaded.source)
    assert again.state_dict().keys() == loaded.model.state_dict().keys()
    assert not any(k.lower().startswith("aux") for k in again.state_dict())


def test_auxiliary_heads_in_a_file_are_dropped(tmp_path):
    theirs = torchvision.models.googlenet(
        init_weights=False, num_classes=4, aux_logits=True, transform_input=True
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    loaded = load_model("googlenet", str(tmp_path / "g.pth"))
    assert loaded.source.kwargs == {"aux_logits": False, "transform_input": True, "num_classes": 4}
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), theirs(x))


def test_vision_transformer_is_built_for_the_image_size():
    loaded = load_model("vit_b_32", "none", input_size=64, num_classes=5)
    assert loaded.source.kwargs == {"num_classes": 5, "image_size": 64}
    with torch.inference_mode():
        assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(UsageError, match="square"):
        load_model("vit_b_32", "none", input_size=(64, 32))


def test_vision_transformer_takes_the_image_size_of_its_file(tmp_path):
    model = torchvision.models.vit_b_32(image_size=96, num_classes=3)
    renamed = {
        k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for k, v in model.state_dict().items()
    }
    torch.save(renamed, tmp_path / "vit.pth")
    loaded = load_model("vit_b_32", str(tmp_path / "vit.pth"))
    assert loaded.source.kwargs == {"image_size": 96, "num_classes": 3}
    assert loaded.preprocessing.size == (96, 96)
    assert torch.equal(loaded.model.encoder.pos_embedding, model.encoder.pos_embedding)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(UsageError, match="did you mean 'resnet18'") as error:
        load_model("resnet-18")
    one_line(error)
    with pytest.raises(UsageError, match="did you mean 'IMAGENET1K_V1'") as error:
        load_model("resnet18", "IMAGENET_V1")
    one_line(error)


def test_failed_download_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(CompressError, match="--weights PATH") as error:
        load_model("squeezenet1_1")
    one_line(error)


def test_published_weights_with_another_number_of_classes_are_refused():
    with pytest.raises(UsageError, match="num_classes") as error:
        load_model("squeezenet1_1", num_classes=7)
    one_line(error)


def test_mnasnet_without_version_metadata(tmp_path):
    model = torchvision.models.mnasnet0_5(num_classes=3)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    loaded = load_model("mnasnet0_5", str(tmp_path / "m.safetensors"))
    assert torch.equal(loaded.model.layers[0].weight, model.layers[0].weight)


# --- files ---


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "nested", "module", "safetensors", "half"])
def test_weights_files(tmp_path, name, wrap):
    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None, num_classes=6).eval()
    state = model.state_dict()
    path = tmp_path / "w.pth"
    if wrap == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    elif wrap == "half":
        state = {k: v.half().to(v.dtype) for k, v in state.items()}
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    else:
        files = {
            "plain": state,
            "state_dict": {"state_dict": state, "epoch": 3},
            "nested": {"model": {"state_dict": state}},
            "module": {"model": {f"module.{k}": v for k, v in state.items()}},
        }
        torch.save(files[wrap], path)
    loaded = load_model(name, str(path))
    assert loaded.source.kwargs == {"num_classes": 6}
    own = loaded.model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(v, own[k]) and v.dtype == own[k].dtype for k, v in state.items())
    assert all(p.requires_grad for p in loaded.model.parameters())
    again = build_architecture(loaded.source)
    load_weights(again, own, "test")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), loaded.model(x))


def test_batch_counters_may_be_missing(tmp_path):
    model = load_model("digits_vgg", "none").model
    torch.save({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, tmp_path / "w.pt")
    assert load_model("digits_vgg", str(tmp_path / "w.pt")).model.state_dict().keys() == model.state_dict().keys()


def test_mismatched_keys_are_counted_and_the_first_named(tmp_path):
    state = load_model("digits_vgg", "none").model.state_dict()
    for key in [k for k in state if k.startswith("features.0")]:
        state[f"stem.{key}"] = state.pop(key)
    state["features.3.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CompressError) as error:
        load_model("digits_vgg", str(tmp_path / "w.pt"))
    message = one_line(error)
    assert "2 missing (features.0.weight, features.0.bias)" in message
    assert "2 unexpected (stem.features.0.weight, stem.features.0.bias)" in message
    assert "1 of another shape (features.3.weight is 2×2, not 16×16×3×3)" in message


def _pickled_code(path: Path) -> None:
    torch.save({"weight": Path("/")}, path)


def _truncated(path: Path) -> None:
    torch.save({"weight": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "write",
    [
        _pickled_code,
        _truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("hello"),
        lambda path: path.write_bytes(bytes(range(256)) * 4),
        lambda path: path.mkdir(),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"epoch": 3, "weight": torch.rand(2)}, path),
        lambda path: torch.save({}, path),
        lambda path: torch.save(torch.rand(3), path),
        lambda path: None,
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_not_weights(tmp_path, write, suffix):
    path = tmp_path / f"w{suffix}"
    write(path)
    with pytest.raises(CompressError, match="w" + suffix) as error:
        load_model("digits_vgg", str(path))
    one_line(error)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CompressError, match="not a whole safetensors file") as error:
        load_model("digits_vgg", str(path))
    one_line(error)
