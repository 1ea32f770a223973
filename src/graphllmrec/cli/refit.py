"""`graphllmrec refit`: a finished run and newer data in, a run for production out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from graphllmrec.cli.common import Json, print_json, say
from graphllmrec.errors import Interrupted
from graphllmrec.terminal import command


def refit(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path, typer.Option("--out", help="The run folder to make.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Newer data; without it, that of the run.", show_default=False)
    ] = None,
    warm: Annotated[
        float,
        typer.Option("--warm", min=0.0, max=1.0,
                     help="Share of the epochs to train from the run's weights, in stages that read no text; "
                     "0: all epochs from new weights."),
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted refit in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fit a run again on all data, for production: nothing is held out.

    What the run found on its validation part is taken over: tuned settings, numbers of epochs, the weights and the gate
    of a fusion. New users and items of the data are included. OUT can be RUN with --overwrite. Without --data, the item
    texts lack tags that users wrote at held-out interactions: a run does not keep them, and a note counts them.
    """
    from graphllmrec.progress import RunLogger
    from graphllmrec.recommender import Recommender

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    began = time.monotonic()
    with RunLogger() as logger:
        try:
            if resume:
                fitted = Recommender.resume(out, logger=logger)
            else:
                fitted = Recommender.load(run).refit(data, out=out, overwrite=overwrite, warm=warm, logger=logger)
        except Interrupted as error:
            again = command("refit", run, "--resume", "--out", out)
            raise Interrupted(f"{error}; continue with: {again}") from None
    seconds, clicks = time.monotonic() - began, len(fitted.split.train)
    if as_json:
        print_json({
            "run": str(out), "model": fitted.recipe.model.name, "data": fitted.dataset.name,
            "users": fitted.dataset.num_users, "items": fitted.dataset.num_items, "interactions": clicks,
            "seconds": round(seconds, 2),
        })  # fmt: skip
        return
    of = f"all {clicks:,} interactions of {fitted.dataset.name}"
    say(f"Fitted {fitted.recipe.model.name} on {of} in {seconds:.1f} s. Saved in {out}.", "bold")
