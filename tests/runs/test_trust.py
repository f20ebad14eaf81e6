"""What opening a run may execute: nothing that it names without consent, and nothing that is no network with it."""

import json
import shutil

import pytest
import torch

from cnncompress.errors import RunError, UsageError
from cnncompress.models import ModelSource
from cnncompress.models.sources import build_architecture, find_source
from cnncompress.network.compressed import with_provenance
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.programs import Program
from cnncompress.runs import copy_run, load, load_run, rebuild, save, update_run
from tests.run_networks import EMPTY, FACTORY, network, plan, randomise

MARK = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    (folder / "factory.py").write_text(FACTORY)
    save(randomise(network(folder / "factory.py", plan=plan())), folder / "run")
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A run of a user's code with its program; the code leaves a mark when it is run."""
    path = tmp_path / "factory.py"
    path.write_text(FACTORY + MARK)
    shutil.copytree(saved / "run", tmp_path / "run")
    info = (tmp_path / "run" / "run.json").read_text()
    (tmp_path / "run" / "run.json").write_text(info.replace(str(saved / "factory.py"), str(path)))
    return tmp_path / "run"


def edited(run, name, change):
    values = json.loads((run / name).read_text())
    change(values)
    (run / name).write_text(json.dumps(values))


def same(net, other, x=None):
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        return torch.allclose(net(x), other(x), rtol=1e-5, atol=1e-6)


def test_a_run_without_consent_runs_its_program_and_no_code(run):
    found = load_run(run)
    assert isinstance(found.model, Program)
    assert not (run.parent / "ran").exists()
    assert "network.pt2" in found.note
    assert str(run.parent / "factory.py") in found.note
    trusted = load_run(run, trust_code=True)
    assert not isinstance(trusted.model, Program)
    assert (run.parent / "ran").exists()
    assert "factory.py has changed since" in trusted.note  # the mark was put in after saving
    assert same(found.model, trusted.model)
    assert found.plan == trusted.plan


def test_without_program_and_consent_the_line_names_the_code(run):
    (run / "network.pt2").unlink()
    with pytest.raises(RunError) as error:
        load(run)
    assert str(error.value) == (
        f"{run} needs the code of the file {run.parent / 'factory.py'} (build); to have it run, "
        "give --trust-code (trust_code=True)"
    )
    assert not (run.parent / "ran").exists()
    edited(run, "run.json", lambda v: v["source"].update(name="package.module:build"))
    with pytest.raises(RunError, match=r"needs the code of the Python module package.module \(build\)"):
        load(run)


def test_where_the_code_is_gone_the_program_is_run(run):
    trusted = load(run, trust_code=True)
    (run.parent / "factory.py").unlink()
    assert same(load(run, trust_code=True), trusted)
    (run / "network.pt2").unlink()
    with pytest.raises(RunError, match=r"factory.py \(build\), which is not here"):
        load(run, trust_code=True)


def test_the_folder_of_a_run_can_be_given_away(run, tmp_path):
    before = load(run)
    shutil.move(run, tmp_path / "elsewhere")
    (tmp_path / "factory.py").unlink()
    assert same(load(tmp_path / "elsewhere"), before)


def test_a_program_is_saved_as_one(run, tmp_path):
    net = load(run)
    save(net, tmp_path / "again")
    assert not (tmp_path / "ran").exists()
    for consent in (False, True):
        assert same(load(tmp_path / "again", trust_code=consent), net)
    assert not (tmp_path / "ran").exists()
    copy_run(run, tmp_path / "copy")
    assert isinstance(load(tmp_path / "copy"), Program)


def test_a_new_network_renews_or_drops_the_program(run):
    net = randomise(load(run, trust_code=True))
    update_run(run, with_provenance(net))
    assert same(load(run), net)
    known = provenance(net)
    attach(net, Provenance(known.source, None, known.plan, known.errors))  # of unknown input size: no program
    update_run(run, with_provenance(net))
    assert not (run / "network.pt2").exists()
    assert list(json.loads((run / "run.json").read_text())["sha256"]) == ["model.safetensors"]
    assert same(load(run, trust_code=True), net)


def test_new_measurements_keep_the_program(run):
    update_run(run, metrics=EMPTY, info={"seed": 3})
    assert isinstance(load(run), Program)


@pytest.mark.parametrize("name", ["model.safetensors", "network.pt2"])
def test_a_flipped_bit_is_noticed(run, name):
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(RunError, match=f"damaged: {name} is not the file that was written"):
        load(run, trust_code=name == "model.safetensors")


def test_runs_of_earlier_versions_have_no_checksums(run):
    (run / "network.pt2").unlink()
    edited(run, "run.json", lambda v: (v.pop("sha256"), v.pop("code")))
    load(run, trust_code=True)


def test_a_program_from_elsewhere_is_not_taken(run):
    edited(run, "run.json", lambda v: v["sha256"].pop("network.pt2"))
    with pytest.raises(RunError, match=r"no checksum of network.pt2"):
        load(run)


# --- networks that a library builds ---


@pytest.fixture
def shipped(tmp_path):
    source = ModelSource("torchvision", "mnasnet0_5", {"num_classes": 3})
    net = attach(rebuild.build_architecture(source).to_empty(device="cpu"), Provenance(source))
    save(randomise(net), tmp_path / "run")
    return tmp_path / "run"


def test_networks_of_libraries_need_no_consent(shipped):
    assert load(shipped)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert not (shipped / "network.pt2").exists()


NAMES = [
    ("factory", "os:system"),
    ("factory", "subprocess:run"),
    ("factory", "importlib:import_module"),
    ("torchvision", "resnet18.__class__"),
    ("torchvision", "get_model"),
    ("torchvision", "torchvision.models.resnet18"),
    ("torchvision", "raft_large"),  # a network, but no classifier
    ("torchvision", "../resnet18"),
    ("timm", "hf-hub:timm/resnet18.a1_in1k"),
    ("timm", "hf_hub:timm/resnet18"),
    ("timm", "local-dir:/tmp/network"),
    ("timm", "resnet18/../../x"),
    ("timm", "timm/resnet18"),
    ("timm", "create_model"),
    ("builtin", "DigitsVGG"),
    ("builtin", "__class__"),
]


@pytest.mark.parametrize("consent", [False, True])
def test_only_networks_are_called_by_name(consent, shipped, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something was downloaded"))
    for kind, name in NAMES:
        kwargs = {"command": "true"} if name == "os:system" else {}
        edited(shipped, "run.json", lambda v, s={"kind": kind, "name": name, "kwargs": kwargs}: v["source"].update(s))
        with pytest.raises(RunError) as error:
            load(shipped, trust_code=consent)
        assert len(str(error.value).splitlines()) == 1


ARGUMENTS = [
    {"weights": "DEFAULT"},
    {"weights": "IMAGENET1K_V1"},
    {"weights_backbone": "DEFAULT"},
    {"pretrained": True},
    {"progress": True},
    {"init_weights": True},
    {"norm_layer": "os.system"},
    {"pretrained_cfg": "file.json"},
    {"pretrained_cfg_overlay": [1]},
    {"checkpoint_path": "/etc/passwd"},
    {"cache_dir": "/tmp/x"},
    {"features_only": True},
    {"scriptable": True},
    {"act_layer": "relu"},
    {"num_classes": 10**9},
    {"num_classes": -1},
    {"num_classes": "3"},
    {"num_classes": True},
    {"dropout": 2.0},
    {"image_size": 10**6},
    {"__class__": 1},
]


@pytest.mark.parametrize("kind", ["torchvision", "timm", "builtin"])
@pytest.mark.parametrize("kwargs", ARGUMENTS, ids=str)
def test_arguments_only_shape_a_network(kwargs, kind, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something was downloaded"))
    name = {"torchvision": "resnet18", "timm": "resnet18", "builtin": "digits_vgg"}[kind]
    with pytest.raises(RunError, match="its arguments cannot be used") as error:
        build_architecture(ModelSource(kind, name, kwargs))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["timm:hf-hub:timm/resnet18.a1_in1k", "timm:local-dir:/tmp", "timm:a/b"])
def test_timm_takes_local_names_only(name):
    with pytest.raises(UsageError, match="timm has no model"):
        find_source(name)
