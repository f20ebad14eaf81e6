"""The signals that ask a program to stop: Ctrl-C, `kill` and what batch systems send, the end of a terminal."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and, unless it is ignored as after `nohup`, SIGHUP; all three are handled alike."""
    signals = (signal.SIGINT, signal.SIGTERM)
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return signals
    return (*signals, hangup)
