"""A visit to the lab: make runs, judge the rules where both parts are there, write everything down."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from graphllmrec.errors import CheckpointError
from graphllmrec.files import write_text
from graphllmrec.journal import RunJournal
from graphllmrec.lab.collection import Part, Run, collection
from graphllmrec.lab.page import Pair, page_of
from graphllmrec.lab.protocol import Score, compare, outcome
from graphllmrec.lab.rules import detector, watch
from graphllmrec.lab.trajectory import read_trajectories, write_trajectories
from graphllmrec.lab.truth import truth_of

Scope = Literal["quick", "all"]
_PARTS: tuple[Part, Part] = ("build", "held-out")


def visit(out: Path, scope: Scope, journal: RunJournal) -> dict[str, Any]:
    """Make the runs of a scope in the folder `out`; those that are there already are taken over. Returns the outcome.

    "quick": one run of every kind and task; "all": both parts of the collection, and every rule judged on the second.
    Writes trajectories-PART.parquet, lab.json and index.html.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose another --out")
    began, made = time.monotonic(), {}
    for part in _PARTS if scope == "all" else _PARTS[:1]:
        made[part] = _made(out / f"trajectories-{scope}-{part}.parquet", _chosen(part, scope), journal)
    table = None
    if scope == "all":
        journal.stage("judge the rules")
        table = compare(*([run for _, run in made[part]] for part in _PARTS))
    everything = [pair for part in made for pair in made[part]]
    found = _told(everything, table) | {"seconds": round(time.monotonic() - began, 1)}
    write_text(out / "lab.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "index.html", page_of(_to_draw(everything), table))
    return found


def _chosen(part: Part, scope: Scope) -> list[Run]:
    runs = collection(part)
    if scope == "all":
        return runs
    first = {(run.task, run.kind): run for run in reversed(runs)}
    return [run for run in runs if first[run.task, run.kind] is run]


def _made(path: Path, runs: Sequence[Run], journal: RunJournal) -> list[Pair]:
    """Every run with its trajectory; what the file holds is not made again, and it is written every ten runs."""
    done = read_trajectories(path) if path.is_file() else []
    if [(run.task, run.seed) for run in runs][: len(done)] != [(run.task, run.seed) for run in done]:
        raise CheckpointError(f"{path} holds other runs; choose another --out")
    journal.stage(f"train {path.stem.removeprefix('trajectories-')}", len(runs))
    journal.advance(len(done))
    for run in runs[len(done) :]:
        done.append(run.make())
        journal.advance(1)
        if len(done) % 10 == 0 or len(done) == len(runs):
            write_trajectories(path, done)
    return list(zip(runs, done, strict=True))


def _told(pairs: Sequence[Pair], table: Any) -> dict[str, Any]:
    """The outcome as JSON values."""
    rows = []
    for run, made in pairs:
        truth, seen = truth_of(made), watch(made)
        rows.append(
            {"part": run.part, "kind": run.kind, "name": made.name, "truth": asdict(truth)}
            | {"outcome": outcome(truth, detector(made)), "events": [event.to_json() for event in seen.events]}
        )
    found: dict[str, Any] = {"runs": rows, "outcomes": dict(Counter(row["outcome"] for row in rows))}
    if table is not None:
        found["rules"] = {
            name: {"threshold": threshold, "build": _figures(build), "held-out": _figures(held_out)}
            for name, (threshold, build, held_out) in table.items()
        }
    return found


def _figures(score: Score) -> dict[str, Any]:
    plain = {key: value for key, value in asdict(score).items() if key != "delays"}
    return plain | {"recall": score.recall, "alarms_per_run": score.alarms_per_run, "median_delay": score.delay}


def _to_draw(pairs: Sequence[Pair]) -> list[Pair]:
    """One run of every part, task and kind, and whatever was judged wrongly or is unclear."""
    seen, chosen = set(), []
    for run, made in pairs:
        odd = outcome(truth_of(made), detector(made)) not in ("hit", "quiet")
        if odd or (run.part, run.task, run.kind) not in seen:
            chosen.append((run, made))
        seen.add((run.part, run.task, run.kind))
    return chosen
