"""`graphllmrec grok-lab`: the grokking detector on trainings that generalise late, and on ones that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphllmrec.cli.common import Json, print_json, say


def grok_lab(
    out: Annotated[Path, typer.Option("--out", help="Folder for trajectories, page and figures.")] = Path("grok-lab"),
    everything: Annotated[
        bool, typer.Option("--all", help="The whole collection, about 400 runs, and the score of every rule.")
    ] = False,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Instead: two branches, one late; ten seeds of every way to fuse them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train small problems that grok and ones that do not, and draw the states that the detector finds.

    Without --all: one run of every kind, in about a minute of one processor core. Runs that are in the folder already
    are not made again.
    """
    from graphllmrec.grokking.lab.collection import BUILD, PARTS
    from graphllmrec.grokking.lab.runner import run_fusion, run_lab
    from graphllmrec.progress import RunLogger
    from graphllmrec.report.lab_report import delay_text

    if fusion:
        with RunLogger() as logger:
            found = run_fusion(out, logger)
        if as_json:
            print_json({"out": str(out), **found})
            return
        for row in found["table"]:
            say(f"{row['name']:26s} NDCG {row['area']['mean']:.4f} on the way, {row['final']['mean']:.4f} in the end")
        say(f"Open {out / 'fusion.html'} in a browser.", "bold")
        return
    with RunLogger() as logger:
        found = run_lab(out, "all" if everything else "quick", logger)
    if as_json:
        print_json({"out": str(out), **{key: found[key] for key in found if key != "runs"}})
        return
    for name, rule in found.get("rules", {}).items():
        for part in (part for part in PARTS if part not in BUILD):
            score = rule[part]
            say(
                f"{part:15s} {name:30s} {score['hits']} of {score['events']} events, {score['false_alarms']} false "
                f"alarms in {score['runs']} runs, median delay {delay_text(score['median_delay']) or 'none'}"
            )
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(found["outcomes"].items()))
    say(f"{len(found['runs'])} runs: {outcomes}. Open {out / 'index.html'} in a browser.", "bold")
