"""What holds for all tests, and for the processes that they start.

One thread a process: many small operations run faster so, above all where several workers share the cores. No bytecode
beside imported files, as tests look at what is in a folder. The shapes and types in the annotations of tensor functions
are checked at every call.
"""

import logging
import os
import sys

import jaxtyping
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True
jaxtyping.install_import_hook(
    [f"cnncompress.{room}" for room in ("maths", "metrics", "decompositions")], "beartype.beartype"
)


@pytest.fixture(autouse=True)
def quiet_library():
    """What commands of earlier tests did to the library's logger is undone."""
    log = logging.getLogger("cnncompress")
    log.setLevel(logging.NOTSET)
    log.propagate, log.handlers[:] = True, []


@pytest.fixture
def unchecked(monkeypatch):
    """Shapes and types are not checked, for what a function says of wrong ones itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
