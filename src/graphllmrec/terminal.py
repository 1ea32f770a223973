"""Text for a terminal: what would command it is shown instead of sent, command lines can be copied."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

# Control characters (C0, C1), line and paragraph separators, bidirectional overrides and isolates, lone surrogates.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with every character that commands a terminal written as an escape.

    >>> visible("pot\x1b[31m \u202egnp.exe")
    'pot\\x1b[31m \\u202egnp.exe'
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def command(*parts: str | Path) -> str:
    """A command line of this package that can be copied into a shell.

    >>> command("recommend", Path("my run"), "--user", "1")
    "graphllmrec recommend 'my run' --user 1"
    """
    return shlex.join(["graphllmrec", *map(str, parts)])
