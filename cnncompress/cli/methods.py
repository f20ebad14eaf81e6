"""`cnncompress methods`."""

from __future__ import annotations

from cnncompress.cli import frame, options


@frame.command(
    "methods",
    "methods",
)
def command() -> None:
    """The methods: chain, ranks, options, source."""
    from cnncompress.names.methods import STRUCTURES, catalogue

    rows = []
    for name, method in (catalogue() | STRUCTURES).items():
        settings = ", ".join(f"{k}={v}" for k, v in method.options.items()) or "–"
        rows.append([name, ", ".join(method.rank_names), settings, method.chain, method.source])
    options.echo_table(rows, ["method", "rank", "options", "chain", "source"], [None, None, 16, 40, 24])
