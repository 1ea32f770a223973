"""What all pages share: frame, tables, figures. One file with its style inside, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    css = files("graphllmrec.report").joinpath("page.css").read_text(encoding="utf-8")
    footer = f"<footer class='note'>Made by graphllmrec {version('graphllmrec')}{escape(closing)}.</footer>"
    return _DOCUMENT.format(title=escape(title), css=css, body="\n".join([*filter(None, sections), footer]))


def figure(title: str, drawing: str, caption: str) -> str:
    """A drawing (SVG) with title and caption (text)."""
    return f"<figure><h3>{escape(title)}</h3>\n{drawing}<figcaption>{escape(caption)}</figcaption></figure>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table from header texts (escaped here) and cells (HTML); a row of one cell is a heading within the table."""
    lines = ["<div class='scroll'><table>", "<thead><tr>", *(f"<th>{escape(name)}</th>" for name in head)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        if len(row) == 1:
            lines.append(f"<tr class='kind'><td>{row[0]}</td><td colspan='{len(head) - 1}'></td></tr>")
        else:
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])
