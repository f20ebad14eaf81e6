"""Calls to the file system that fail, one after the other: `python -m tests.runs.faults OPERATION WAY FOLDER`.

For n = 1, 2, 3, ... a process of its own does the operation on a fresh copy of what it starts from, and its n-th call
fails: with an error, of a full disk and of a broken one in turns, or because the process dies. With the way `error and
stat`, questions about files fail too. Then a second process does the same without a fault. The last line printed is
`reached the end after N`.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image

from cnncompress.api import run_finetune
from cnncompress.config import TuneSettings
from cnncompress.errors import CompressError
from cnncompress.files import publish, tensorfile
from cnncompress.finetuning import checkpoints
from cnncompress.models import load_model
from cnncompress.network.compressed import with_provenance
from cnncompress.network.provenance import Provenance, attach, provenance
from cnncompress.programs.export import export_pt2
from cnncompress.runs import load_run, save_run, update_run
from tests.run_networks import EMPTY, network

FACTORY = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""

CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.utime"}
STATS = ("stat", "lstat")
EVENTS = CHANGES | {"open", "os.listdir", "os.scandir", "os.truncate"}
DONE, REFUSED, DIED = 0, 1, 9  # exit codes
LATE = 10  # added where the fault was not reached


class Fault:
    """Counts the calls to the file system below a folder, and has the n-th fail."""

    def __init__(self, folder: Path, n: int, way: str) -> None:
        self.folder, self.n, self.way, self.count, self.armed = str(folder), n, way, 0, False

    def met(self) -> None:
        """One more call."""
        self.count += 1
        if self.armed and self.count == self.n:
            if self.way == "kill":
                os._exit(DIED)
            code = (errno.ENOSPC, errno.EIO)[self.n % 2]
            raise OSError(code, os.strerror(code))

    def audit(self, event: str, args: tuple) -> None:
        """The hook of `sys.addaudithook`."""
        if self.armed and event in EVENTS and self.concerns(args[0]):
            self.met()

    def concerns(self, path: object) -> bool:
        """Whether a path lies in the folder, but not among the images; a relative one does, as the folder is open."""
        path = os.fsdecode(path) if isinstance(path, str | bytes | Path) else "/"
        return (path.startswith(self.folder) and f"{self.folder}/data" not in path) or not os.path.isabs(path)

    def wrap(self, owner: object, name: str) -> None:
        """Count the calls of a function too: those that no audit event tells of."""
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if self.armed and (name not in STATS or self.concerns(args[0])):
                self.met()
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    def arm(self) -> None:
        """Begin to count."""
        for owner, names in {
            os: ["fsync", *(STATS if self.way == "error and stat" else ())],
            publish: ["_exchange"],
            tensorfile: ["save_file"],
            checkpoints: ["to_safetensors"],
            torch: ["save"],
        }.items():
            for name in names:
                self.wrap(owner, name)
        sys.addaudithook(self.audit)
        self.armed = True


# --- the operations: what they start from, what they do, and what may be there afterwards ---


def net(folder: Path, value: float, with_program: bool = False):
    """A network whose weights are all `value`; it is stored as a program too where the size of its input is known."""
    model = network(folder / "factory.py", "tiny")
    torch.nn.init.constant_(model[0].weight, value)
    known = provenance(model)
    return model if with_program else attach(model, dataclasses.replace(known, preprocessing=None))


def save(folder: Path) -> None:
    """Replace the run by one of another network."""
    model = net(folder, 1, with_program=True)
    save_run(folder / "run", with_provenance(model), metrics={**EMPTY, "notes": ["1"]}, info={"seed": 1}, force=True)


def save_new(folder: Path) -> None:
    """Write a run where there is none."""
    save_run(
        folder / "deep" / "run",
        with_provenance(net(folder, 1)),
        metrics={**EMPTY, "notes": ["1"]},
        info={"seed": 1},
        force=True,
    )


def update(folder: Path) -> None:
    """Replace the network and the measurements of a run."""
    update_run(folder / "run", with_provenance(net(folder, 1)), {**EMPTY, "notes": ["1"]}, {"seed": 1})


def tune(folder: Path) -> None:
    """Train the run in its place."""
    flags = {"data": str(folder / "data"), "batch_size": 10, "device": "cpu", "lr": 0.001}
    resume = (folder / "digits" / "checkpoints" / "last.pt").exists()
    run_finetune(TuneSettings(model=str(folder / "digits"), **flags, resume=resume), ["finetune"])


def export(folder: Path) -> None:
    """Replace an exported file."""
    model = load_run(folder / "run", trust_code=True).model
    export_pt2(model, torch.zeros(2, 3, 8, 8), folder / "net.pt2", force=True)


def prepare(folder: Path) -> None:
    """Two runs with a file of the user, images and an exported file."""
    (folder / "factory.py").write_text(FACTORY)
    save_run(folder / "run", with_provenance(net(folder, 0)), metrics={**EMPTY, "notes": ["0"]}, info={"seed": 0})
    loaded = load_model("digits_vgg")
    attach(loaded.model, Provenance(loaded.source, loaded.preprocessing))
    save_run(folder / "digits", with_provenance(loaded.model), metrics=EMPTY)
    for name in ("run", "digits"):
        (folder / name / "notes.md").write_text("mine")
    (folder / "net.pt2").write_text("old")
    for part in ("train", "val"):
        for label in range(10):
            path = folder / "data" / part / str(label) / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * label, 100, 50)).save(path)


def check_run(folder: Path, finished: bool) -> None:
    """The run is the old one or the new one, with the user's file."""
    run = load_run(folder / "run", trust_code=True)
    found = {run.info["seed"], int(run.metrics["notes"][0]), *run.model[0].weight.unique().tolist()}
    assert found in ([{1}] if finished else [{0}, {1}]), found
    assert (folder / "run" / "notes.md").read_text() == "mine"


def check_new(folder: Path, finished: bool) -> None:
    """There is no run, or a whole one."""
    if finished or (folder / "deep" / "run").exists():
        run = load_run(folder / "deep" / "run", trust_code=True)
        assert {run.info["seed"], *run.model[0].weight.unique().tolist()} == {1}


def check_tuned(folder: Path, finished: bool) -> None:
    """The run is as it was, or trained, in all of its files."""
    run = load_run(folder / "digits")
    trained = "finetune" in run.info
    assert trained or not finished
    assert trained == bool(run.metrics["rows"])
    if not trained:
        before = load_run(folder.parents[1] / "fresh" / "digits").model.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert (folder / "digits" / "notes.md").read_text() == "mine"


def check_exported(folder: Path, finished: bool) -> None:
    """The file is the old one or a program."""
    if finished or (folder / "net.pt2").read_bytes() != b"old":
        torch.export.load(folder / "net.pt2").module()(torch.zeros(3, 3, 8, 8))


OPERATIONS: dict[str, tuple[Callable[[Path], None], Callable[[Path, bool], None]]] = {
    "save": (save, check_run),
    "save_new": (save_new, check_new),
    "update": (update, check_run),
    "tune": (tune, check_tuned),
    "export": (export, check_exported),
}


def leftovers(folder: Path) -> list[str]:
    """What is below the folder only for a moment: temporary files and locks."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith(".") or "tmp" in p.name]


def in_child(work: Callable[[], int]) -> int:
    """The exit code of a process that does `work`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def attempt(operation: Callable[[Path], None], folder: Path, fault: Fault | None) -> int:
    """Do the operation; the exit code says how it ended and whether the fault was reached."""
    torch.set_num_threads(1)
    os.chdir(folder.parent)
    if fault is not None:
        fault.arm()
    try:
        operation(folder)
        code = DONE
    except (CompressError, OSError) as error:
        code = REFUSED
        if fault is None:
            print(error)
    if fault is None:
        return code
    fault.armed = False
    return code + LATE * (fault.count < fault.n)


def prepare_process(root: Path, operation: Callable[[Path], None]) -> None:
    """Have all later processes begin with what the operation imports, and with the one program that it exports."""
    folder = root / "first" / "work"
    shutil.copytree(root / "fresh", folder)
    listing, program = root / "modules", root / "program.pt2"
    export = torch.export.export

    def keep(*args, **kwargs):
        found = export(*args, **kwargs)
        torch.export.save(found, program)
        return found

    def work() -> int:
        torch.export.export = keep
        code = attempt(operation, folder, None)
        listing.write_text("\n".join(sys.modules))
        return code

    assert in_child(work) == DONE
    for name in listing.read_text().split():
        with suppress(ImportError, ValueError):
            importlib.import_module(name)
    if program.exists():
        stored = torch.export.load(program)
        torch.export.export = lambda *args, **kwargs: stored


def run(name: str, way: str, root: Path) -> None:
    """Every n until the operation ends before its n-th call."""
    torch.set_num_threads(1)
    operation, check = OPERATIONS[name]
    fresh = root / "fresh"
    fresh.mkdir(parents=True)
    prepare(fresh)
    prepare_process(root, operation)
    n = 0
    while True:
        n += 1
        folder = Path(tempfile.mkdtemp(dir=root)) / "work"
        shutil.copytree(fresh, folder, symlinks=True)
        code = in_child(lambda folder=folder, n=n: attempt(operation, folder, Fault(folder, n, way)))
        assert code in (DONE, REFUSED, DIED, DONE + LATE), (n, code)

        def afterwards(folder: Path = folder, code: int = code) -> int:
            check(folder, code in (DONE, DONE + LATE))
            done = attempt(operation, folder, None)
            check(folder, True)
            assert not leftovers(folder), leftovers(folder)
            return done

        assert in_child(afterwards) == DONE, n
        shutil.rmtree(folder.parent)
        if code >= LATE:
            print(f"reached the end after {n - 1}")
            return


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
