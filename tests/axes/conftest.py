"""The command line in this process, as the tests of the command line run it."""

from tests.cli.conftest import cli, done, refused

__all__ = ["cli", "done", "refused"]
