"""Measured times on disk: one small JSON file for one geometry in one setting."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnncompress.errors import CompressError
from cnncompress.files.publish import replacing
from cnncompress.files.reading import read_json

SCHEMA = 2


class Store:
    """Milliseconds by chain of one layer; in memory only where `folder` is None.

    A file that is missing, damaged or of something else counts as empty, and one that cannot be written is left: times
    are worth nothing that another measurement could not give.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.identity = json.loads(text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.path = folder / "timing" / f"{digest}.json" if folder else None
        self._lasting = self._read()
        self.times = dict(self._lasting)

    def _read(self) -> dict[str, float]:
        try:
            values = read_json(self.path) if self.path else {}
            if values["schema"] != SCHEMA or values["identity"] != self.identity:
                return {}
            times = {str(key): float(ms) for key, ms in values["times"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return times if all(math.isfinite(ms) and ms > 0 for ms in times.values()) else {}

    def add(self, times: dict[str, float], keep: bool = True) -> None:
        """Take more times; for this process only unless they are to be kept.

        What this process knows stays as it is, so that the same question always has the same answer.
        """
        self.times = times | self.times
        if self.path is None or not keep:
            return
        self._lasting |= {key: ms for key, ms in times.items() if math.isfinite(ms)}
        values = {"schema": SCHEMA, "identity": self.identity, "times": self._lasting}
        with suppress(CompressError, OSError), replacing(self.path, force=True) as file:
            file.write_text(json.dumps(values), encoding="utf-8")
