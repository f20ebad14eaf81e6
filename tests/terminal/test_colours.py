"""Colours on a terminal: the same words, and none where nobody can see them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from cnncompress.terminal.colours import write_coloured

TABLE = """Half the MACs, top-1 90.0 → 89.5 (−0.5 ± 0.4, within noise).

network    MACs          params
---------  ------------  ---------
net        4.000G        [bold]2M
net small  2.000G 0.50×  3M 1.50×

3×3 3→64 is no share; 1.00× is none to speak of; a line that is longer than eighty characters is not wrapped here."""
ESCAPE = re.compile(r"\x1b\[([\d;]*)m")


def written(**settings):
    file = io.StringIO()
    write_coloured(TABLE, Console(file=file, highlight=False, width=80, **settings))
    return file.getvalue()


def test_the_words_stay_the_same():
    coloured = written(force_terminal=True, color_system="standard", no_color=False)
    assert ESCAPE.sub("", coloured) == TABLE + "\n"
    styled = dict(re.findall(r"\x1b\[([\d;]*)m(.+?)\n?\x1b\[0m", coloured))
    assert styled["1"] == "network    MACs          params"
    assert styled["32"] == "0.50×"
    assert styled["33"] == "1.50×"
    assert coloured.count("\x1b[3") == 2  # what is green or yellow


CASES = [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("variables", "coloured"), CASES, ids=str)
def test_a_terminal_has_colours_unless_it_cannot_or_should_not(variables, coloured):
    import pty

    ours, theirs = pty.openpty()
    given = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    given |= {"TERM": "xterm-256color", **variables}
    with subprocess.Popen([sys.executable, "-m", "cnncompress", "methods"], stdout=theirs, env=given):
        os.close(theirs)
        text = "".join(iter(lambda: _read(ours), ""))
    os.close(ours)
    assert "spatial-svd" in text
    assert bool(ESCAPE.search(text)) == coloured


def _read(terminal):
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # the end of a terminal on Linux
        return ""


def test_a_pipe_has_none():
    text = subprocess.run([sys.executable, "-m", "cnncompress", "--version"], capture_output=True, check=True).stdout
    assert b"\x1b" not in text
