"""Shared by all commands: options in groups, examples under the help, and how what happens is told."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnncompress import __version__
from cnncompress.cli.options import PATH
from cnncompress.errors import UsageError
from cnncompress.terminal import console
from cnncompress.terminal.events import EVENT, event

if TYPE_CHECKING:
    from cnncompress.config import ModelSettings

F = Callable[..., Any]

GROUPS = {
    "Network": ("weights", "num_classes", "model_arg", "input_size", "mean", "std", "trust_code"),
    "Images": ("data", "calibration_images", "batch_size", "workers"),
    "What to keep": (
        *("budget", "budgets", "measure", "rank", "max_drop", "plan", "multiple"),
        *("latency_batch", "allow_slower"),
    ),
    "How": (
        *("method", "init", "layers", "skip", "metric", "refine", "correct", "reconstruct"),
        *("keep_statistics", "statistics"),
    ),
    "Training": (
        *("schedule", "until_drop", "epochs", "images_per_epoch", "lr", "optimizer"),
        *("weight_decay", "precision", "compile", "cache_gib", "checkpoint_minutes", "resume"),
        *("distill", "temperature", "teacher_share", "attention_weight", "unlabelled"),
        *("augment", "mixup", "label_smoothing", "ema", "freeze_bn", "lr_rest", "accumulate", "clip_norm"),
    ),
    "Latency": ("latency", "runtime", "threads", "memory_format", "latency_table"),
    "Output": (
        "format_",
        "int8",
        "keep_float",
        "weight_bits",
        "opset",
        "output",
        "peers",
        "thumbnails",
        "plot",
        "out",
        "force",
        "dry_run",
    ),
    "General": ("config", "device", "seed", "verbose", "quiet", "log", "json"),
}


class Command(click.Command):
    """A command whose help shows its options in groups and examples below them."""

    examples: tuple[str, ...] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section a group, in the order of `GROUPS`; the last has also what no other has. All columns line up."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {str(p.name): record for p in options if (record := p.get_help_record(ctx))}
        width = min(30, max(len(flags) for flags, _ in records.values()))
        sections = {title: [records.pop(n) for n in names if n in records] for title, names in GROUPS.items()}
        sections["General"] += records.values()
        for title, members in sections.items():
            if members:
                with formatter.section(title):
                    formatter.write_dl([(flags.ljust(width), text) for flags, text in members])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, one a line."""
        write_lines(formatter, "Examples", [f"cnncompress {line}" for line in self.examples])


def write_lines(formatter: click.HelpFormatter, title: str, lines: Sequence[str]) -> None:
    """A section of lines that are not wrapped, so that they can be copied."""
    with formatter.section(title):
        for line in lines:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def begin(settings: ModelSettings) -> None:
    """Before the imports that take seconds: refuse what is not there, and say what is being waited for."""
    if settings.model is None:
        raise UsageError("no network: give MODEL, or `model:` in the config")
    from cnncompress.names.models import check_name, check_weights

    check_name(settings.model)
    check_weights(settings.weights)
    _check_data(settings.data)
    _say_loading()


def need_data(data: str | None, purpose: str) -> None:
    """UsageError where a command that works on images is given none."""
    if data is None:
        raise UsageError(f"nothing to {purpose} on; give --data FOLDER, cifar10:ROOT or digits")


def begin_run(run: Path, data: str | None = None) -> None:
    """As `begin`, for a command that takes a run only."""
    from cnncompress.config.early import check_run

    check_run(run)
    _check_data(data)
    _say_loading()


def _check_data(spec: str | None) -> None:
    from cnncompress.names.data import check_data

    if spec is not None:
        check_data(spec)


def _say_loading() -> None:
    if "torch" not in sys.modules:
        console.LOG.info("loading PyTorch")


_imported = False


def nothing_to_import() -> None:
    """Called by a command that does not need the pipeline, when it begins to work."""
    global _imported
    _imported = True


def is_working() -> bool:
    """Whether imports are over, so that an interruption finds code that cleans up after itself."""
    return _imported or hasattr(sys.modules.get("cnncompress.api"), "__all__")


def voices(f: F) -> F:
    """--verbose, --quiet, --log and --json."""
    text = "Tell progress, warnings and errors as JSON on stderr, one object a line."
    f = click.option("--json", is_flag=True, help=text)(f)
    text = "Write what is said, with times and details, to the end of FILE too."
    f = click.option("--log", type=PATH, metavar="FILE", help=text)(f)
    f = click.option("-q", "--quiet", is_flag=True, help="Say nothing but the result, warnings and errors.")(f)
    return click.option("-v", "--verbose", is_flag=True, help="Say more while working.")(f)


VOICES = ("verbose", "quiet", "log", "json")


def command(name: str, *examples: str) -> Callable[[F], Command]:
    """Make a function a command with these examples, and with the options of `voices`, which it need not know."""

    def decorate(f: F) -> Command:
        @functools.wraps(f)
        def run(**values: Any) -> Any:
            context = click.get_current_context().parent
            before = context.params if context else {}
            _speak({voice: values.pop(voice) or before.get(voice) for voice in VOICES})
            return f(**values)

        made: Command = click.command(name, cls=Command)(voices(run))
        made.examples = examples
        return made

    return decorate


def _speak(voices: Mapping[str, Any]) -> None:
    """Have the command say what it was asked to say, where it was asked to say it."""
    verbose, quiet, log = voices["verbose"], voices["quiet"], voices["log"]
    if verbose and quiet:
        raise UsageError("--verbose and --quiet exclude each other; give one of them")
    level = console.VERBOSE if verbose else console.QUIET if quiet else console.NORMAL
    console.speak(level, events=bool(voices["json"]))
    if log is None:
        return
    try:
        console.log_to(log)
    except OSError as error:
        raise UsageError(f"--log {log}: {error.strerror or error}; give a file that can be written") from None
    words = shlex.join(["cnncompress", *sys.argv[1:]])
    console.LOG.log(EVENT, "%s: %s", __version__, words, extra=event("begin", version=__version__, command=words))


def tell_written(path: Path, shown: bool = True) -> None:
    """Say that a file or a run is written; not `shown` where the result says so."""
    console.LOG.log(console.NORMAL if shown else EVENT, "written to %s", path, extra=event("written", path=str(path)))


def tell_times(phases: console.Steps) -> None:
    """Say what the parts of a command took."""
    from cnncompress.reporting.layout import fill, terminal_width

    seconds = {name: round(taken, 3) for name, taken in phases.seconds.items()}
    console.LOG.info("%s", fill(str(phases), terminal_width()), extra=event("times", seconds=seconds))


def given(context: click.Context, without: Collection[str]) -> list[str]:
    """The arguments and options that a command was given, as words of a command line; those of `without` left out."""
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in without or value is None or value is False or value == ():
            continue
        name = [] if isinstance(parameter, click.Argument) else [parameter.opts[-1]]
        for one in value if isinstance(value, tuple) else (value,):
            words += name if one is True else [*name, str(one)]
    return words
