"""Checks that need no PyTorch, whose import takes seconds: names, places and files that cannot be used."""

from __future__ import annotations

from cnncompress.config.settings import DecomposeSettings
from cnncompress.files.place import check_output, check_run, default_place, is_run
from cnncompress.files.publish import check_text_output, write_text
from cnncompress.names.methods import check_method

__all__ = ["check_methods", "check_place", "check_run", "check_text_output", "write_text"]


def check_methods(method: str) -> None:
    """UsageError for an unknown method among `NAME[:k=v,...][+...]`."""
    for name in method.split("+"):
        check_method(name.partition(":")[0])


def check_place(settings: DecomposeSettings) -> None:
    """RunError where no run can be written at the place of a decomposition, as far as its name is known yet."""
    model = settings.model or ""
    if not settings.dry_run and (settings.out is not None or not is_run(model)):
        check_output(settings.out or default_place(model.rpartition(":")[2]), settings.force)
