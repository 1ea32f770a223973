"""The frame that all pages share: one file with its style inside, without scripts, fonts or images from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from importlib.resources import files

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{css}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def document(title: str, sections: Iterable[str], closing: str = "") -> str:
    """A page of a title (text) and sections (HTML; empty ones are left out); `closing` (text) ends the footer."""
    css = files("graphllmrec.evaluate").joinpath("page.css").read_text(encoding="utf-8")
    footer = f"<footer class='note'>Made by graphllmrec {version('graphllmrec')}{escape(closing)}.</footer>"
    return _DOCUMENT.format(title=escape(title), css=css, body="\n".join([*filter(None, sections), footer]))
