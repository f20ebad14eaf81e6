"""The times of a network's layers and chains as a file, for plans made on another machine."""

from __future__ import annotations

from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table_file import Measured, table_text
from cnncompress.network.subject import look_at
from cnncompress.pipeline.opened import Opened, need_layers
from cnncompress.pipeline.timing import TimedFormats, originals_in
from cnncompress.planning import Choice, settled_table, wanted_of
from cnncompress.terminal.console import LOG

SECONDS = 300.0  # for measuring chains


def measured_table(opened: Opened, setting: TimingSetting) -> str:
    """Measure the layers of a network, and the chains of all methods that `auto` chooses from; the text of a file.

    The network is in the memory format of the setting, or else in the fastest. Shares are of the fastest.
    """
    need_layers(opened, "time")
    LOG.info("time layers and chains of %s", opened.name)
    subject = look_at(opened.model, opened.example())
    networks = originals_in(subject, setting, setting.memory_format)
    timed = TimedFormats(networks, latency(networks, subject.example, setting))
    planned = setting.memory_format or timed.reference
    chains = wanted_of(subject.calls, Choice())
    table = settled_table(networks[planned], subject.example, subject.calls, setting, chains, SECONDS)
    ms = {layout: one.p10 for layout, one in timed.latencies.items()}
    return table_text(Measured(table, opened.name, ms[planned], ms[timed.reference]))
