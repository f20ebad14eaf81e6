import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cnncompress.chains.lowering import lower
from cnncompress.chains.modules import SplitConv2d
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.plan_json import plan_to_json
from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import RunError, UsageError
from cnncompress.files.place import FILES
from cnncompress.files.tensorfile import load_tensors
from cnncompress.models import ModelSource, load_model
from cnncompress.network.compressed import with_provenance
from cnncompress.network.kinds import spec_of
from cnncompress.network.memory_format import memory_format_of
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.runs import copy_run, load, load_run, rebuild, save, save_run, update_run
from tests.run_networks import EMPTY, FACTORY, ROW, env, network, plan, randomise


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return path


VARIANTS = {
    "plain": lambda net: net,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
    "bfloat16": lambda net: net.bfloat16(),
    "half_channels_last": lambda net: net.half().to(memory_format=torch.channels_last),
    "frozen": lambda net: net.requires_grad_(False),
}

FRESH = """
import sys, torch
from cnncompress.decompositions import REGISTRY
REGISTRY.clear()
from cnncompress.runs import load
torch.set_num_threads(1)
net = load(sys.argv[1], trust_code=True)
with torch.no_grad():
    torch.save(net(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_bitwise(tmp_path, factory, variant):
    net = VARIANTS[variant](randomise(network(factory, plan=plan())))
    before = {name: (t.clone(), t.stride(), t.dtype) for name, t in net.state_dict().items()}
    save_run(
        tmp_path / "run", with_provenance(net), metrics={**EMPTY, "rows": [ROW]}, info={"seed": 3, "command": ["a"]}
    )
    run = load_run(tmp_path / "run", trust_code=True)
    assert run.plan == plan()
    assert run.metrics["rows"] == [ROW]
    assert (run.info["format"], run.info["seed"], run.info["command"]) == (1, 3, ["a"])
    assert run.info["versions"]["torch"] == torch.__version__
    assert run.preprocessing == Preprocessing((8, 8), None, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert provenance(run.model).errors == {"body": 0.125, "body.2": 0.125}
    found = run.model.state_dict()
    assert found.keys() == before.keys()
    for name, (tensor, stride, dtype) in before.items():
        assert (found[name].stride(), found[name].dtype) == (stride, dtype), name
        assert torch.equal(found[name], tensor), name
    assert not any(m.training for m in run.model.modules())
    assert all(p.requires_grad for p in run.model.parameters())
    assert run.model.body is run.model.again
    assert run.model.head.weight is run.model.tied.weight
    inputs = torch.randn(4, 3, 8, 8, dtype=net.stem.weight.dtype)
    with torch.no_grad():
        assert torch.equal(run.model(inputs), net(inputs))


@pytest.mark.parametrize("lowering", ["", "split", "dense", "pad8", "pad16+split"])
def test_lowered_chains_and_the_memory_format_come_back(tmp_path, factory, lowering):
    spec = ConvSpec(8, 8, (3, 3), padding=(1, 1))
    chain = (ConvSpec(8, 6, (3, 1), padding=(1, 0), groups=2), ConvSpec(6, 8, (1, 3), padding=(0, 1), groups=2))
    layer = LayerPlan(spec, "by hand", (3,), lower(chain, lowering), lowering=lowering)
    net = network(factory, plan=Plan({"body": layer}, memory_format="channels_last"))
    assert memory_format_of(net) == "channels_last"
    save(net, tmp_path / "run")
    found = load(tmp_path / "run", trust_code=True)
    assert memory_format_of(found) == "channels_last"
    assert [type(m) for m in found.body] == [SplitConv2d if "split" in lowering else nn.Conv2d] * 2
    assert [spec_of(m) for m in found.body] == list(lower(chain, lowering))
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(inputs), net(inputs))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"lowering": ""', '"lowering": "fast"', "unknown lowering 'fast'"),
        ('"memory_format": ""', '"memory_format": "blocked"', "at memory_format: 'blocked'"),
    ],
)
def test_words_of_a_plan_that_are_not_known(tmp_path, factory, old, new, words):
    save(network(factory, plan=plan()), tmp_path / "run")
    path = tmp_path / "run" / "plan.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunError, match=words) as caught:
        load(tmp_path / "run", trust_code=True)
    assert "\n" not in str(caught.value)


def test_a_fresh_process_without_methods_gives_the_same_outputs(tmp_path, factory):
    net = randomise(network(factory, plan=plan())).to(memory_format=torch.channels_last)
    save(net, tmp_path / "run")
    torch.save(torch.randn(4, 3, 8, 8), tmp_path / "in.pt")
    files = [str(tmp_path / name) for name in ("run", "in.pt", "out.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *files], check=True, cwd=tmp_path, env=env())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = net(torch.load(files[1]))
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(files[2]), expected)


def test_shared_tensors_are_stored_once(tmp_path, factory):
    save(network(factory, plan=plan()), tmp_path / "run")
    with safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        names, aliases = set(file.keys()), json.loads(file.metadata()["aliases"])
    assert aliases["tied.weight"] == "head.weight"
    assert aliases["again.0.weight"] == "body.0.weight"
    assert not names & aliases.keys()


def test_torchvision_networks_come_back(tmp_path):
    # mnasnet refuses a state dict that does not say its version
    source = ModelSource("torchvision", "mnasnet0_5", {"num_classes": 3})
    net = attach(rebuild.build_architecture(source).to_empty(device="cpu"), Provenance(source))
    randomise(net)
    save(net, tmp_path / "run")
    found = load(tmp_path / "run", trust_code=True).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in net.state_dict().items())


def test_saving_and_loading_draw_no_random_numbers(tmp_path, factory):
    net = network(factory)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    save(net, tmp_path / "run")
    load(tmp_path / "run", trust_code=True)
    assert torch.equal(torch.rand(1), expected)


def test_a_network_of_unknown_origin_needs_a_source(tmp_path, factory):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).eval()
    with pytest.raises(UsageError, match="load_model"):
        save(net, tmp_path / "run")
    save(net, tmp_path / "run", source=f"{factory}:tiny")
    inputs = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "run", trust_code=True)(inputs), net(inputs))


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path, factory):
    net = network(factory)
    net.head = nn.Linear(8, 5)
    with pytest.raises(RunError, match=r"not what .* build .*head\.weight"):
        save(net, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- what goes along ---


def test_update_keeps_all_the_rest(tmp_path, factory):
    old, new = tmp_path / "old", tmp_path / "new"
    net = network(factory, "tiny")
    save_run(old, with_provenance(net), metrics=EMPTY, info={"seed": 1})
    (old / "checkpoints").mkdir()
    (old / "checkpoints" / "last.pt").write_text("state")
    copy_run(old, new)
    assert sorted(p.name for p in new.iterdir()) == sorted(FILES)
    assert (new / "model.safetensors").samefile(old / "model.safetensors")
    update_run(old, metrics={**EMPTY, "notes": ["2"]}, info={"seed": 2, "name": "x"})
    info, metrics = (json.loads((old / name).read_text()) for name in ("run.json", "metrics.json"))
    assert (metrics["notes"], info["seed"], info["name"]) == (["2"], 2, "x")
    assert (new / "model.safetensors").samefile(old / "model.safetensors")
    update_run(old, info={"mine": [1, "a"]})
    update_run(old, info={"other": 0.5})
    assert load_run(old, trust_code=True).info["extra"] == {"mine": [1, "a"], "other": 0.5}
    assert (old / "checkpoints" / "last.pt").read_text() == "state"
    update_run(old, with_provenance(randomise(net)), metrics=EMPTY)
    run = load_run(old, trust_code=True)
    assert torch.equal(run.model[0].weight, net[0].weight)
    assert run.info["seed"] == 2
    assert not torch.equal(load_run(new, trust_code=True).model[0].weight, net[0].weight)


# --- damage ---


def _edit_json(name, change):
    def edit(run):
        values = json.loads((run / name).read_text())
        change(values)
        (run / name).write_text(json.dumps(values))

    return edit


def _cut(name, size):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:size])


def _other_tensors(run):
    save_file({"0.weight": torch.zeros(2, 3, 3, 2)}, run / "model.safetensors")
    _edit_json("run.json", lambda v: v.pop("sha256"))(run)


def _without_code(run):
    (run.parent / "factory.py").unlink()
    (run / "network.pt2").unlink()


NOWHERE = plan_to_json(Plan({"x": LayerPlan(ConvSpec(1, 1), "a-method", (1,), (ConvSpec(1, 1),))}))["layers"]

DAMAGE = {
    "missing": (lambda run: run.rename(run.with_name("elsewhere")), "no such folder"),
    "no_run_json": (lambda run: (run / "run.json").unlink(), "not a run"),
    "newer": (_edit_json("run.json", lambda v: v.update(format=2)), "newer version.*upgrade"),
    "no_format": (_edit_json("run.json", lambda v: v.pop("format")), "names no format"),
    "no_source": (_edit_json("run.json", lambda v: v.pop("source")), "damaged.*source"),
    "odd_source": (_edit_json("run.json", lambda v: v["source"].update(kind="builtin")), "cannot be built"),
    "odd_preprocessing": (_edit_json("run.json", lambda v: v["preprocessing"].update(x=1)), "damaged"),
    "cut_json": (_cut("run.json", 20), "run.json is not JSON"),
    "json_list": (lambda run: (run / "metrics.json").write_text("[]"), "no JSON object"),
    "no_metrics": (lambda run: (run / "metrics.json").unlink(), "incomplete: metrics.json"),
    "no_plan": (lambda run: (run / "plan.json").unlink(), "incomplete: plan.json"),
    "odd_plan": (_edit_json("plan.json", lambda v: v.pop("kept")), "damaged.*kept"),
    "plan_of_another": (
        _edit_json("plan.json", lambda v: v["layers"].update(NOWHERE)),
        "plan does not fit",
    ),
    "no_tensors": (lambda run: (run / "model.safetensors").unlink(), "cannot be read"),
    "cut_tensors": (_cut("model.safetensors", -5), "truncated"),
    "cut_header": (_cut("model.safetensors", 4), "truncated"),
    "empty_tensors": (_cut("model.safetensors", 0), "truncated"),
    "other_tensors": (_other_tensors, "1 missing: 0.bias; 1 of another shape: 0.weight"),
    "factory_gone": (_without_code, "factory.py"),
    "factory_raises": (lambda run: (run.parent / "factory.py").write_text("1/0"), "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(tmp_path, factory, case):
    damage, words = DAMAGE[case]
    save(network(factory, "tiny"), tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(RunError, match=words) as caught:
        load_run(tmp_path / "run", trust_code=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"strides": "[" * 100_000},
        {"strides": '{"x": [2, 1], "x": [1, 2]}'},
        {"strides": '{"x": [NaN, 1]}'},
        {"strides": '{"x": {"a": 1}}'},
        {"aliases": '{"y": "z", "z": "y"}'},
        {"aliases": '{"y": ["x"]}'},
        {"aliases": "x"},
        {"code": "{}"},
    ],
    ids=str,
)
def test_metadata_of_tensors_are_checked(tmp_path, metadata):
    save_file({"x": torch.zeros(2, 2)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(RunError, match=r"x\.safetensors cannot be read: it is missing, truncated or garbled") as error:
        load_tensors(tmp_path / "x.safetensors")
    assert len(str(error.value)) < 400


def test_strides_from_a_file_are_checked(tmp_path):
    for strides in ([1, 1], [2, 1, 1], [-1, 2], ["a", "b"], [2**40, 1]):
        save_file({"x": torch.zeros(2, 2)}, tmp_path / "x.safetensors", {"strides": json.dumps({"x": strides})})
        with pytest.raises(RunError, match="garbled"):
            load_tensors(tmp_path / "x.safetensors")


HIDDEN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.values = [{value}]

    def forward(self, x):
        return (self.conv(x) * self.values[0]).mean((2, 3))
"""


@pytest.mark.parametrize(("value", "notes"), [("torch.rand(1) + 1", 1), ("torch.full((1,), 2.0)", 0)])
def test_a_run_that_does_not_hold_the_whole_network_says_so(value, notes, tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(HIDDEN.format(value=value))
    model = load_model(f"{path}:Net", input_size=8).model
    found = save_run(tmp_path / "run", with_provenance(model), metrics={"schema": 1, "rows": [], "layers": []})
    assert [note for note in found if "does not hold the whole network" in note] == found
    assert len(found) == notes
