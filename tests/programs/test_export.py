import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer, Permute
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.programs import export as exporting
from cnncompress.programs.export import export_onnx, export_openvino, export_pt2

EXPORTERS = [(export_onnx, "net.onnx"), (export_pt2, "net.pt2")]
both = pytest.mark.parametrize(("exporter", "name"), EXPORTERS, ids=["onnx", "pt2"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(third_mode="circular"):
    """Chains with a permutation, groups, dilation, 'same' padding of an even kernel, and three padding modes."""
    first = (
        ConvSpec(3, 8, (3, 1), padding=(1, 0), padding_mode="reflect"),
        Permutation(8),
        ConvSpec(8, 8, (1, 3), padding=(0, 1), groups=2, bias=True, padding_mode="reflect"),
    )
    second = (ConvSpec(8, 4, (2, 3), padding="same", dilation=(1, 2)), ConvSpec(4, 8, bias=True))
    third = (ConvSpec(8, 2), ConvSpec(2, 8, (3, 3), (2, 2), (1, 1), bias=True, padding_mode=third_mode))
    fourth = (Permutation(8, True), ConvSpec(8, 2, linear=True), ConvSpec(2, 5, linear=True))
    net = nn.Sequential(
        FactoredLayer(first),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        FactoredLayer(second),
        nn.ReLU(),
        FactoredLayer(third),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        FactoredLayer(fourth),
    )
    for permute in (m for m in net.modules() if isinstance(m, Permute)):
        permute.index.copy_(torch.randperm(8))
    return net


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()


@pytest.mark.few(1)
@pytest.mark.parametrize("batch", [1, 2])
def test_onnx_runs_elsewhere_at_any_batch_size(tmp_path, batch):
    net, path = network(), tmp_path / "new" / "net.onnx"
    report = export_onnx(net, torch.randn(batch, 3, 12, 12), path)
    assert net.training
    assert net[0][0].training  # the mode of the network is as it was
    assert report.path == path
    assert report.bytes == path.stat().st_size
    assert report.relative_difference <= report.tolerance == 1e-4
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path)
    inputs = torch.randn(5, 3, 12, 12)
    with torch.no_grad():
        expected = net.eval()(inputs)
    found = torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not {n.op_type for n in onnx.load(path).graph.node} & {"Dropout"}


def test_pt2_is_bitwise_the_network_at_any_batch_size(tmp_path):
    net, path = network().eval(), tmp_path / "net.pt2"
    report = export_pt2(net, torch.randn(1, 3, 12, 12), path)
    assert report.relative_difference <= 1e-6
    inputs = torch.randn(5, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(path).module()(inputs), net(inputs))


def test_pt2_keeps_half_precision(tmp_path):
    net = small().bfloat16()
    report = export_pt2(net, torch.randn(2, 3, 8, 8).bfloat16(), tmp_path / "net.pt2")
    assert report.tolerance == 2e-2
    assert torch.export.load(report.path).state_dict["0.weight"].dtype == torch.bfloat16


@both
def test_existing_output_needs_force(tmp_path, exporter, name):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(RunError, match=r"already exists.*--force"):
        exporter(small(), torch.randn(2, 3, 8, 8), path)
    assert path.read_text() == "mine"
    exporter(small(), torch.randn(2, 3, 8, 8), path, force=True)
    assert path.read_bytes()[:4] != b"mine"


@pytest.mark.few(1)
@both
def test_outputs_that_differ_leave_nothing(tmp_path, exporter, name, monkeypatch):
    path = tmp_path / "new" / name
    monkeypatch.setattr(exporting, "forward", lambda net, x: net(x) * 1.001)
    with pytest.raises(CompressError, match=r"differ .* by 1\.0e-03 of their scale, more than 1\.0e-04") as caught:
        exporter(small(), torch.randn(2, 3, 8, 8), path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert exporter(small(), torch.randn(2, 3, 8, 8), path, tolerance=0.01).relative_difference > 9e-4


def test_a_mismatch_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    monkeypatch.setattr(exporting, "forward", lambda net, x: net(x) + float("nan"))
    with pytest.raises(CompressError, match="differ"):
        export_onnx(small(), torch.randn(2, 3, 8, 8), path, force=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


class Branching(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@both
def test_a_network_that_cannot_be_exported_is_one_line(tmp_path, exporter, name, capfd):
    with pytest.raises(CompressError, match="cannot export this network") as caught:
        exporter(Branching(), torch.randn(2, 3, 8, 8), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_wrong_input_is_one_line(tmp_path):
    with pytest.raises(CompressError, match="forward pass of Sequential fails on an input of 1×4×8×8") as caught:
        export_pt2(small(), torch.randn(1, 4, 8, 8), tmp_path / "net.pt2")
    assert "\n" not in str(caught.value)


@both
def test_a_file_cannot_be_a_parent(tmp_path, exporter, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="not a folder"):
        exporter(small(), torch.randn(2, 3, 8, 8), tmp_path / "file" / name)
    with pytest.raises(RunError, match="it is a folder"):
        exporter(small(), torch.randn(2, 3, 8, 8), tmp_path, force=True)


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("cnncompress.network.onnx.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(CompressError, match=r"onnxruntime is not installed: pip install 'cnncompress\[onnx\]'"):
        export_onnx(small(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")


def test_weights_beyond_one_onnx_file_are_refused(tmp_path):
    with torch.device("meta"):
        net = nn.Linear(2**15, 2**14)
    with pytest.raises(CompressError, match=r"2\.1 GB of weights do not fit .* pt2"):
        export_onnx(net, torch.zeros(1, 2**15), tmp_path / "net.onnx")


@both
def test_a_random_network_is_named_as_one(tmp_path, exporter, name):
    class Random(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x.mean((2, 3)))

    with pytest.raises(CompressError, match="two forward passes on the same input differ"):
        exporter(Random(), torch.randn(2, 3, 4, 4), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.few(1)
@pytest.mark.parametrize("batch", [1, 2])
def test_openvino_files_run_elsewhere_at_any_batch_size(tmp_path, batch):
    openvino = pytest.importorskip("openvino")
    net, path = network("replicate"), tmp_path / "new" / "net.xml"
    report = export_openvino(net, torch.randn(batch, 3, 12, 12), path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["net.bin", "net.xml"]
    assert report.bytes == sum(p.stat().st_size for p in path.parent.iterdir())
    net.eval()
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 5):
        x = torch.randn(size, 3, 12, 12)
        assert torch.allclose(torch.from_numpy(compiled(x.numpy())[0]), net(x), atol=1e-5)


@pytest.mark.slow
def test_two_files_appear_together_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path, x = tmp_path / "net.xml", torch.randn(2, 3, 8, 8)
    (tmp_path / "net.bin").write_text("mine")
    with pytest.raises(RunError, match=r"net\.bin already exists"):
        export_openvino(small(), x, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.bin"]
    monkeypatch.setattr(exporting, "compare", lambda *_: (1.0, 1.0))
    with pytest.raises(CompressError, match="OpenVINO file was not written"):
        export_openvino(small(), x, path, force=True)
    assert (tmp_path / "net.bin").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["net.bin"]
    monkeypatch.undo()
    export_openvino(small(), x, path, force=True)
    assert (tmp_path / "net.bin").stat().st_size > 100


def test_what_openvino_does_not_read_is_said_in_one_line(tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(CompressError, match=r"OpenVINO cannot read this network: .*Unsupported") as error:
        export_openvino(network(), torch.randn(2, 3, 12, 12), tmp_path / "net.xml")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_openvino_needs_its_ending_and_its_package(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    with pytest.raises(UsageError, match=r"give a name that ends in \.xml"):
        export_openvino(small(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")
    monkeypatch.setattr("cnncompress.network.openvino.find_spec", lambda name: None)
    with pytest.raises(CompressError, match=r"openvino is not installed: pip install 'cnncompress\[openvino\]'"):
        export_openvino(small(), torch.randn(2, 3, 8, 8), tmp_path / "net.xml")
    assert not list(tmp_path.iterdir())


def test_operator_sets(tmp_path):
    export_onnx(small(), torch.randn(2, 3, 8, 8), tmp_path / "old.onnx", opset=19)
    assert onnx.load(tmp_path / "old.onnx").opset_import[0].version == 19
