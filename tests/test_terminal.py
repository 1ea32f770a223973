"""What a title may not do on a terminal, and commands that can be copied."""

from __future__ import annotations

import doctest
import shlex

import pytest

from graphllmrec import terminal
from graphllmrec.cli.common import option_ids
from graphllmrec.recommendation import Explanation, Recommendation
from graphllmrec.terminal import command, visible

EVIL = "\x1b[2J\x9b31m\u202eevil\u2066\r\n\x07"


def test_example():
    assert doctest.testmod(terminal).failed == 0


def test_commands_are_shown_and_text_of_any_script_stays():
    shown = visible(EVIL)
    assert shown == "\\x1b[2J\\x9b31m\\u202eevil\\u2066\\r\\n\\x07"
    for text in ("Crème brûlée", "常滑焼 急須", "שלום", "👩‍💻", "नमस्ते", "a\u00a0b"):
        assert visible(text) == text


def test_lists_and_explanations_show_titles_safely():
    entry = Recommendation("x", EVIL, 1.0)
    reason = Explanation("x", EVIL, 1.0, {"text": 1.0}, None, None, [entry])
    for text in (str(entry), str(reason)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[2J" in text


def test_a_lone_surrogate_can_be_printed():
    assert visible("bad \ud800 title").encode("utf-8") == b"bad \\ud800 title"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a,b , c", ["a", "b", "c"]),
        ('"SKU,0","it em 1"', ["SKU,0", "it em 1"]),
        ("a,,", ["a"]),
        ('5, "6,7"', ["5", "6,7"]),
    ],
)
def test_a_history_on_the_command_line_is_a_line_of_csv(text, ids):
    assert option_ids(text) == ids


def test_suggested_commands_can_be_copied():
    line = command("explain", "my run", "--user", "Doe, 6", "--item", "it'em")
    assert shlex.split(line) == ["graphllmrec", "explain", "my run", "--user", "Doe, 6", "--item", "it'em"]
