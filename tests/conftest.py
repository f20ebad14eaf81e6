"""What holds for all tests, and for the processes that they start.

One thread a process: many small operations run faster so, above all where several workers share the cores. No bytecode
beside imported files, as tests look at what is in a folder.

The shapes and types in the annotations of tensor functions are checked at every call in the tests of their own rooms;
elsewhere that would take more time than it tells.
"""

import logging
import os
import sys
from collections import Counter

import jaxtyping
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True
CHECKED = ("maths", "metrics", "decompositions")  # rooms
jaxtyping.install_import_hook([f"cnncompress.{room}" for room in CHECKED], "beartype.beartype")
jaxtyping.config.update("jaxtyping_disable", True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Cases of a test marked `few` are slow from the given number on."""
    seen = Counter()
    for item in items:
        if mark := item.get_closest_marker("few"):
            test = item.nodeid.partition("[")[0]
            if seen[test] >= mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(autouse=True)
def quiet_library():
    """What commands of earlier tests did to the library's logger is undone."""
    log = logging.getLogger("cnncompress")
    log.setLevel(logging.NOTSET)
    log.propagate, log.handlers[:] = True, []


@pytest.fixture(autouse=True)
def shapes(request):
    """Annotations are checked in the tests of `CHECKED`, but for those marked `unchecked`."""
    room = request.path.relative_to(request.config.rootpath / "tests").parts[0]
    checked = room in CHECKED and request.node.get_closest_marker("unchecked") is None
    jaxtyping.config.update("jaxtyping_disable", not checked)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """No test waits for other work to end, or finds in its output that it did not."""
    monkeypatch.setattr("cnncompress.latency.busy.spread", lambda threads: 1.0)


@pytest.fixture(autouse=True)
def short_clock(monkeypatch):
    """A whole network is timed a few times, not for a second: no test asks how long it takes."""
    from tests.timing import FEW

    monkeypatch.setattr("cnncompress.latency.network.ROUNDS", FEW)


@pytest.fixture(autouse=True)
def fair_clock(request, monkeypatch):
    """Budgets of MACs and parameters are planned as if every network took as long: no test hangs on a clock."""
    if request.node.get_closest_marker("guarded") is None:
        from tests.timing import took

        monkeypatch.setattr(
            "cnncompress.pipeline.guard.latency", lambda models, *_, **__: dict.fromkeys(models, took(1.0))
        )
