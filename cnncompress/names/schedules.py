"""The schedules of a fine-tuning, which need no torch to be told apart."""

from __future__ import annotations

import re

from cnncompress.errors import UsageError, nearest

CASCADE = "cascade"
SCHEDULES = ("all", "upper", CASCADE)
GROUP = re.compile(r"group=([1-9]\d{0,4})")


def parse_schedule(text: str) -> tuple[str, int]:
    """The name of a schedule, and the layers that a cascade takes in one step; UsageError for another text."""
    name, colon, options = text.partition(":")
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule '{name}'{nearest(name, SCHEDULES)}; known: {', '.join(SCHEDULES)}")
    found = GROUP.fullmatch(options)
    if colon and (name != CASCADE or found is None):
        raise UsageError(
            f"schedule '{text}': all and upper take no options, cascade takes the layers of a step, as in "
            "cascade:group=3"
        )
    return name, int(found[1]) if found else 1


def cascades(schedule: str) -> bool:
    """True for a cascade, whatever its options."""
    return parse_schedule(schedule)[0] == CASCADE
