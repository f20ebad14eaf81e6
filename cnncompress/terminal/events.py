"""What happens, for programs: one JSON object a line (`--json`, docs/formats.md)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cnncompress.text import plain, plain_values

EVENT = 5  # level of what is for programs and log files only, below that of --verbose


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """The `extra` of a log record that is more than a message: its kind and what it holds."""
    return {"event": {"event": kind, **fields}}


def line_of(fields: Mapping[str, Any]) -> str:
    """One line of JSON with the time, UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps(plain_values({"time": now, **fields}), default=str)


def line_of_record(record: logging.LogRecord) -> str:
    """A log record as such a line: a message with its level, unless the record names its event."""
    fields = getattr(record, "event", {"event": "message", "level": level_of(record)})
    return line_of({**fields, "message": words_of(record)})


def level_of(record: logging.LogRecord) -> str:
    """debug, info, warning or error."""
    return record.levelname.lower() if record.levelno >= logging.DEBUG else "debug"


def words_of(record: logging.LogRecord) -> str:
    """What a record says, on one line, without the level that it may begin with."""
    return plain(" ".join(record.getMessage().split())).removeprefix(f"{level_of(record)}: ")
