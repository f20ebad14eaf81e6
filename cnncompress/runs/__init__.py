"""Runs on disk: a compressed network and its evidence, in one folder."""

from typing import TYPE_CHECKING

from cnncompress.files.place import check_output, is_run
from cnncompress.lazy import lazily

if TYPE_CHECKING:
    from cnncompress.runs.read import LoadedRun, load, load_run
    from cnncompress.runs.write import copy_run, save, save_run, update_run

__all__ = ["LoadedRun", "check_output", "copy_run", "is_run", "load", "load_run", "save", "save_run", "update_run"]

__getattr__ = lazily(
    __name__,
    dict.fromkeys(["LoadedRun", "load", "load_run"], "read")
    | dict.fromkeys(["copy_run", "save", "save_run", "update_run"], "write"),
)
