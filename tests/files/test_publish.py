import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from cnncompress.errors import RunError
from cnncompress.files import publish
from cnncompress.network.compressed import with_provenance
from cnncompress.runs import check_output, is_run, load, load_run, save, save_run
from tests.run_networks import EMPTY, FACTORY, env, network, plan, randomise


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return path


# --- where a run may stand ---


def test_existing_output(tmp_path, factory):
    net = network(factory, "tiny")
    (tmp_path / "empty").mkdir()
    save(net, tmp_path / "empty")
    with pytest.raises(RunError, match=r"already exists.*--force"):
        save(net, tmp_path / "empty")
    randomise(net)
    save(net, tmp_path / "empty", force=True)
    assert torch.equal(load(tmp_path / "empty", trust_code=True)[0].weight, net[0].weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "factory.py"]


def test_what_is_not_a_run_is_never_replaced(tmp_path, factory, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    for path, words in [
        (other, "not a run"),
        (other / "thesis.txt", "is a file"),
        (other / "thesis.txt" / "run", "not a folder"),
    ]:
        with pytest.raises(RunError, match=words):
            save(network(factory, "tiny"), path, force=True)
    assert (other / "thesis.txt").read_text() == "years"
    save(network(factory, "tiny"), tmp_path / "run")
    for path in ("run/other", "run/checkpoints", "run/deep/er"):
        with pytest.raises(RunError, match=r"it is inside the run .*run; choose another name"):
            save(network(factory, "tiny"), tmp_path / path, force=True)
        assert not (tmp_path / path).exists()
    monkeypatch.chdir(tmp_path / "run")
    for path in (".", "..", tmp_path / "run"):
        with pytest.raises(RunError, match="contains the current folder"):
            check_output(path, force=True)


def test_a_link_is_followed(tmp_path, factory):
    save(network(factory, "tiny"), tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    net = randomise(network(factory, "tiny"))
    save(net, tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(load(tmp_path / "run", trust_code=True)[0].weight, net[0].weight)


def test_a_name_that_is_too_long(tmp_path, factory):
    with pytest.raises(RunError, match="cannot write"):
        save(network(factory, "tiny"), tmp_path / ("x" * 300))
    assert not is_run("x" * 10000)


def test_check_output_makes_nothing(tmp_path):
    check_output(tmp_path / "a" / "b" / "run")
    assert list(tmp_path.iterdir()) == []


# --- interruption ---


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_interrupted_writing_leaves_nothing(tmp_path, factory, monkeypatch, error):
    def fail(*args):
        raise error

    net = network(factory, "tiny")
    save(net, tmp_path / "run")
    before = net[0].weight.clone()
    randomise(net)
    monkeypatch.setattr("cnncompress.runs.write.save_tensors", fail)
    raised = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RunError
    with pytest.raises(raised):
        save(net, tmp_path / "run", force=True)
    with pytest.raises(raised):
        save(net, tmp_path / "deep" / "er" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["factory.py", "run"]
    assert torch.equal(load(tmp_path / "run", trust_code=True)[0].weight, before)


FULL = """
import resource, sys
from cnncompress.errors import RunError
from cnncompress.runs import load_run, save
net = load_run(sys.argv[1], trust_code=True).model
for limit in (200, 700):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for out in sys.argv[2:]:
        try:
            save(net, out, force=True)
        except RunError as error:
            print(error)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path, factory):
    # a limit on the size of a file fails as a full disk does, and needs no mount; 700 bytes pass the small files
    save(network(factory, plan=plan()), tmp_path / "run")
    out = tmp_path / "out"
    save(network(factory, "tiny"), out / "kept")
    command = [sys.executable, "-c", FULL, str(tmp_path / "run"), str(out / "new" / "run"), str(out / "kept")]
    result = subprocess.run(command, capture_output=True, text=True, env=env(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("cannot write") and "too large" in line for line in lines)
    assert [p.name for p in out.iterdir()] == ["kept"]
    assert len(load(out / "kept", trust_code=True)) == 2


LOOP = """
import sys, torch
torch.set_num_threads(1)
from cnncompress.files import publish
from cnncompress.network.compressed import with_provenance
from cnncompress.runs import load_run, save_run
from tests.run_networks import EMPTY
if sys.argv[3] == "rename":
    publish._exchange = lambda first, second: False
small = with_provenance(load_run(sys.argv[1], trust_code=True).model)
net = small.network
small.provenance.preprocessing = None  # and so no program to export: many saves a second
print("ready", flush=True)
i = 1  # what is there at first is 0: one save is enough to see
while True:
    value = i % 2
    torch.nn.init.constant_(net[0].weight, value)
    save_run(sys.argv[2], small, metrics={**EMPTY, "kept": {"value": str(value)}}, info={"seed": value}, force=True)
    i += 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_a_killed_process_leaves_one_whole_run(tmp_path, factory, way):
    save(network(factory, "tiny"), tmp_path / "start")
    out = tmp_path / "out" / "run"
    small = with_provenance(load(tmp_path / "start", trust_code=True))
    save_run(out, small, metrics={**EMPTY, "kept": {"value": "0"}}, info={"seed": 0})
    torch.nn.init.constant_((net := load(out, trust_code=True))[0].weight, 0)
    save_run(out, with_provenance(net), metrics={**EMPTY, "kept": {"value": "0"}}, info={"seed": 0}, force=True)
    delays, values = random.Random(0), []
    # one import serves all kills: the parent process forks, and every child is killed
    script = KILLS.replace("LOOP_BODY", LOOP.split('print("ready", flush=True)')[1].replace("\n", "\n        "))
    setup = LOOP.split('print("ready", flush=True)')[0]
    command = [sys.executable, "-c", setup + script, str(tmp_path / "start"), str(out), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env()) as parent:
        for i in range(20):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            longest = 0.2 if len(set(values)) > 1 else 0.2 * 1.3**i  # a busy machine takes longer to save at all
            time.sleep(delays.uniform(0.005, longest))
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "reaped\n"
            run = load_run(out, trust_code=True)
            value = int(run.metrics["kept"]["value"])
            assert run.info["seed"] == value
            assert torch.equal(run.model[0].weight, torch.full((2, 3, 3, 3), float(value)))
            values.append(value)
        parent.stdin.close()
    assert set(values) == {0, 1}
    save_run(out, with_provenance(net), metrics=EMPTY, force=True)
    assert [p.name for p in out.parent.iterdir()] == ["run"]


KILLS = """
import os
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        LOOP_BODY
    print(child, flush=True)
    os.waitpid(child, 0)
    print("reaped", flush=True)
"""


# --- the replacement itself ---


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_death_between_two_renames_is_repaired(tmp_path, factory):
    save(network(factory, "tiny"), tmp_path / "run")
    left = publish._sibling(tmp_path / "run", "old").name.replace(f"-{os.getpid()}-", f"-{dead_process()}-")
    (tmp_path / "run").rename(tmp_path / left)
    assert is_run(tmp_path / "run")
    assert load(tmp_path / "run", trust_code=True)[0].weight.shape == (2, 3, 3, 3)


def test_only_the_dead_are_cleaned_up(tmp_path, factory):
    mine = publish._sibling(tmp_path / "run", "tmp")
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{dead_process()}-")
    elsewhere = tmp_path / mine.name.replace("tmp-", "tmp-elsewhere-")
    for path in (mine, dead, elsewhere):
        path.mkdir()
    save(network(factory, "tiny"), tmp_path / "run")
    assert mine.exists()
    assert elsewhere.exists()
    assert not dead.exists()


def test_without_an_exchange_two_renames_do(tmp_path, factory, monkeypatch):
    monkeypatch.setattr(publish, "_exchange", lambda first, second: False)
    net = network(factory, "tiny")
    save(net, tmp_path / "run")
    randomise(net)
    save(net, tmp_path / "run", force=True)
    assert torch.equal(load(tmp_path / "run", trust_code=True)[0].weight, net[0].weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["factory.py", "run"]
