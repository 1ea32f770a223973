"""Options and output that several commands share."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.errors import ArgumentError
from graphllmrec.terminal import visible

if TYPE_CHECKING:
    from graphllmrec.recommendation import Recommendation

IDS = "separated by commas, one with a comma in double quotes; or @FILE with an id per line"
Run = Annotated[Path, typer.Argument(help="A run folder made by `graphllmrec fit`.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line instead of tables.")]
K = Annotated[int, typer.Option("-k", min=1, help="Length of the list.")]
User = Annotated[str | None, typer.Option("--user", help="A user id of the data.", show_default=False)]
History = Annotated[
    str | None,
    typer.Option("--history", help=f"Item ids of an unknown user, oldest first: {IDS}.", show_default=False),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", help=f"Items that no list may hold: {IDS}. Can be repeated.", show_default=False),
]
Candidates = Annotated[
    list[str] | None,
    typer.Option(
        "--candidates", help=f"The only items that lists may hold: {IDS}. Can be repeated.", show_default=False
    ),
]
Filter = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help="A condition on the columns of the items, in SQL: \"price < 20 AND brand = 'Lego'\". Repeated: "
        "all must be true.",
        show_default=False,
    ),
]


def print_json(values: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    print(json.dumps(values, ensure_ascii=False, default=str))


def say(text: str, style: str = "") -> None:
    """A line of text on stdout; wrapped by the terminal only, so that paths and commands can be copied."""
    from rich.console import Console
    from rich.text import Text

    shown = "\n".join(visible(line) for line in text.split("\n"))
    Console().print(Text(shown, style=style), soft_wrap=True)


def print_list(entries: list[Recommendation], title: str, score: str = "score") -> None:
    """A ranked list as a table: place, title, id, score."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title)), title_justify="left", box=None, pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("title", overflow="fold")
    table.add_column("item_id", style="dim", overflow="fold")
    table.add_column(score, justify="right", style="cyan")
    for place, entry in enumerate(entries, start=1):
        texts = [Text(visible(text)) for text in (entry.title or "(no title)", entry.item_id)]
        table.add_row(str(place), *texts, f"{entry.score:.4f}")
    Console().print(table)


def listed(entries: list[Recommendation]) -> list[dict[str, Any]]:
    """Recommendations as JSON values."""
    return [{"item_id": entry.item_id, "title": entry.title, "score": entry.score} for entry in entries]


def history_items(user: str | None, history: str | None) -> list[str] | None:
    """The item ids of --history, or None with --user; a usage error unless exactly one of both is given."""
    if (user is None) == (history is None):
        raise typer.BadParameter("give either --user ID or --history a,b,c")
    return None if history is None else option_ids(history)


def option_ids(text: str) -> list[str]:
    """Ids separated by commas, or those of @FILE, one per line. One with a comma, or with @ first, in double quotes.

    Raises ArgumentError for a file that cannot be read, and for quotes that do not match.
    """
    if text.startswith("@"):
        try:
            fields = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"{text}: cannot read a list of ids, one per line, from this file ({error})") from None
    else:
        try:
            [fields] = csv.reader([text], skipinitialspace=True, strict=True)
        except csv.Error as error:
            raise ArgumentError(f"{text:.80}: not ids separated by commas ({error})") from None
    return [field.strip() for field in fields if field.strip()]
