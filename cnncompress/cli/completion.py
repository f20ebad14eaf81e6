"""What the shell completes: names, and files where those may stand too. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from cnncompress.names import data, methods, metrics

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _either(names: Callable[[], Iterable[str]], files: bool) -> Complete:
    """Completes names, and files, which shells offer where no name begins so."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")] * files + found  # bash forgets what comes before a file

    return complete


def _last_method(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the last of methods that are joined by +."""
    before, plus, last = incomplete.rpartition("+")
    known = ["auto", methods.SELECT, *methods.catalogue()]
    return [CompletionItem(f"{before}{plus}{name}") for name in known if name.startswith(last)]


def _networks() -> Iterable[str]:
    from cnncompress.names.models import known_names  # which reads files: no help waits for that

    return known_names()


MODEL = _either(_networks, files=True)
WEIGHTS = _either(lambda: ("DEFAULT", "none"), files=True)
DATA = _either(lambda: data.BUILTIN_SETS, files=True)
METRIC = _either(metrics.catalogue, files=False)
METHOD = _last_method
