"""`graphllmrec fit`: recipe and data in, run folder out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.cli.common import Json, print_json, say
from graphllmrec.errors import Interrupted
from graphllmrec.terminal import command

if TYPE_CHECKING:
    from graphllmrec.progress import RunLogger
    from graphllmrec.recipe import Recipe
    from graphllmrec.recommender import Recommender


def fit(
    out: Annotated[Path, typer.Option("--out", help="The run folder to make.", show_default=False)],
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe file, or the name of a packaged recipe such as ease.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder: interactions.* and items.*", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value, replaces a setting of the recipe; may be repeated.",
                     show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted or killed fit in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fit the recommender of a recipe, and save it in a run folder."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if not resume and (recipe is None or data is None):
        raise typer.BadParameter("RECIPE and --data are needed (only --resume takes them from the run folder)")
    from graphllmrec.progress import RunLogger

    loaded = None if recipe is None else _recipe(recipe, settings or [], seed)
    began = time.monotonic()
    with RunLogger() as logger:
        recommender = _fit(loaded, data, out, logger, resume=resume, overwrite=overwrite)
        valid = None
        if len(recommender.split.valid):
            evaluation = recommender.evaluate("valid", logger=logger)
            evaluation.write(out)
            valid = evaluation.overall
    _report(recommender, out, valid, time.monotonic() - began, as_json=as_json)


def _recipe(source: str, settings: list[str], seed: int | None) -> Recipe:
    from graphllmrec.recipe import load_recipe, parse_setting

    overrides = dict(parse_setting(setting) for setting in settings)
    return load_recipe(source, overrides if seed is None else {**overrides, "seed": seed})


def _fit(
    recipe: Recipe | None, data: Path | None, out: Path, logger: RunLogger, *, resume: bool, overwrite: bool
) -> Recommender:
    from graphllmrec import run_folder as run
    from graphllmrec.recommender import Recommender

    try:
        if resume and run.unfinished(out) is None and run.state_of(out) == "finished":  # killed after the last write
            return _finished(recipe, data, out, logger)
        if resume:
            return Recommender.resume(out, recipe=recipe, data=data, logger=logger)
        assert recipe is not None
        assert data is not None
        return Recommender(recipe).fit(data, out=out, overwrite=overwrite, logger=logger)
    except (Interrupted, KeyboardInterrupt) as error:
        begun = isinstance(error, Interrupted)  # otherwise what is unfinished there is another, earlier fit
        if (begun or resume) and run.unfinished(out) is not None:
            what = str(error) or "interrupted"
            raise Interrupted(f"{what}; continue with: {command('fit', '--resume', '--out', out)}") from None
        raise Interrupted("interrupted before training began; nothing was written") from None


def _finished(recipe: Recipe | None, data: Path | None, out: Path, logger: RunLogger) -> Recommender:
    """The recommender of a finished run: nothing is left to train."""
    from graphllmrec import run_folder as run
    from graphllmrec.data.prepare import read_and_split
    from graphllmrec.errors import CheckpointError
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(out)
    if recipe is not None and recipe.for_data(recommender.split.ordered) != recommender.recipe:
        raise CheckpointError(f"{out} is finished, with another recipe; choose another folder, or use --overwrite")
    if data is not None:
        given, _ = read_and_split(data, recommender.recipe.data, recommender.recipe.seed, logger)
        if run.fingerprint(given) != run.load_tables(out).fingerprint:
            raise CheckpointError(f"{out} is finished, with other data; choose another folder, or use --overwrite")
    run.tidy(out)
    logger.say(f"{out} is already finished, nothing is left to train")
    return recommender


def _report(
    recommender: Recommender, out: Path, valid: dict[str, float] | None, seconds: float, *, as_json: bool
) -> None:
    recipe, dataset = recommender.recipe, recommender.dataset
    metric = recipe.evaluate.metric
    if as_json:
        values: dict[str, Any] = {
            "run": str(out),
            "model": recipe.model.name,
            "data": dataset.name,
            "seed": recipe.seed,
            "seconds": round(seconds, 2),
            "valid": valid,
        }
        print_json(values)
        return
    reached = "" if valid is None else f", validation {metric} {valid[metric]:.4f}"
    say(f"Fitted {recipe.model.name} on {dataset.name} in {seconds:.1f} s{reached}. Saved in {out}. "
        f"Next: {command('evaluate', out)}", "bold")  # fmt: skip
