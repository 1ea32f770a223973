"""`graphllmrec study`: many models on many data sets, tuned alike, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.cli.common import Json, print_json, say

if TYPE_CHECKING:
    from graphllmrec.study.folder import Plan


def study(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The study folder to make, or to go on with.", show_default=False)],
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Data folder; may be repeated, and several may follow it.", show_default=False),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run anew what the study or the data no longer agree with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    as_json: Json = False,
) -> None:
    """Tune, fit and evaluate models × seeds × data sets × placebos, and write one table as HTML, Markdown and JSON."""
    from graphllmrec.study.display import Display
    from graphllmrec.study.runner import plan_study, run_study

    folders = [*data, *map(Path, context.args)]
    if dry_run:
        _say_plan(plan_study(plan, folders, out), as_json=as_json)
        return
    found = run_study(plan, folders, out, overwrite=overwrite, display=Display())
    _conclude(found, out, as_json=as_json)
    if found["failed"]:
        raise typer.Exit(1)


def _conclude(found: dict[str, Any], out: Path, *, as_json: bool) -> None:
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
        named = {"study": str(out), "title": found["title"], "metric": metric, "cells": found["cells"]}
        print_json({**named, "failed": found["failed"], "entries": values, "comparisons": rows})
        return
    for name, error in failures(found):
        say(f"failed: {name}: {error}", "red")
    for data in found["data"]:
        say(verdict(found, data))
    failed = f", {found['failed']} failed" if found["failed"] else ""
    tables = ", ".join(str(out / name) for name in ("index.html", "study.md", "study.json"))
    say(f"{found['cells']} cells{failed}. Tables: {tables}.", "bold")


def _say_plan(plan: Plan, *, as_json: bool) -> None:
    from graphllmrec.errors import CheckpointError
    from graphllmrec.study.runner import fits_left

    changed = None
    try:
        plan.require_unchanged()
    except CheckpointError as error:
        changed = str(error)
    states = {cell.folder: cell.state() for cell in plan.cells}
    trials = {search.folder: (len(search.trials()), search.size) for search in plan.searches}
    fits = len(states) + sum(size for _, size in trials.values())
    left = len(fits_left(plan))
    counts = {state: list(states.values()).count(state) for state in ("done", "failed", "open")}
    if as_json:
        listed = [
            {"data": cell.source.name, "label": cell.case.label, "seed": cell.seed, "state": states[cell.folder]}
            for cell in plan.cells
        ]
        print_json({"study": str(plan.out), "cells": len(states), **counts, "fits": fits, "fits_left": left,
                    "changed": changed, "plan": listed})  # fmt: skip
        return
    for source in plan.sources:
        for case in plan.cases:
            cells = plan.cells_of(source, case)
            done, size = trials.get(cells[0].search.folder, (0, 0))
            search = f"{done} of {size} trials, " if size else ""
            seeds = ", ".join(f"seed {cell.seed} {states[cell.folder]}" for cell in cells)
            say(f"{source.name} · {case.label}: {search}{seeds}")
    if changed:
        say(changed, "yellow")
    say(f"{len(states)} cells: {counts['done']} done, {counts['failed']} failed, {counts['open']} open. "
        f"{left} fits to make, of {fits}.", "bold")  # fmt: skip
