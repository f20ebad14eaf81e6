"""torch.compile: whether its compiler is there, and functions whose compiled code is kept apart."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from types import FunctionType
from typing import Any

COMPILERS = ("g++", "clang++", "c++", "cl")


def missing_compiler() -> str:
    """What to install, where the C++ compiler that Inductor looks for under these names is not there; else ""."""
    if any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))):
        return ""
    return "Inductor needs a C++ compiler; install g++ or clang++, or set CXX to one"


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function with code of its own: what is compiled is kept by code, and looked through at every call."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
