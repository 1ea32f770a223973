"""All that `grok-lab` does: make runs, judge the rules where both parts are there, write everything down."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from graphllmrec.errors import CheckpointError, GraphLLMRecError
from graphllmrec.grokking.lab.collection import PARTS, Part, Run, collection
from graphllmrec.grokking.lab.fusion import FIRST_SEED, WORLDS, Quiet, compare_courses, courses, quiet
from graphllmrec.grokking.lab.protocol import Judged, Score, compare
from graphllmrec.grokking.lab.trajectory import read_trajectories, write_trajectories
from graphllmrec.grokking.lab.truth import levels
from graphllmrec.io import write_text
from graphllmrec.progress import RunLogger
from graphllmrec.report.lab_report import FusionRun, write_fusion, write_lab
from graphllmrec.report.plots.lab import LevelRun

Scope = Literal["quick", "all"]


def run_lab(out: Path, scope: Scope, logger: RunLogger) -> dict[str, Any]:
    """Make the runs of a scope in the folder `out`; those that are there already are taken over. Returns the outcome.

    "quick": one run of every kind and task; "all": all parts of the collection, and every rule judged.
    Writes trajectories-SCOPE-PART.parquet, lab.json and index.html. Raises CheckpointError when `out` holds something
    else, GraphLLMRecError when rules are to be judged and ruptures is not installed.
    """
    if scope == "all":
        try:
            import ruptures  # noqa: F401  # before an hour of training
        except ImportError:
            raise GraphLLMRecError('judging every rule needs ruptures: pip install "graphllmrec[lab]"') from None
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose another --out")
    began = time.monotonic()
    made: dict[str, list[Judged]] = {}
    for part in PARTS if scope == "all" else PARTS[:1]:
        made[part] = _made(out / f"trajectories-{scope}-{part.replace(' ', '-')}.parquet", _chosen(part, scope), logger)
    table = None
    if scope == "all":
        logger.begin("judge the rules")
        table = compare(made)
    everything = [judged for part in made.values() for judged in part]
    found = _told(everything, table) | {"seconds": round(time.monotonic() - began, 1)}
    write_text(out / "lab.json", json.dumps(found, indent=1) + "\n")
    write_lab(out / "index.html", found, [_drawn(judged) for judged in _to_draw(everything)])
    return found


def run_fusion(out: Path, logger: RunLogger, num_seeds: int = 10) -> dict[str, Any]:
    """The experiment of grokking/lab/fusion.py on `num_seeds` seeds, in the folder `out`: fusion.json and fusion.html."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose another --out")
    began, seeds = time.monotonic(), range(FIRST_SEED, FIRST_SEED + num_seeds)
    worlds = WORLDS[1:]
    logger.begin("train two branches", num_seeds * (1 + len(worlds)))
    runs, others = [], {str(world): list[Quiet]() for world in worlds}
    for seed in seeds:
        runs.append(courses(seed))
        logger.advance(1)
        for world in worlds:
            others[world].append(quiet(seed, world))
            logger.advance(1)
    table = compare_courses(seeds, runs)
    events = [sum(e.kind == "generalising" for e in run["gate"].events) for run in runs]
    found: dict[str, Any] = {"table": table, "events per seed": events}
    found["without an event"] = {world: [asdict(each) for each in others[world]] for world in others}
    found["seconds"] = round(time.monotonic() - began, 1)
    write_text(out / "fusion.json", json.dumps(found, indent=1) + "\n")
    drawn = {name: FusionRun(run.step, run.test, run.gate, run.branches, run.events) for name, run in runs[0].items()}
    write_fusion(out / "fusion.html", found, seeds[0], drawn)
    return found


def _chosen(part: Part, scope: Scope) -> list[Run]:
    runs = collection(part)
    if scope == "all":
        return runs
    first = {(run.task, run.kind): run for run in reversed(runs)}
    return [run for run in runs if first[run.task, run.kind] is run]


def _made(path: Path, runs: Sequence[Run], logger: RunLogger) -> list[Judged]:
    """Every run, judged; what the file holds is not made again, and it is written every ten runs."""
    done = read_trajectories(path) if path.is_file() else []
    if [(run.task, run.seed) for run in runs][: len(done)] != [(run.task, run.seed) for run in done]:
        raise CheckpointError(f"{path} holds other runs; choose another --out")
    logger.begin(f"train {path.stem.removeprefix('trajectories-')}", len(runs))
    logger.advance(len(done))
    for run in runs[len(done) :]:
        done.append(run.make())
        logger.advance(1)
        if len(done) % 10 == 0 or len(done) == len(runs):
            write_trajectories(path, done)
    return [Judged.of(run, made) for run, made in zip(runs, done, strict=True)]


def _told(runs: Sequence[Judged], table: Any) -> dict[str, Any]:
    """The outcome as JSON values."""
    rows = [
        {"part": each.run.part, "kind": each.run.kind, "name": each.made.name, "truth": asdict(each.truth)}
        | {"outcome": each.outcome, "events": [event.to_json() for event in each.seen.events]}
        for each in runs
    ]
    found: dict[str, Any] = {"runs": rows, "outcomes": dict(Counter(row["outcome"] for row in rows))}
    if table is not None:
        found["rules"] = {
            name: {"threshold": rule.threshold} | {part: _figures(found) for part, found in rule.parts.items()}
            for name, rule in table.items()
        }
    return found


def _figures(score: Score) -> dict[str, Any]:
    plain = {key: value for key, value in asdict(score).items() if key != "delays"}
    return plain | {"recall": score.recall, "alarms_per_run": score.alarms_per_run, "median_delay": score.delay}


def _to_draw(runs: Sequence[Judged]) -> list[Judged]:
    """One run of every part, task and kind, and whatever was judged wrongly or is unclear."""
    seen, chosen = set(), []
    for each in runs:
        kind = (each.run.part, each.run.task, each.run.kind)
        if each.outcome not in ("hit", "quiet") or kind not in seen:
            chosen.append(each)
        seen.add(kind)
    return chosen


def _drawn(judged: Judged) -> LevelRun:
    """A run as the page shows it."""
    run, made, truth = judged.run, judged.made, judged.truth
    defined = [step for step in (truth.onset, truth.event) if step is not None and truth.label == "event"]
    return LevelRun(
        f"{run.task}: {run.kind}", f"{made.name}. {judged.outcome.capitalize()}.", made.name, made.step.tolist(),
        levels(made, "train"), levels(made, "valid"), judged.seen.states, judged.seen.events, defined,
    )  # fmt: skip
