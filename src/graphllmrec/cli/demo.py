"""Getting started: the demo, and a check of the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphllmrec.cli.common import Json, print_json, say


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and the report.")] = Path("demo-run"),
    as_json: Json = False,
) -> None:
    """Train and compare six recommenders on MovieLens, ask one for advice, and add a film that does not exist."""
    from graphllmrec.cli.demo_job import run_demo

    found = run_demo(out)
    if as_json:
        print_json(found)


def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, threads, GPU, packaged weights, folders, optional parts."""
    from graphllmrec.cli.doctor_checks import check_all

    checks = check_all()
    failed = [check for check in checks if check.required and not check.ok]
    if as_json:
        print_json({"ok": not failed, "checks": [vars(check) for check in checks]})
    else:
        for check in checks:
            mark, style = ("ok", "green") if check.ok else ("NO", "red") if check.required else ("--", "yellow")
            say(f"{mark:>4}  {check.name:<13} {check.found}", style)
            if check.advice:
                say(f"{'':20}→ {check.advice}")
        summary = f"{len(failed)} problem(s) to solve first: {', '.join(check.name for check in failed)}."
        say(summary if failed else "Everything that is needed is here. Next: graphllmrec demo", "bold")
    if failed:
        raise typer.Exit(2)
