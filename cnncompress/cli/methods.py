"""`cnncompress methods`."""

from __future__ import annotations

import click


@click.command("methods")
def command() -> None:
    """The registered methods with their ranks, options and sources."""
    from tabulate import tabulate

    from cnncompress.decompositions import REGISTRY

    rows = []
    for name, method in sorted(REGISTRY.items()):
        settings = ", ".join(f"{k}={v}" for k, v in method.options.items()) or "–"
        rows.append(
            [name, ", ".join(method.rank_names), settings, (method.__doc__ or "").split("\n")[0], method.source]
        )
    click.echo(tabulate(rows, headers=["method", "rank", "options", "chain", "source"], tablefmt="simple"))
