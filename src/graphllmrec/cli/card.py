"""`graphllmrec card`: the model card of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphllmrec.cli.common import Json, Run, print_json, say

if TYPE_CHECKING:
    from graphllmrec.report.card import CardSource


def card(
    run: Run,
    baselines: Annotated[
        list[Path] | None,
        typer.Option("--baseline", help="A run to test against; may be repeated.", show_default=False),
    ] = None,
    data_licence: Annotated[
        str | None,
        typer.Option("--data-licence", help="Licence of the data; default: what a LICENSE or README file of the data "
                     "folder says.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default: print it.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """A model card in Markdown: data and licence, protocol, figures with intervals, limits, recipe, versions."""
    from graphllmrec.io import write_text
    from graphllmrec.report.card import card_markdown, card_values

    values = card_values(_source(run, baselines or [], data_licence))
    text = card_markdown(values)
    if out is not None:
        write_text(out, text)
    if as_json:
        print_json({**values, "card": None if out is None else str(out)})
    elif out is None:
        print(text, end="")
    else:
        say(f"Wrote the card of {run} to {out}.", "bold")


def _source(run: Path, baselines: list[Path], data_licence: str | None) -> CardSource:
    """The card's parts; test evaluations are made where a run has none, and kept in its folder."""
    from graphllmrec.progress import RunLogger
    from graphllmrec.recommender import Recommender
    from graphllmrec.report.card import CardSource
    from graphllmrec.report.runs import load_evaluations, name_runs

    recommender = Recommender.load(run)
    named = name_runs([run, *baselines])
    with RunLogger() as logger:
        found = load_evaluations(named if len(recommender.split.test) else {}, logger)
    own = next((name for name, path in named.items() if path == run), "")
    evaluation = found.pop(own, None)
    about = json.loads((run / "model.json").read_text(encoding="utf-8"))
    return CardSource(
        recommender.recipe,
        recommender.model.abilities,
        recommender.dataset,
        recommender.split,
        evaluation,
        found,
        data_licence,
        about["versions"],
        about.get("seconds"),
    )
