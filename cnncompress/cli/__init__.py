"""The command line: one file a command, each parses, makes one library call and prints."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys
import warnings
from contextlib import suppress
from importlib import metadata
from typing import Any, NoReturn

import click

from cnncompress import __version__
from cnncompress.cli.frame import is_working, voices, write_lines
from cnncompress.cli.rescue import last_words
from cnncompress.cli.strays import watch
from cnncompress.cli.streams import make_printable, open_closed
from cnncompress.errors import CompressError, UsageError, is_out_of_memory, nearest
from cnncompress.terminal import console
from cnncompress.terminal.events import EVENT, event
from cnncompress.terminal.stops import forget, handle, is_repeated, stop_signals
from cnncompress.text import first_line, plain

COMMANDS = ("explore", "decompose", "finetune", "report", "evaluate", "profile", "inspect", "export", "methods")
OTHER_NAMES = {
    "compress": "decompose",
    "factorize": "decompose",
    "prune": "decompose",
    "sweep": "explore",
    "search": "explore",
    "train": "finetune",
    "fine-tune": "finetune",
    "eval": "evaluate",
    "test": "evaluate",
    "benchmark": "profile",
    "latency": "profile",
    "convert": "export",
    "summary": "inspect",
    "show": "report",
    "list": "methods",
    "help": "--help",
    "version": "--version",
}  # what other tools call these commands
EXAMPLES = (
    "cnncompress decompose resnet50 --data imagenet/",
    "cnncompress finetune runs/resnet50 --data imagenet/",
    "cnncompress export runs/resnet50 --format onnx",
)
COMPLETING = "_CNNCOMPRESS_COMPLETE"  # set by the shell that asks for a completion
COMPLETION = (
    f'bash: eval "$({COMPLETING}=bash_source cnncompress)"',
    f'zsh:  eval "$({COMPLETING}=zsh_source cnncompress)"',
    f"fish: {COMPLETING}=fish_source cnncompress | source",
)
LONGEST_ERROR = 4000  # characters of an error: what is wrong is said well before
INTERRUPTED = "interrupted; nothing is left half-written"


class StoppedError(CompressError):
    """Ctrl-C or another signal to stop, with what to do next."""


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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Resolves a command as click does; an unknown name is answered with the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"unknown command '{args[0]}'{_nearest_command(args[0])} (known: {', '.join(COMMANDS)})")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and how to have the shell complete."""
        write_lines(formatter, "Examples", EXAMPLES)
        write_lines(formatter, "Completion in the shell", COMPLETION)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command as click does, but Ctrl-C keeps its message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise StoppedError(str(error) or INTERRUPTED) from None


def _nearest_command(name: str) -> str:
    """As `nearest`, with the words that other tools use."""
    known = OTHER_NAMES.get(name.lower())
    return f"; did you mean '{known}'?" if known else nearest(name, COMMANDS)


def versions() -> list[str]:
    """A line each for the program, Python, torch and the runtimes; nothing of these is imported."""
    from cnncompress.latency.runtimes import REGISTRY

    lines = [f"cnncompress {__version__}", f"Python {platform.python_version()}"]
    lines += [f"{package} {_version_of(package)}" for package in ("torch", "torchvision")]
    known = ((name, one.package, _version_of(one.package)) for name, one in sorted(REGISTRY.items()))
    runtimes = [
        f"{name} {found}" if name == package else f"{name} ({package} {found})" for name, package, found in known
    ]
    return [*lines, f"runtimes: {', '.join(runtimes)}"]


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _print_versions(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from cnncompress.cli.options import echo

        echo("\n".join(versions()))
        context.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Versions of this program, of torch and of the runtimes.",
)
@voices
@click.pass_context
def cli(ctx: click.Context, **voices: Any) -> None:
    """Make a pretrained CNN smaller and faster by decomposing its layers, and show what that cost."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: list[str] | None = None) -> None:
    """Run the command line; errors that a user can cause end in one line and exit code 1 or 2.

    Without `args` it is the program, which takes no signals any more as it ends; else it leaves them as they were.
    """
    forget()
    before = handle(dict.fromkeys(stop_signals(), _on_interrupt))
    open_closed()
    make_printable()
    if args is None:
        watch()
    words = sys.argv[1:] if args is None else args
    try:
        try:
            with warnings.catch_warnings():
                console.speak(console.NORMAL, events="--json" in words)  # so that an error of usage is an event too
                warnings.filterwarnings("ignore", module="torch|PIL")  # about their own internals
                code: Any = cli.main(args=args, prog_name="cnncompress", standalone_mode=False)
        finally:
            handle(dict.fromkeys(before, signal.SIG_IGN))  # nothing is left to interrupt but the last words
    except BaseException as error:
        _end_with(error)
    else:
        code = code if isinstance(code, int) else 0
        console.LOG.log(EVENT, "ended", extra=event("end", code=code))
        sys.exit(code)
    finally:
        console.stop_logging()
        if args is not None:
            handle(before)


def _end_with(error: BaseException) -> NoReturn:
    """The last words on what ended a command, and the exit."""
    if not isinstance(error, StoppedError) and _was_interrupted(error):
        fail(INTERRUPTED, 1, everywhere=True)
    match error:
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else "cnncompress"
            message = error.format_message().rstrip(".")
            fail(f"{message}{'' if message.endswith('?') else ';'} see `{where} --help`", error.exit_code)
        case click.ClickException():
            fail(error.format_message(), error.exit_code)
        case CompressError():
            fail(str(error), 2 if isinstance(error, UsageError) else 1, everywhere=isinstance(error, StoppedError))
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing left to say
            sys.exit(1)
        case OSError():
            fail(f"{type(error).__name__}: {error}", 1)
        case SystemExit() if COMPLETING in os.environ:  # click has answered the shell
            raise error
        case SystemExit():  # a network's own code: the work is not done, whatever its exit code says
            fail(f"the code of the network ended the program ({error.code})", 1)
        case Exception():
            fail(_explain(error), 1)
        case _:
            raise error


def _was_interrupted(error: BaseException) -> bool:
    """Whether a signal to stop is behind an error: what was interrupted may fail in its own way."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, click.exceptions.Abort | KeyboardInterrupt):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def fail(message: str, code: int, everywhere: bool = False) -> NoReturn:
    """Print one line on stderr and exit.

    Of processes that torchrun started, only the first speaks about what all of them meet: bad usage, what fails before
    they join, and what the caller says happens `everywhere`.
    """
    first = int(os.environ.get("RANK", 0)) == 0
    if first or not (everywhere or code == 2 or not _joined()):
        line = plain(" ".join(message.split()))
        line = line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + "…"
        console.LOG.error("error: %s", line, extra=event("error", code=code))
    sys.exit(code)


def _joined() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _explain(error: Exception) -> str:
    """The message for an exception of another library."""
    if isinstance(error, RuntimeError) and _joined() and not is_out_of_memory(error):
        return f"a process of the training ended early; see its own error ({first_line(error)})"
    return last_words(error)


def _on_interrupt(number: int, frame: Any) -> None:
    """A signal to stop: an exception, or the end where imports would swallow one and nothing is written yet."""
    if is_working():
        if is_repeated():
            return
        raise KeyboardInterrupt
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{console.error_line(INTERRUPTED, 1)}\n".encode())
    os._exit(1)
