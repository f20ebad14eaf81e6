"""Files that somebody else may have written: each is read after its schema, or refused in one line."""

import json
import os
import stat
import sys

import pytest
import yaml

from cnncompress.chains.plan_json import plan_to_json
from cnncompress.chains.plan_schema import PlanFile, StoredPlan
from cnncompress.files.reading import MalformedError, check, parse_json, read_json, read_yaml
from cnncompress.files.schemas import ClassIndex, Info, Metrics
from tests.run_networks import EMPTY, ROW, plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ('{"a": 1', "is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "has the key 'a' twice"),
        ("[NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "holds the number '1e999', which is too large"),
        (f"[{2**63}]", "which is too large"),
        (f"[{'9' * 100_000}]", "which is too large"),
        ("[" * 33 + "]" * 33, "nested deeper than 32 levels"),
        ("[" * 200_000, "nested deeper than 32 levels"),
        ('{"a":' * 200_000, "nested deeper than 32 levels"),
        ("[" + "0," * 500_000 + "0]", "holds more than 500,000 values"),
        ('["\\ud800"]', "half a character"),
    ],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(MalformedError) as error:
        parse_json(text)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300


def test_yaml_ends_at_the_first_level_too_many_however_deep_python_may_go(tmp_path, monkeypatch):
    """A level more makes every token slower: 20,000 take hours. The parser looks up to 1,024 characters ahead."""
    limit = sys.getrecursionlimit()
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 20_000 + "]" * 20_000)
    sys.setrecursionlimit(100_000)
    scanned = []
    fetch = yaml.SafeLoader.fetch_flow_sequence_start
    monkeypatch.setattr(yaml.SafeLoader, "fetch_flow_sequence_start", lambda self: scanned.append(1) or fetch(self))
    try:
        with pytest.raises(MalformedError, match="nested deeper than 32 levels"):
            read_yaml(tmp_path / "deep.yaml")
    finally:
        sys.setrecursionlimit(limit)
    assert len(scanned) < 1100


def test_json_that_is_read():
    values = {"a": [1, -2.5, None, True, "é→\U0001f600"], "b": {"c": [2**63 - 1, -(2**63), 1e308]}}
    assert parse_json(json.dumps(values)) == values
    assert parse_json("[" * 32 + "]" * 32)


def test_only_regular_files_of_limited_size_are_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(MalformedError, match="not UTF-8"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(MalformedError, match="holds no JSON object"):
        read_json(path)
    path.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(path) == {"a": 1}
    monkeypatch.setattr("cnncompress.files.reading.JSON_BYTES", 9)
    path.write_text('{"a":123}')
    assert read_json(path) == {"a": 123}
    path.write_text('{"a":1234}')
    with pytest.raises(MalformedError, match="larger than 9 bytes"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    for read in (read_json, read_yaml):
        with pytest.raises(MalformedError, match="not a regular file"):
            read(tmp_path / "pipe")


def changed(values, key, value):
    """A copy of nested values with one of them replaced, or taken out where it is `...`."""
    values = json.loads(json.dumps(values))
    inner = values
    *path, last = key.split("/")
    for part in path:
        inner = inner[int(part) if isinstance(inner, list) else part]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return values


PLAN = json.loads(json.dumps(plan_to_json(plan())))
RUN = {"format": 1, "source": {"kind": "builtin", "name": "digits_vgg", "kwargs": {"num_classes": 10}}}
RUN |= {"preprocessing": {"size": [8, 8], "resize": None, "mean": [0.5], "std": [0.2], "interpolation": "bilinear"}}
MEASURED = {**EMPTY, "rows": [ROW | {"top1": 50.0, "images": 3}], "kept": {"a": "b"}}
LATENCY = {"median": 1.5, "p10": 1.0, "p90": 2.0, "batch": 1, "threads": 1, "device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (StoredPlan, PLAN),
        (PlanFile, PLAN),
        (PlanFile, {"layers": {"a": {"method": "svd", "rank": 3}, "b": {"method": "cp", "rank": [1, 2]}}}),
        (Metrics, EMPTY),
        (Metrics, MEASURED),
        (Metrics, changed(MEASURED, "rows/0/latency_ms", LATENCY)),
        (Info, RUN),
        (ClassIndex, {"cat": 0, "dog": 1}),
    ],
)
def test_what_is_written_follows_its_schema(schema, values):
    check(schema, values)


@pytest.mark.parametrize(
    ("schema", "values", "words"),
    [
        (StoredPlan, changed(PLAN, "layers/body/rank", 3), "at layers.body.rank"),
        (StoredPlan, changed(PLAN, "layers/body/rank", [0]), "greater than or equal to 1"),
        (StoredPlan, changed(PLAN, "layers/body/rank", [True]), "valid integer"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/in_channels", "8"), "valid integer"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/in_channels", 10**9), "less than or equal to"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/in_channels", 9), "do not follow on each other"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/groups", 3), "not in 3 groups"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/kind", "conv3d"), "conv3d"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/padding", [-1, 0]), "greater than or equal to 0"),
        (StoredPlan, changed(PLAN, "layers/body/stages", []), "at least 1 item"),
        (StoredPlan, changed(PLAN, "layers/body/stages/0/code", "x"), "unknown key"),
        (StoredPlan, changed(PLAN, "layers/body", None), "layers.body"),
        (StoredPlan, changed(PLAN, "kept/head", 3), "valid string"),
        (StoredPlan, changed(PLAN, "kept", ...), "lacks kept"),
        (StoredPlan, changed(PLAN, "memory_format", "blocked"), "'', 'contiguous' or 'channels_last'"),
        (StoredPlan, changed(PLAN, "rises", {"body": "1"}), "valid number"),
        (PlanFile, {"layers": {"a": {"method": "svd"}}}, "lacks layers.a.rank"),
        (PlanFile, {"layers": {"a": {"method": "svd", "rank": {"k": 3}}}}, "layers.a.rank"),
        (PlanFile, {"layer": {}}, "lacks layers"),
        (Metrics, changed(MEASURED, "schema", 2), "at schema"),
        (Metrics, changed(MEASURED, "rows/0/macs", "a"), "rows.0.macs: 'a'"),
        (Metrics, changed(MEASURED, "rows/0/macs", -1), "greater than or equal to 0"),
        (Metrics, changed(MEASURED, "rows/0/macs", 1.5), "valid integer"),
        (Metrics, changed(MEASURED, "rows/0/kind", "other"), "'original', 'decomposed' or 'finetuned'"),
        (Metrics, changed(MEASURED, "rows/0/top1", 100.5), "less than or equal to 100"),
        (Metrics, changed(MEASURED, "rows/0/top1", float("nan")), "finite number"),
        (Metrics, changed(MEASURED, "rows/0/latency_ms", {**LATENCY, "median": -1.0}), "latency_ms.median"),
        (Metrics, changed(MEASURED, "rows", {"0": 1}), "valid list"),
        (Metrics, changed(MEASURED, "extra\x1b[2J", 1), "has an unknown key extra[2J"),
        (Info, changed(RUN, "source/kind", "shell"), "source.kind"),
        (Info, changed(RUN, "source/name", ["x"]), "valid string"),
        (Info, changed(RUN, "source/kwargs", {"a": {"b": 1}}), "source.kwargs"),
        (Info, changed(RUN, "preprocessing/size", [8, 10**9]), "preprocessing.size.1"),
        (Info, changed(RUN, "preprocessing/std", [0.0]), "greater than 0"),
        (Info, changed(RUN, "preprocessing/x", 1), "unknown key preprocessing.x"),
        (Info, changed(RUN, "sha256", {"model.safetensors": "00"}), "sha256"),
        (ClassIndex, {"cat": "0"}, "valid integer"),
        (ClassIndex, {"cat": True}, "valid integer"),
        (ClassIndex, {"cat": -1}, "greater than or equal to 0"),
        (ClassIndex, ["cat"], "valid dictionary"),
    ],
)
def test_values_that_a_schema_refuses(schema, values, words):
    with pytest.raises(MalformedError) as error:
        check(schema, values)
    assert words in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_long_values_are_not_printed():
    with pytest.raises(MalformedError) as error:
        check(Metrics, changed(MEASURED, "rows/0/macs", "a" * 10**6))
    assert len(str(error.value)) < 400


def test_yaml_values_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {b: 1, c: [1.5, null]}\nd: *x\ne: {<<: *x, c: 3}\n")
    assert read_yaml(path) == {"a": {"b": 1, "c": [1.5, None]}, "d": {"b": 1, "c": [1.5, None]}, "e": {"b": 1, "c": 3}}
    path.write_text("# nothing")
    assert read_yaml(path) is None
