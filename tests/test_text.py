"""Text that is safe to print."""

import json

import pytest

from cnncompress.text import csv_cell, escaped_json, first_line, markdown, plain, plain_lines, quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("features.0: 3×3 8→16, 0.25", "features.0: 3×3 8→16, 0.25"),
        ("kept\x1b[2J", "kept[2J"),  # ESC: a terminal would clear its screen
        ("a\x07\x08\x7fb", "ab"),
        ("\x9b31mred\x85", "31mred "),  # C1: the same by one character, and a next line
        ("safe\u202etxt.exe\u2066", "safetxt.exe"),  # bidirectional override and isolate
        ("a\u200bb\ufeff", "ab"),
        ("a\r\nb\tc\u2028d", "a  b c d"),
        ("half \ud800", "half "),
    ],
)
def test_nothing_that_a_terminal_obeys_is_left(text, shown):
    assert plain(text) == shown


def test_lines_stay_lines():
    assert plain_lines("a\x1b[1m\n\tb\r\n") == "a[1m\n b \n"


def test_values_are_quoted_short():
    assert quote("a\x1b'") == '"a\\x1b\'"'
    assert quote("x" * 1000) == "'" + "x" * 79 + "…"


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one\x1b \ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("=HYPERLINK(0)", "'=HYPERLINK(0)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "' =1"),
        ("\r\n=1", "'  =1"),
        ("  =1", "'  =1"),
        ("\x00=1", "'=1"),
        ("＝1", "'＝1"),
        ("-5", "-5"),
        ("+5.25", "+5.25"),
        ("-1e-3", "-1e-3"),
        ("-٣", "'-٣"),
        ("features.0", "features.0"),
        ("", ""),
        (-5, -5),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_no_cell_is_a_formula(value, cell):
    assert csv_cell(value) == cell


def test_markdown_has_no_elements_of_a_file():
    assert markdown("a|b <img src=x> ![x](http://x) [7-9]\x1b") == "a\\|b &lt;img src=x> ![x]\\(http://x) [7-9]"


def test_json_for_terminals_says_the_same():
    values = {"a\x1b": ["\x9b", "\u202e", "\U000e0041", "é→😀", "\n", "\x7f"]}
    text = escaped_json(json.dumps(values, ensure_ascii=False, indent=1))
    assert json.loads(text) == values
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "é→😀" in text
