"""`graphllmrec study`: many models on many data sets, tuned alike, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.cli.common import Json, print_json, say

if TYPE_CHECKING:
    from graphllmrec.study.plan import Plan, State


def study(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The study folder to make, or to go on with.", show_default=False)],
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Data folder; may be repeated, and several may follow it.", show_default=False),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results with other settings or data.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the fits.")] = False,
    as_json: Json = False,
) -> None:
    """Tune, fit and evaluate models × seeds × data sets × placebos, and write one table as HTML, Markdown and JSON."""
    from graphllmrec.study import plan_study, run_study
    from graphllmrec.study.display import Display

    folders = [*data, *map(Path, context.args)]
    if dry_run:
        _say_plan(plan_study(plan, folders, out), as_json=as_json)
        return
    found = run_study(plan, folders, out, overwrite=overwrite, display=Display())
    _report(found, out, as_json=as_json)
    if found["failed"]:
        raise typer.Exit(1)


def _report(found: dict[str, Any], out: Path, *, as_json: bool) -> None:
    from graphllmrec.report.study_report import failures, verdict

    metric = found["metric"]
    if as_json:
        values = [
            {key: entry[key] for key in ("data", "label", "settings", "trials")}
            | {metric: entry["test"][metric] if "test" in entry else None}
            for entry in found["entries"]
        ]
        rows = [
            {key: row[key] for key in ("data", "a", "b", "difference", "relative", "p_holm")}
            for row in found["comparisons"]
            if row["metric"] == metric
        ]
        named = {"study": str(out), "title": found["title"], "metric": metric, "fits": found["fits"]}
        print_json({**named, "failed": found["failed"], "entries": values, "comparisons": rows})
        return
    for name, error in failures(found):
        say(f"failed: {name}: {error}", "red")
    for data in found["data"]:
        say(verdict(found, data))
    failed = f", {found['failed']} failed" if found["failed"] else ""
    tables = ", ".join(str(out / name) for name in ("index.html", "study.md", "study.json"))
    say(f"{found['fits']} fits{failed}. Tables: {tables}.", "bold")


def _say_plan(plan: Plan, *, as_json: bool) -> None:
    from graphllmrec.errors import CheckpointError
    from graphllmrec.study.runner import fits_left

    changed = None
    try:
        plan.require_unchanged()
    except CheckpointError as error:
        changed = str(error)
    states = {job.folder: job.state() for job in plan.jobs}
    counts = {state: list(states.values()).count(state) for state in ("done", "failed", "open")}
    left, total = len(fits_left(plan)), len(states) + sum(search.size for search in plan.searches)
    if as_json:
        listed = [
            {"data": job.source.name, "label": job.variant.label, "seed": job.seed, "state": states[job.folder]}
            for job in plan.jobs
        ]
        print_json({"study": str(plan.out), "fits": len(states), **counts, "fits_left": left,
                    "fits_with_trials": total, "changed": changed, "plan": listed})  # fmt: skip
        return
    for note in plan.notes:
        say(note, "yellow")
    for line in _plan_lines(plan, states):
        say(line)
    if changed:
        say(changed, "yellow")
    say(f"{len(states)} fits: {counts['done']} done, {counts['failed']} failed, {counts['open']} open. "
        f"With the trials of the searches, {left} of {total} fits are left to make.", "bold")  # fmt: skip


def _plan_lines(plan: Plan, states: dict[Path, State]) -> Iterator[str]:
    """ "books · ease: 2 of 3 trials, seed 0 open, seed 1 open" for every variant on every data set."""
    for source in plan.sources:
        for variant in plan.variants:
            jobs = plan.jobs_for(source, variant)
            search = jobs[0].search
            trials = f"{len(search.trials())} of {search.size} trials, " if search.size else ""
            seeds = ", ".join(f"seed {job.seed} {states[job.folder]}" for job in jobs)
            yield f"{source.name} · {variant.label}: {trials}{seeds}"
