"""Networks written as programs give the same outputs; files that were made to do anything else are refused."""

import io
import json
import pickle
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.files.reading import MalformedError
from cnncompress.network.memory_format import memory_format_of
from cnncompress.programs import read_program, write_program
from tests.run_networks import FACTORY, network, plan, randomise


class Odd(nn.Module):
    """Sizes computed from the batch, constants, a shared weight, lists of tensors, one result of several."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.head.weight
        self.drop = nn.Dropout()
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def forward(self, x):
        x = self.drop(self.norm(self.conv(x)).relu_())
        a, b = x.chunk(2, 1)
        x = torch.cat([b, a.clamp(min=0.1)], 1)
        x = x.view(x.shape[0], 8, -1).topk(4, -1)[0].mean(-1)
        return self.tied(self.head(x)) * torch.tensor(2.0) + self.scale


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    return randomise(Odd()).eval()


@pytest.fixture(scope="module")
def written(odd, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "network.pt2"
    write_program(odd, torch.randn(2, 3, 8, 8), path)
    return path


@pytest.fixture
def file(written, tmp_path):
    return Path(shutil.copy(written, tmp_path))


def test_a_program_gives_what_the_network_gives_for_any_batch(odd, file):
    program = read_program(file)
    assert not program.training
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(program(x), odd(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in program.parameters()) == sum(p.numel() for p in odd.parameters())
    assert program.get_parameter("tied.weight") is program.get_parameter("head.weight")
    for name, tensor in odd.state_dict().items():
        assert torch.equal(program.state_dict()[name], tensor)


def test_chains_and_the_memory_format_go_along(tmp_path):
    (tmp_path / "factory.py").write_text(FACTORY)
    net = randomise(network(tmp_path / "factory.py", plan=plan())).to(memory_format=torch.channels_last)
    write_program(net, torch.randn(2, 3, 8, 8), tmp_path / "network.pt2")
    program = read_program(tmp_path / "network.pt2")
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(program(x), net(x), rtol=1e-5, atol=1e-6)
    assert memory_format_of(program) == "channels_last"


def test_types_follow_the_program(tmp_path):
    """A network in half precision that computes a part in float32 is one in float32 where its program is."""

    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.one(x.flatten(1)[:, :4])
            return self.two(x.float().softmax(-1).to(torch.bfloat16)) + torch.ones(3, dtype=torch.bfloat16)

    torch.manual_seed(0)
    net = Careful().bfloat16().eval()
    write_program(net, torch.randn(2, 3, 8, 8).bfloat16(), tmp_path / "network.pt2")
    program = read_program(tmp_path / "network.pt2")
    x = torch.randn(5, 3, 8, 8).bfloat16()
    with torch.no_grad():
        found, single = program(x), program.float()(x.float())
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, net(x))
    assert single.dtype == torch.float32
    assert torch.allclose(single, found.float(), atol=0.05)


def test_it_is_a_program_of_torch_export_too(odd, file):
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(file).module()(x), odd(x), rtol=1e-5, atol=1e-6)


def test_nothing_of_the_source_goes_along(file):
    content = file.read_bytes()
    assert b"test_programs" not in content
    assert b"self.drop" not in content


def test_what_cannot_be_a_program_is_not_written(tmp_path):
    class Sampling(nn.Module):
        def forward(self, x):
            return torch.bernoulli(x.flatten(1))

    class Branching(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    for net in (Sampling(), Branching()):
        with pytest.raises(CompressError) as error:
            write_program(net, torch.ones(2, 3, 8, 8), tmp_path / "network.pt2")
        assert len(str(error.value).splitlines()) == 1
        assert not list(tmp_path.iterdir())


# --- files that somebody made ---


class Loud:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self):
        return (open, ("opened", "w"))


def members(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(file, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def edit(file, member, change):
    """Change the JSON of the member whose name ends so."""
    content = members(file)
    name = next(name for name in content if name.endswith(member))
    values = json.loads(content[name])
    change(values)
    put(file, content | {name: json.dumps(values)})


GRAPH, WEIGHTS = "models/model.json", "model_weights_config.json"


def node(change):
    return GRAPH, lambda v: change(v["graph_module"]["graph"]["nodes"][1])


def weight(change):
    return WEIGHTS, lambda v: change(v["config"]["conv.weight"])


def call(name):
    return node(lambda n: n.update(target=name))


def renamed(name):
    def change(values):
        spec = values["graph_module"]["signature"]["input_specs"][0]["parameter"]
        spec["parameter_name"] = name

    return GRAPH, change


SECOND = {"user_input": {"arg": {"as_tensor": {"name": "y"}}}}
HOSTILE = {
    "shell": (call("torch.os.system"), "no operator"),
    "loading": (call("torch.load"), "no operator"),
    "files": (call("torch.ops.aten.from_file.default"), "no operator"),
    "attributes": (call("_operator.attrgetter"), "no operator"),
    "code as a name": (
        node(lambda n: n["outputs"][0]["as_tensor"].update(name="x=__import__('os').system('touch opened')#")),
        "should match pattern",
    ),
    "code as an argument name": (node(lambda n: n["inputs"][0].update(name="a)+(1")), "should match pattern"),
    "argument of another kind": (node(lambda n: n["inputs"][0].update(arg={"as_graph": {}})), "unknown key"),
    "argument of two kinds": (
        node(lambda n: n["inputs"][0].update(arg={"as_int": 1, "as_bool": True})),
        "no or of several kinds",
    ),
    "object": (node(lambda n: n["inputs"][0].update(arg={"as_custom_obj": {"name": "a"}})), "unknown key"),
    "unknown type": (node(lambda n: n["inputs"][0].update(arg={"as_scalar_type": 99})), "scalar type 99"),
    "value that is not made": (
        node(lambda n: n["inputs"][0].update(arg={"as_tensor": {"name": "none"}})),
        "before it is made",
    ),
    "value made twice": (node(lambda n: n["outputs"][0]["as_tensor"].update(name="x")), "twice"),
    "newer format": ((GRAPH, lambda v: v["schema_version"].update(major=9)), "format 9"),
    "no nodes": ((GRAPH, lambda v: v["graph_module"]["graph"].pop("nodes")), "lacks"),
    "two inputs": (
        (GRAPH, lambda v: v["graph_module"]["signature"]["input_specs"].append(SECOND)),
        "takes 2 inputs",
    ),
    "mutation": (
        (GRAPH, lambda v: v["graph_module"]["signature"]["output_specs"].insert(0, {"buffer_mutation": {}})),
        "lacks graph_module.signature.output_specs.0.user_output",
    ),
    "method as a tensor": (renamed("forward"), "has no tensor"),
    "pickled weight": (weight(lambda p: p.update(use_pickle=True)), "holds a pickle"),
    "path of a weight": (weight(lambda p: p.update(path_name="../../../etc/passwd")), "should match pattern"),
    "missing weight": (weight(lambda p: p.update(path_name="weight_999")), "no whole file"),
    "larger weight": (weight(lambda p: p["tensor_meta"].update(sizes=[{"as_int": 2**20}] * 4)), "needs more"),
    "repeated weight": (
        weight(lambda p: p["tensor_meta"].update(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}])),
        "needs more",
    ),
    "offset": (weight(lambda p: p["tensor_meta"].update(storage_offset={"as_int": 2**40})), "needs more"),
    "negative stride": (weight(lambda p: p["tensor_meta"]["strides"][0].update(as_int=-1)), "greater than or equal"),
    "strides of another shape": (weight(lambda p: p["tensor_meta"]["strides"].pop()), "type or layout"),
    "layout": (weight(lambda p: p["tensor_meta"].update(layout=2)), "type or layout"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_made_up_program_is_refused(case, file, monkeypatch):
    (member, change), words = HOSTILE[case]
    monkeypatch.chdir(file.parent)
    edit(file, member, change)
    with pytest.raises(MalformedError) as error:
        read_program(file)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    assert [p.name for p in file.parent.iterdir()] == ["network.pt2"]


def test_a_tensor_may_not_stand_for_a_method(file):
    edit(file, GRAPH, renamed("forward")[1])
    edit(file, WEIGHTS, lambda v: v["config"].update({"forward": v["config"]["conv.weight"]}))
    with pytest.raises(MalformedError, match="called 'forward'"):
        read_program(file)


def test_what_is_not_read_is_not_opened_either(file, odd, monkeypatch):
    # the example inputs are a pickle, and expressions and guards are text that torch's loader evaluates
    monkeypatch.chdir(file.parent)
    loud, code = pickle.dumps(Loud()), "__import__('os').system('touch opened')"
    buffer = io.BytesIO()
    torch.save(Loud(), buffer)

    def change(values):
        values["guards_code"] = [code]
        values["range_constraints"] = {code: {"min_val": 2, "max_val": None}}
        values["graph_module"]["graph"]["sym_int_values"] = {"s0": {"as_expr": {"expr_str": code, "hint": None}}}
        values["graph_module"]["treespec_namedtuple_fields"] = {"os.system": {"field_names": [code]}}

    edit(file, GRAPH, change)
    content = members(file)
    folder = next(iter(content)).partition("/")[0]
    samples = next(name for name in content if "sample_inputs" in name)
    put(file, content | {samples: buffer.getvalue(), f"{folder}/data/constants/custom_obj_0": loud})
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(read_program(file)(x), odd(x), rtol=1e-5, atol=1e-6)
    assert [p.name for p in file.parent.iterdir()] == ["network.pt2"]


def test_bombs_and_other_files_are_refused(file):
    content = members(file)
    put(file, content, zipfile.ZIP_DEFLATED)
    with pytest.raises(MalformedError, match="compressed"):
        read_program(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name in content:
            archive.writestr(name, content[name])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, content[name])
    with pytest.raises(MalformedError, match="two members of one name"):
        read_program(file)
    for bytes_ in (b"", b"PK", pickle.dumps(Loud()), file.read_bytes()[:1000]):
        file.write_bytes(bytes_)
        with pytest.raises(MalformedError, match="no whole file"):
            read_program(file)


def test_damage_anywhere_is_told_or_harmless(file):
    content, chance = file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content) - 3000, len(content))] = chance.randrange(256)  # where the index is
        file.write_bytes(damaged)
        with suppress(MalformedError, OSError):  # and nothing else
            read_program(file)
