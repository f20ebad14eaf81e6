"""Images that a network answers otherwise than its original, shown where that is asked for and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnncompress.reporting.embedded import picture
from cnncompress.reporting.page import Drawn, Section


@dataclass(frozen=True)
class Example:
    """A small JPEG `file` of an image, its class, and what the original and `network` take it for."""

    network: str
    label: str
    before: str
    after: str
    file: bytes


def examples_section(examples: Sequence[Example]) -> list[Section]:
    """The images as a section, where there are any."""
    drawn = []
    for one in examples:
        told = f"{one.label}: {one.before} → {one.after}, {one.network}"
        drawn.append(Drawn(picture(one.file, told, "jpeg"), "", told))
    text = "What each shows, what the original took it for, and what it is taken for now. The page holds these images."
    return [Section("Images whose answer changed", text, small=drawn)] if drawn else []
