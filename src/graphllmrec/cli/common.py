"""Options and output that several commands share."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.terminal import visible

if TYPE_CHECKING:
    from graphllmrec.recommendation import Recommendation

Run = Annotated[Path, typer.Argument(help="A run folder made by `graphllmrec fit`.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line instead of tables.")]
K = Annotated[int, typer.Option("-k", min=1, help="Length of the list.")]
User = Annotated[str | None, typer.Option("--user", help="A user id of the data.", show_default=False)]
History = Annotated[
    str | None,
    typer.Option(
        "--history",
        help="Item ids of an unknown user, oldest first, separated by commas; one with a comma in double quotes.",
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
    return None if history is None else id_fields(history)


def id_fields(text: str) -> list[str]:
    """Ids separated by commas; one that holds a comma stands in double quotes, as in a csv file."""
    [fields] = csv.reader([text], skipinitialspace=True)
    return [field.strip() for field in fields if field.strip()]


def command(*parts: str | Path) -> str:
    """A command line that can be copied into a shell."""
    return shlex.join(map(str, parts))
