"""The user's home folder in paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any


def at_home(value: Any) -> Any:
    """A path, or `NAME:PATH`, with the user's home folder for the `~` that it begins with.

    Shells put it there only in words that begin with it: not in `--data=~/photos`, and not in files.
    """
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if not isinstance(value, str):
        return value
    kind, path = re.fullmatch(r"(\w*:(?=~))?(.*)", value, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return kind + os.path.expanduser(path)
