"""What pages are made of, as plain data: tables with cells, and figures. Templates and Markdown render them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from graphllmrec.report.format import are_best, differs, number, p_text, relative, significance


@dataclass(frozen=True)
class Whisker:
    """A mean with its interval, drawn within a cell; all places are shares of the drawing's width, in [0, 1]."""

    low: float
    mean: float
    high: float
    reference: float | None  # where a dotted line stands
    colour: str  # CSS


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    note: str = ""  # follows the text, smaller
    kind: str = ""  # CSS class: "good", "bad", "same", "minor", "number"
    best: bool = False  # printed bold
    key: str = ""  # CSS colour of a dot before the text
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Table:
    """A table: header, rows, and a note below it. A row that is a text is a heading within the table."""

    head: Sequence[str]
    rows: Sequence[str | Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing with its title and caption."""

    title: str
    drawing: Markup  # an <svg> element
    caption: str = ""
    legend: Mapping[str, str] = field(default_factory=dict)  # {name: CSS colour}, above the drawing


def number_cells(values: Sequence[float]) -> list[Cell]:
    """Metric values of several models; the best one is bold, unless all are equal or 0."""
    return [Cell(number(value), best=best) for value, best in zip(values, are_best(values), strict=True)]


def difference_cell(share: float | None, difference: float, p: float) -> Cell:
    """A relative difference with its p, which is only given where it says something: without a difference p is 1."""
    kind = significance(difference, p)
    note = "(not significant)" if share is None and kind == "same" else p_text(p)
    return Cell(relative(share, difference), note if differs(difference) else "", kind)


def markdown_table(table: Table) -> list[str]:
    """The lines of a Markdown table (without the note)."""
    rows = [[row] if isinstance(row, str) else [_markdown(cell) for cell in row] for row in table.rows]
    width = len(table.head)
    lines = [list(table.head), ["---"] * width, *(row + [""] * (width - len(row)) for row in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _markdown(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell.text} {cell.note}".strip()
