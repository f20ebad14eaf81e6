"""The whole job by the command line: decompose, again, finetune, report, export, evaluate."""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.pipeline import latencies
from tests.cli.conftest import complaint, listing
from tests.timing import took


def originals():
    """Parameters and MACs of digits_vgg, by arithmetic."""
    widths, side = (3, 16, 16, 32, 32, 64, 64), (32, 32, 16, 16, 8, 8)
    convolutions = [9 * a * b for a, b in itertools.pairwise(widths)]
    linear = [(1024, 256), (256, 256), (256, 10)]
    biases_and_norms = 3 * sum(widths[1:])
    params = sum(convolutions) + biases_and_norms + sum(a * b + b for a, b in linear)
    macs = sum(w * s * s for w, s in zip(convolutions, side, strict=True)) + sum(a * b for a, b in linear)
    return params, macs


def report_of(done, *args):
    return json.loads(done("report", *args, "--format", "json"))


def test_decompose_finetune_report(done, cli):
    text = done("decompose", "digits_vgg", "--data", "digits", "--rank", "0.25", "--out", "half")
    assert "saved in half" in text
    assert sorted(p.name for p in Path("half").iterdir()) == [
        "metrics.json",
        "model.safetensors",
        "plan.json",
        "run.json",
    ]
    assert text.startswith(done("report", "half", "--layers").rstrip("\n"))
    before = report_of(done, "half")
    tuning = ["finetune", "half", "--data", "digits", "--lr", "0.005"]
    text = done(*tuning, "--out", "tuned")
    assert "saved in tuned" in text
    assert text.startswith(done("report", "tuned").rstrip("\n"))
    assert report_of(done, "half") == before
    after = report_of(done, "tuned")
    assert after["rows"][:2] == before["rows"]
    assert [row["kind"] for row in after["rows"]] == ["original", "decomposed", "finetuned"]
    decomposed, tuned = after["rows"][1:]
    assert tuned["top1"] > decomposed["top1"]
    assert (tuned["params"], tuned["macs"]) == (decomposed["params"], decomposed["macs"])
    evaluated = done("evaluate", "tuned", "--data", "digits")
    assert f"top-1 {tuned['top1']:.2f} %" in evaluated
    again = done(*tuning, "--out", "tuned", "--resume")  # a finished training only publishes its result again
    assert "best of epoch 1" in again
    assert report_of(done, "tuned") == after
    assert "tuned already exists" in cli(*tuning, "--out", "tuned").err
    done(*tuning, "--out", "tuned", "--force")
    assert json.loads(Path("tuned/run.json").read_text())["finetune"]["lr"] == 0.005
    assert listing() == sorted([*listing("half"), *listing("tuned"), "half", "tuned"])


def test_json_report(saved, done):
    report = report_of(done, saved, "--data", "digits", "--latency", "--threads", "1")
    assert set(report) == {"schema", "rows", "layers", "kept", "notes", "class_changes", "layer_times"}
    assert len(report["layer_times"][0]["layers"]) == 9
    assert report["schema"] == 1
    keys = {"name", "kind", "params", "macs", "size_bytes", "top1", "top5", "images", "latency_ms"}
    keys |= {"other_macs", "data", "top1_error"}
    timing = {"median", "p10", "p90", "batch", "threads", "device", "dtype", "memory_format", "original", "runtime"}
    for row in report["rows"]:
        assert set(row) == keys
        assert set(row["latency_ms"]) == timing
        assert row["images"] == 359  # a fifth of scikit-learn's 1,797
        assert 0 <= row["top1"] <= row["top5"] <= 100
    first, second = report["rows"]
    assert (first["params"], first["macs"]) == originals()
    # K = 4 in k×k layers C→F: k·K·(C + F) weights, at the sizes above; in Linear layers K·(C + F); biases stay
    for layer in report["layers"]:
        assert set(layer) == {"layer", "method", "rank", "params", "macs", "error", "was", "rise"}
        assert layer["rank"] == [4]
        assert 0 < layer["error"] < 1
    saved_params = sum(a - b for a, b in (layer["params"] for layer in report["layers"]))
    saved_macs = sum(a - b for a, b in (layer["macs"] for layer in report["layers"]))
    assert (second["params"], second["macs"]) == (first["params"] - saved_params, first["macs"] - saved_macs)
    by_name = {layer["layer"]: layer for layer in report["layers"]}
    assert by_name["features.17"]["params"] == [9 * 64 * 64 + 64, 3 * 4 * (64 + 64) + 64]
    assert by_name["features.17"]["macs"] == [9 * 64 * 64 * 64, 3 * 4 * (64 + 64) * 64]
    assert by_name["classifier.3"]["params"] == [256 * 257, 4 * 512 + 256]
    assert all(reason for reason in report["kept"].values())
    assert len(report["layers"]) + len(report["kept"]) == 9


def test_reports_in_every_format(saved, done):
    params, macs = originals()
    table = done("report", saved, "--layers")
    assert "FLOPs = 2 × MACs" in table
    assert "1×3" not in table
    assert "3×3 64→64" in table
    markdown = done("report", saved, "--format", "markdown")
    assert markdown.partition("\n\n")[2].startswith("| network")  # after a sentence
    rows = list(csv.DictReader(io.StringIO(done("report", saved, "--format", "csv"))))
    assert [(int(r["params"]), int(r["macs"]), int(r["flops"])) for r in rows[:1]] == [(params, macs, 2 * macs)]
    done("report", saved, "--format", "csv", "--output", "report.csv")
    assert list(csv.DictReader(io.StringIO(Path("report.csv").read_text()))) == rows


def test_report_of_two_runs(saved, done):
    done("decompose", "digits_vgg", "--rank", "2", "--out", "second")
    report = report_of(done, saved, "second")
    assert [row["kind"] for row in report["rows"]] == ["original", "decomposed", "decomposed"]
    assert report["rows"][1]["params"] > report["rows"][2]["params"]
    assert {layer["layer"].rpartition(":")[0] for layer in report["layers"]} == {str(saved), "second"}


def test_default_output_and_decomposing_a_run(done, refused):
    done("decompose", "digits_vgg", "--layers", "features.*")
    assert "runs/digits_vgg already exists" in refused("decompose", "digits_vgg")
    done("decompose", "runs/digits_vgg", "--layers", "classifier.*", "--out", "both")
    report = report_of(done, "both")
    assert len(report["layers"]) == 9
    assert not set(report["kept"]) & {layer["layer"] for layer in report["layers"]}
    assert (report["rows"][0]["params"], report["rows"][0]["macs"]) == originals()
    done("decompose", "digits_vgg", "--out", "once")
    both, once = (cc.load(name).state_dict() for name in ("both", "once"))
    assert both.keys() == once.keys()
    assert all(torch.equal(both[name], once[name]) for name in both)


def test_dry_run_writes_nothing_and_lists_everything(done):
    text = done("decompose", "digits_vgg", "--rank", "0.25", "--skip", "classifier.*", "--dry-run")
    assert listing() == []
    assert "nothing was written" in text
    assert re.search(r"features\.17 +3×3 64→64 +spatial-svd +48 .*36\.93K → 18\.50K 0\.50×", text)
    for name in ("classifier.0", "classifier.3", "classifier.6"):
        assert re.search(rf"{re.escape(name)} +skipped on request", text)
    done("decompose", "digits_vgg", "--rank", "0.25", "--skip", "classifier.*", "--out", "run")
    planned, real = text.splitlines()[2:4], done("report", "run").splitlines()[2:4]
    assert [line.split()[:-3] for line in planned] == [line.split()[:-3] for line in real]


def test_dry_run_tells_why_nothing_is_replaced(done):
    text = done("decompose", "digits_vgg", "--rank", "1.0", "--dry-run")
    assert len(re.findall(r"would not be cheaper|^ {12,}", text, re.MULTILINE)) >= 9


def test_export(saved, done):
    assert "outputs differ by at most" in done("export", saved, "--format", "onnx", "--output", "small.onnx")
    assert listing() == ["small.onnx"]
    import onnxruntime

    image = torch.randn(3, 3, 32, 32)
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": image.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), cc.load(saved)(image), atol=1e-4)


def test_export_beside_the_run(run_copy, done):
    done("export", "run", "--format", "pt2")
    assert Path("run.pt2").is_file()


def test_inspect(saved, done):
    text = done("inspect", "digits_vgg")
    assert len(re.findall(r"^(?:features|classifier)\.\d+ ", text, re.MULTILINE)) == 9
    assert re.search(r"features\.17 +3×3 64→64 +36,928 +2,359,296 +23\.1 .* of 192", text)
    assert re.search(r"^[A-Z]: .*spatial-svd", text, re.MULTILINE)
    assert re.search(r"tucker2,\sselect\n", text)
    assert "no select for features.0, whose input channels stay whole: they are those of the image" in text
    assert "features.17.0 " in done("inspect", saved)


def test_profile(saved, done):
    params, macs = originals()
    text = done("profile", saved, "--threads", "1", "--batch-size", "2")
    assert "latency, share of the original" in text
    assert "batch 2, cpu, 1 thread, float32" in text
    text = done("profile", "digits_vgg", "--threads", "1")
    for value in (params, macs, 2 * macs):
        assert f"{value:,}" in text


def test_profile_of_layers(saved, done):
    text = done("profile", "digits_vgg", "--layers", "--threads", "1")
    assert re.search(r"^features\.17 +3×3 64→64 +\d+\.\d{3} +\d+\.\d%$", text, re.MULTILINE)
    assert len(re.findall(r"^(?:features|classifier)\.\d+ ", text, re.MULTILINE)) == 9
    text = done("profile", saved, "--layers", "--threads", "1")
    row = r"^features\.17 +3×3 64→64 +spatial-svd 4 +(\d+\.\d{3}) +(\d+\.\d{3}) +(\d+\.\d\d)$"
    before, after, share = map(float, re.search(row, text, re.MULTILINE).groups())
    assert share == pytest.approx(after / before, abs=0.05)
    assert re.search(r"^all layers ", text, re.MULTILINE)


@pytest.mark.slow
def test_layers_are_timed_where_they_can_be(done):
    """With several runtimes, those that show no layers are named, and the others' times are printed."""
    runtimes = ["--runtime", "onnxruntime", "--runtime", "torch", "--runtime", "openvino"]
    text = done("profile", "digits_vgg", "--layers", "--threads", "1", *runtimes)
    assert len(re.findall(r"^(?:features|classifier)\.\d+ ", text, re.MULTILINE)) == 9
    assert "\nno times by layer in onnxruntime, openvino: what layers take does not show there\n" in text


@pytest.mark.slow
def test_slower_layers_are_named(saved, done, monkeypatch):
    def times(models, *args, **kwargs):
        def value(name, network):
            ms = 2.0 if network == "original" else 3.0 if name == "features.3" else 1.0
            return took(ms)

        names = ["features.0", "features.3"]
        return {network: {name: value(name, network) for name in names} for network in models}

    monkeypatch.setattr(latencies, "layer_latencies", times)
    text = done("profile", saved, "--layers", "--threads", "1")
    assert "features.3 is slower than the layer it replaced: 3.000 ms for 2.000\n" in text
    assert "features.0 is slower" not in text


@pytest.mark.parametrize(("now", "said"), [(2.0, True), (3.0, True), (1.0, False)])
def test_a_run_that_is_not_faster_than_its_original_in_its_fastest_format_says_so(saved, done, monkeypatch, now, said):
    def times(models, *args, **kwargs):
        taken = dict(zip(models, (4.0, 2.0, now), strict=True))
        return {name: took(ms, name.rpartition(" ")[2]) for name, ms in taken.items()}

    monkeypatch.setattr(latencies, "latency", times)
    text = done("profile", saved)
    assert ("not faster than the original" in text) == said
    assert re.search(rf"^latency, share of the original, channels_last +{now / 2:.2f}$", text, re.MULTILINE)


@pytest.mark.slow
def test_a_run_beside_its_original_in_both_memory_formats(saved, done):
    model = cc.load(saved).to(memory_format=torch.channels_last)
    cc.save(model, "last")
    text = done("profile", "last", "--threads", "1")
    for layout in ("contiguous", "channels_last"):
        assert re.search(rf"^latency, original, {layout} +\d", text, re.MULTILINE)
        assert re.search(rf"^latency, share of the original, {layout} +\d", text, re.MULTILINE)
    assert "float32, channels_last" in text
    assert "original, contiguous" not in done("profile", "last", "--threads", "1", "--memory-format", "channels_last")


@pytest.mark.parametrize("width", [80, 120])
def test_methods_fit_the_terminal(width, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = done("methods")
    assert max(map(len, text.splitlines())) <= width
    for name in ("spatial-svd", "channel-svd", "svd", "tucker2", "cp"):
        assert re.search(rf"^{name} ", text, re.MULTILINE)


@pytest.mark.slow
def test_nothing_but_what_is_being_done_on_stderr(cli):
    result = cli("decompose", "digits_vgg", "--data", "digits", "--rank", "0.25", "--out", "run")
    assert re.fullmatch(r"time: .* s; peak memory .* GiB\n", complaint(result.err))
    for args in (
        ["finetune", "run", "--data", "digits", "--batch-size", "512"],
        ["report", "run", "--latency"],
        ["export", "run", "--format", "onnx"],
        ["evaluate", "run", "--data", "digits"],
        ["inspect", "run"],
        ["profile", "run"],
    ):
        result = cli(*args)
        assert result.code == 0
        assert complaint(result.err) in ("", "no epoch was better than the start, whose weights are kept\n"), args


RELOAD = """
import sys
import torch
import cnncompress as cc
torch.set_num_threads(1)
image = torch.load("image.pt")
torch.save(cc.load(sys.argv[1])(image), "found.pt")
"""


@pytest.mark.slow
def test_python_api(cli):
    model = cc.load_model("digits_vgg").model
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(image)
    plan = cc.plan(model, image, method="auto", rank=0.25)
    small = cc.decompose(model, plan, progress=False)
    assert torch.equal(model(image), expected)
    cc.save(small, "run")
    outputs = small(image)
    assert torch.equal(cc.load("run")(image), outputs)
    torch.save(image, "image.pt")
    subprocess.run([sys.executable, "-c", RELOAD, "run"], check=True)
    assert torch.equal(torch.load("found.pt"), outputs)


@pytest.mark.slow
def test_a_run_saved_from_python_goes_on(cli, done, refused):
    model = cc.load_model("digits_vgg").model
    plan = cc.plan(model, torch.zeros(1, 3, 32, 32), layers=["features.*"], rank=4)
    cc.save(cc.decompose(model, plan, progress=False), "run")
    assert "holds no measurements" in refused("report", "run")
    done("finetune", "run", "--data", "digits", "--batch-size", "512")
    done("decompose", "run", "--layers", "classifier.*", "--out", "more")
    shutil.rmtree("run")
    assert "Linear 1024→256" in done("report", "more", "--layers")
