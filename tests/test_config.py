"""Settings files: what they may say, what wins, and what is refused in which words."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cnncompress.api import run_decompose
from cnncompress.chains.plan import Budget
from cnncompress.config import DecomposeSettings, TuneSettings, merge, parse_arguments, validate
from cnncompress.config.parsing import parse_budgets
from cnncompress.data import check_augmentation
from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings

LEVEL = ", ".join(["*a{}"] * 9)
BOMB = "method:\n- &a0 [x]\n" + "".join(f"- &a{i} [{LEVEL.replace('{}', str(i - 1))}]\n" for i in range(1, 9))
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "settings.yaml"

    def put(text):
        path.write_text(text)
        return path

    return put


def decomposing(path, **flags):
    return merge(DecomposeSettings, path, flags)


def test_flags_win_over_the_file_and_the_file_over_defaults(write):
    path = write("model: vgg16\nrank: 8\nlayers: ['features.*', head]\nbatch_size: 16\nmean: 0.5\ninput_size: 32x48\n")
    settings = decomposing(path, rank="0.5", model=None, layers=(), force=True)
    assert (settings.model, settings.rank, settings.force) == ("vgg16", 0.5, True)
    assert settings.layers == ["features.*", "head"]
    assert (settings.batch_size, settings.workers, settings.seed) == (16, 0, 0)
    assert (settings.mean, settings.input_size) == ((0.5,), (32, 48))
    assert decomposing(path, layers=("x",)).layers == ["x"]


@pytest.mark.parametrize(
    ("value", "rank"), [("8", 8), ("0.25", 0.25), (8, 8), (1.0, 1.0), ("1", 1), ("1.", 1.0), ([3, 5], (3, 5))]
)
def test_ranks(value, rank):
    found = decomposing(None, rank=value).rank
    assert found == rank
    assert type(found) is type(rank)


def test_rules_by_layer(write):
    settings = decomposing(write("per_layer:\n  features.*: {rank: 8}\n  head: {method: svd, rank: 0.5}\n"))
    assert [(r.method, r.rank) for r in settings.per_layer.values()] == [(None, 8), ("svd", 0.5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rnak: 3", "unknown key 'rnak'; did you mean 'rank'?"),
        ("dry-run: true", "did you mean 'dry_run'?"),
        ("zzz: 3", "known: model, weights"),
        ("1: 2", "unknown key '1'"),
        ("epochs: 3", "'epochs' belongs in the section `finetune:`"),
        ("finetune: {epohs: 3}", "unknown key 'finetune.epohs'; did you mean 'epochs'?"),
        ("finetune: 3", "finetune: 3 should be a valid dictionary"),
        ("per_layer: 3", "per_layer: 3 should be a valid dictionary"),
        ("per_layer: {a: 3}", "per_layer.a: 3 should be a valid dictionary"),
        ("per_layer: {a: {rnk: 3}}", "unknown key 'per_layer.a.rnk'; did you mean 'rank'?"),
        ("per_layer: {a: {rank: -3}}", "per_layer.a.rank: rank -3 makes no sense"),
        ("rank: 0", "rank: rank 0 makes no sense"),
        ("rank: true", "rank: rank True is not a number"),
        ("rank: [3, 0.5]", "rank: rank [3, 0.5] is not a number"),
        ("rank: {}", "rank: rank {} is not a number"),
        ("model: 3", "model: 3 should be a valid string"),
        ("method:", "method: None should be a valid string"),
        ("layers: features.*", "layers: 'features.*' should be a valid list"),
        ("batch_size: 0", "batch_size: 0 should be greater than or equal to 1"),
        ("batch_size: 1.5", "batch_size: 1.5 should be a valid integer"),
        ("workers: -1", "workers: -1 should be greater than or equal to 0"),
        ("seed: a", "seed: 'a' should be a valid integer"),
        ("device: gpu", "device: 'gpu' should be 'auto', 'cpu' or 'cuda'"),
        ("force: maybe", "force: 'maybe' should be a valid boolean"),
        ("mean: [1, x]", "is not one number, or one a channel"),
        ("std: [1, 0, 1]", "std: a standard deviation is positive"),
        ("input_size: [1, 2, 3]", "input_size: '[1, 2, 3]' is not H or HxW"),
        ("input_size: {a: 1}", "is not H or HxW"),
        ("model: [", "is not YAML"),
        ("a: &x [*x]\nb: *x", "refers to itself"),
        ("? [a]\n: b", "a key in line 1 that is not a word"),
        ("[" * 5000, "nested deeper than 32 levels"),
        ("rank: 8\nseed: 1\nrank: 4", "has the key 'rank' twice (line 3)"),
        ("max_drop: .nan", "max_drop: nan should be a finite number"),
        ("finetune: {lr: .inf}", "finetune.lr: inf should be a finite number"),
        (BOMB, "more than 50,000 values once its aliases are expanded"),
        (f"rank: {'9' * 5000}", "is not YAML"),
        (f"rank: {'9' * 20_000}", "a value of more than 10,000 characters"),
        (f"model: {'1:' * 200_000}", "larger than 262,144 bytes"),
        ("{" + "a" * 900 + ": 1}", "unknown key 'aaa"),
        ("model: os:system", "has the code of os:system run: give --trust-code"),
        ("seed: !!timestamp", "is not YAML"),
        ("seed: !!int x", "is not YAML"),
        ("trust_code: true", "trust_code is not for files"),
        ("finetune: {trust_code: true}", "trust_code is not for files"),
        ('!!python/object/apply:os.system ["true"]', "is not YAML"),
        ("\x00", "is not YAML"),
        ('model: "a\\0b"', "model: 'a\\x00b' cannot name anything"),
        ('plan: "a\\0b"', "plan: 'a\\x00b' cannot name anything"),
        ('latency_table: "a\\0b"', "latency_table: 'a\\x00b' cannot name anything"),
        ('finetune: {out: "a\\0b"}', "finetune.out: 'a\\x00b' cannot name anything"),
        ("- a", "holds a list, not a mapping"),
        ("7", "holds a int, not a mapping"),
    ],
)
def test_wrong_files(text, words, write):
    path = write(text)
    with pytest.raises(UsageError) as error:
        decomposing(path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["macs=0.5", "{macs: 0.5}", "[macs=0.5]"])
def test_budgets_in_a_file(write, text):
    assert decomposing(write(f"budget: {text}\n")).budget == Budget(macs=0.5)


def test_an_empty_model_is_none(write):
    assert decomposing(write("model:\nseed: 3\n")).model is None


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        decomposing(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        decomposing(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        decomposing(tmp_path / "binary.yaml")


def test_an_empty_file_says_nothing(write):
    assert decomposing(write("# nothing\n")) == DecomposeSettings()


def test_wrong_flags_are_named_as_flags():
    with pytest.raises(UsageError, match=r"^--batch-size: 0 should be"):
        validate(DecomposeSettings, {"batch_size": 0})


def test_the_section_of_fine_tuning(write):
    path = write(
        "data: digits\nseed: 3\nbatch_size: 8\nfinetune: {schedule: upper, epochs: 4, seed: 5, momentum: 0.5}\n"
    )
    settings = merge(TuneSettings, path, {"epochs": 2, "lr": None}, section="finetune")
    assert (settings.schedule, settings.epochs, settings.momentum) == ("upper", 2, 0.5)
    assert (settings.data, settings.seed, settings.batch_size) == ("digits", 5, 64)


def test_fine_tuning_without_a_section(write):
    assert merge(TuneSettings, write("model: vgg16\n"), {}, section="finetune") == TuneSettings()


# --- the files that come with the tool ---


def dry_run(name, **changes):
    settings = merge(DecomposeSettings, CONFIGS / name, {"weights": "none", "dry_run": True, **changes})
    return run_decompose(settings, []).report.to_json()


@pytest.mark.slow
def test_vgg16_with_the_ranks_of_tai_et_al():
    report = dry_run("tai2016_vgg16.yaml")
    params, macs = zip(*[(layer["params"], layer["macs"]) for layer in report["layers"]], strict=True)
    biases = 2 * (64 + 128) + 3 * (256 + 512 + 512)
    assert biases == 4_224
    assert [sum(column) - biases for column in zip(*params, strict=True)] == [14_710_464, 5_358_573]
    assert [sum(column) for column in zip(*macs, strict=True)] == [15_346_630_656, 4_944_393_216]
    assert [layer["rank"][0] for layer in report["layers"]] == [5, 24, 48, 48, 64, 128, 160, 192, 192, 256, *3 * [320]]
    assert report["kept"] == dict.fromkeys(["classifier.0", "classifier.3", "classifier.6"], "not selected")
    original, planned = report["rows"]
    assert original["macs"] - planned["macs"] == 15_346_630_656 - 4_944_393_216
    assert original["size_bytes"] - planned["size_bytes"] == 4 * (14_710_464 - 5_358_573)


def test_alexnet_with_the_fully_connected_layers_of_denton_et_al():
    report = dry_run("denton2014_fc.yaml")
    shapes = {"classifier.1": (9216, 4096, 250), "classifier.4": (4096, 4096, 350), "classifier.6": (4096, 1000, 250)}
    found = {layer["layer"]: (layer["method"], layer["params"]) for layer in report["layers"]}
    assert found == {n: ("svd", [c * f + f, k * (c + f) + f]) for n, (c, f, k) in shapes.items()}
    assert set(report["kept"]) == {f"features.{i}" for i in (0, 3, 6, 8, 10)}
    settings = merge(TuneSettings, CONFIGS / "denton2014_fc.yaml", {}, section="finetune")
    assert (settings.schedule, settings.epochs) == ("upper", 2)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_valid(path):
    recipe = path.stem.startswith("finetune")  # for a network that is given
    assert bool(merge(DecomposeSettings, path, {}).model) != recipe
    assert merge(TuneSettings, path, {}, section="finetune")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("finetune_*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_fine_tuning_validate_and_explain_every_line(path):
    settings = merge(TuneSettings, path, {"model": "runs/net"}, section="finetune")
    keys = {field.name for field in dataclasses.fields(FinetuneSettings)} & set(TuneSettings.model_fields)
    training = FinetuneSettings(**{key: getattr(settings, key) for key in keys})
    assert training.resolved(torch.device("cpu")).teacher_share == 0.9
    check_augmentation(settings.augment)
    lines = path.read_text().partition("finetune:\n")[2].splitlines()
    assert len(lines) > 10
    assert all("# " in line for line in lines)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("width=0.5", 0.5),
        ("width=8", 8),
        ("width=true", True),
        ("width=null", None),
        ("width=None", None),
        ("width=none", "none"),
        ("width=", None),
        ("width=a=b", "a=b"),
        ("width=[1, 2]", [1, 2]),
        ("width=2020-01-01", "2020-01-01"),
        ("width=a: b: c", "a: b: c"),
        ("width='8'", "8"),
        ("width=1e-4", 0.0001),
        ("width=2E3", 2000.0),
        ("width=1.5e2", 150.0),
        ("width=1e", "1e"),
    ],
)
def test_arguments_of_a_network_have_the_types_of_yaml(typed, value):
    assert parse_arguments((typed,)) == {"width": value}
    assert type(parse_arguments(typed)["width"]) is type(value)


@pytest.mark.parametrize("typed", ["width", "=3", "a b=3", "width={a: 1}", "width=[[1]]", "width=[{a: 1}]"])
def test_arguments_that_no_network_can_be_given(typed):
    with pytest.raises(ValueError, match=r"width|NAME=VALUE"):
        parse_arguments((typed,))


def test_arguments_of_a_network_in_a_config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: timm:resnet18\nmodel_arg: {width: 8, names: [a, b], rate: 1e-3}\n")
    assert merge(DecomposeSettings, path, {}).model_arg == {"width": 8, "names": ["a", "b"], "rate": 0.001}
    assert merge(DecomposeSettings, path, {"model_arg": ("width=9",)}).model_arg == {"width": 9}


@pytest.mark.parametrize(
    ("text", "shares"),
    [("macs=0.3,0.5", [0.3, 0.5]), ("params=0.2:0.8:3", [0.2, 0.5, 0.8]), ("macs=0.5,0.5", [0.5])],
)
def test_grids_of_budgets(text, shares):
    found = parse_budgets(text)
    assert [next(iter(budget.shares.values())) for budget in found] == pytest.approx(shares)


@pytest.mark.parametrize("text", ["time=0.5", "macs=", "macs=0:1", "macs=0.1:0.5:1", "macs=2", "macs=0.1:0.5:1000"])
def test_grids_that_make_no_sense(text):
    with pytest.raises(ValueError, match="macs"):
        parse_budgets(text)


def test_a_cost_alone_is_a_grid_and_several_come_after_each_other():
    assert len(parse_budgets("macs")) == 12
    assert [str(budget) for budget in parse_budgets(["macs=0.5", "latency=0.9"])] == ["macs=0.5", "latency=0.9"]
