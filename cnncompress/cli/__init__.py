"""The command line: one file a command, each parses, makes one library call and prints."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from cnncompress import __version__
from cnncompress.errors import CompressError, UsageError

COMMANDS = ("decompose", "finetune", "report", "evaluate", "profile", "inspect", "export", "methods")


class LazyGroup(click.Group):
    """Imports a command's module when it is used, so that `--help` and wrong usage answer at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"cnncompress.cli.{cmd_name}").command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cnncompress")
def cli() -> None:
    """Make a pretrained CNN smaller and faster by decomposing its layers, and show what that cost."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; errors that a user can cause end in one line and exit code 1 or 2."""
    try:
        code: Any = cli.main(args=args, prog_name="cnncompress", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        fail("interrupted; nothing was written", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CompressError as error:
        fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt as error:
        fail(str(error) or "interrupted; nothing was written", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing left to say
        sys.exit(1)
    except (OSError, MemoryError) as error:
        fail(f"{type(error).__name__}: {error}" if str(error) else "out of memory; try a smaller --batch-size", 1)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "not enough memory" not in str(error):
            raise
        fail("out of memory; try a smaller --batch-size, or --device cpu", 1)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)
