"""Runs on disk: a compressed network and its evidence, in one folder."""

from cnncompress.runs.place import check_output, is_run
from cnncompress.runs.read import LoadedRun, load, load_run
from cnncompress.runs.write import copy_run, save, save_run, update_run

__all__ = ["LoadedRun", "check_output", "copy_run", "is_run", "load", "load_run", "save", "save_run", "update_run"]
