"""`cnncompress methods`."""

from __future__ import annotations

from cnncompress.cli import frame, options


@frame.command(
    "methods",
    "methods",
)
def command() -> None:
    """The methods: chain, ranks, options, source."""
    from cnncompress.decompositions import REGISTRY

    rows = []
    for name, method in sorted(REGISTRY.items()):
        settings = ", ".join(f"{k}={v}" for k, v in method.options.items()) or "–"
        chain = (method.__doc__ or "").split("\n")[0]
        rows.append([name, ", ".join(method.rank_names), settings, chain, method.source])
    options.echo_table(rows, ["method", "rank", "options", "chain", "source"], [None, None, 16, 40, 24])
