"""The work of `graphllmrec grok-lab`: train the runs, score the rules, write files and pages."""

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
from graphllmrec.grokking.lab.fusion import (
    FIRST_SEED,
    WORLDS,
    NoEventRun,
    compare_variants,
    train_no_event,
    train_variants,
)
from graphllmrec.grokking.lab.protocol import Score, ScoredRun, compare
from graphllmrec.grokking.lab.trajectory import read_trajectories, write_trajectories
from graphllmrec.grokking.lab.truth import levels
from graphllmrec.io import write_text
from graphllmrec.progress import RunLogger
from graphllmrec.report.lab_report import FusionRun, write_fusion, write_lab
from graphllmrec.report.plots.lab import LevelRun

Scope = Literal["quick", "all"]


def run_lab(out: Path, scope: Scope, logger: RunLogger) -> dict[str, Any]:
    """Train the runs of a scope into the folder `out`; runs it holds already are reused. Returns the outcome.

    "quick": one run per task and kind of "build"; "all": all parts of the collection, and a score for every rule.
    Writes trajectories-SCOPE-PART.parquet, lab.json and index.html. Raises CheckpointError when `out` holds other
    runs, GraphLLMRecError for "all" without ruptures.
    """
    if scope == "all":
        try:
            import ruptures  # noqa: F401  # before the training
        except ImportError:
            raise GraphLLMRecError('scoring every rule needs ruptures: pip install "graphllmrec[lab]"') from None
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose another --out")
    started = time.monotonic()
    parts: dict[str, list[ScoredRun]] = {}
    for part in PARTS if scope == "all" else PARTS[:1]:
        path = out / f"trajectories-{scope}-{part.replace(' ', '-')}.parquet"
        parts[part] = _train_runs(path, _select(part, scope), logger)
    table = None
    if scope == "all":
        logger.begin("score the rules")
        table = compare(parts)
    runs = [run for part in parts.values() for run in part]
    found = _to_json(runs, table) | {"seconds": round(time.monotonic() - started, 1)}
    write_text(out / "lab.json", json.dumps(found, indent=1) + "\n")
    write_lab(out / "index.html", found, [_drawn(run) for run in _select_drawn(runs)])
    return found


def run_fusion(out: Path, logger: RunLogger, num_seeds: int = 10) -> dict[str, Any]:
    """Run the experiment of lab/fusion.py on `num_seeds` seeds; writes fusion.json and fusion.html into `out`."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose another --out")
    started, seeds = time.monotonic(), range(FIRST_SEED, FIRST_SEED + num_seeds)
    worlds = WORLDS[1:]
    logger.begin("train two branches", num_seeds * (1 + len(worlds)))
    runs, others = [], {str(world): list[NoEventRun]() for world in worlds}
    for seed in seeds:
        runs.append(train_variants(seed))
        logger.advance(1)
        for world in worlds:
            others[world].append(train_no_event(seed, world))
            logger.advance(1)
    table = compare_variants(seeds, runs)
    events = [sum(e.kind == "generalising" for e in run["gate"].events) for run in runs]
    found: dict[str, Any] = {"table": table, "events per seed": events}
    found["without an event"] = {  # with the keys of benchmarks/results/grok-lab/fusion.json
        world: [{"told": run.detected, "identical": run.identical} for run in others[world]] for world in others
    }
    found["seconds"] = round(time.monotonic() - started, 1)
    write_text(out / "fusion.json", json.dumps(found, indent=1) + "\n")
    drawn = {name: FusionRun(run.step, run.test, run.gate, run.branches, run.events) for name, run in runs[0].items()}
    write_fusion(out / "fusion.html", found, seeds[0], drawn)
    return found


def _select(part: Part, scope: Scope) -> list[Run]:
    """The runs of a part to train: all, or the first of every task and kind."""
    runs = collection(part)
    if scope == "all":
        return runs
    first = {(run.task, run.kind): run for run in reversed(runs)}
    return [run for run in runs if first[run.task, run.kind] is run]


def _train_runs(path: Path, runs: Sequence[Run], logger: RunLogger) -> list[ScoredRun]:
    """Train and score the runs. Runs in the file are not trained again; the file is written every ten runs."""
    done = read_trajectories(path) if path.is_file() else []
    if [(run.task, run.seed) for run in runs][: len(done)] != [(run.task, run.seed) for run in done]:
        raise CheckpointError(f"{path} holds other runs; choose another --out")
    logger.begin(f"train {path.stem.removeprefix('trajectories-')}", len(runs))
    logger.advance(len(done))
    for run in runs[len(done) :]:
        done.append(run.train())
        logger.advance(1)
        if len(done) % 10 == 0 or len(done) == len(runs):
            write_trajectories(path, done)
    return [ScoredRun.of(run, trajectory) for run, trajectory in zip(runs, done, strict=True)]


def _to_json(runs: Sequence[ScoredRun], table: Any) -> dict[str, Any]:
    """The content of lab.json."""
    rows = [
        {"part": each.run.part, "kind": each.run.kind, "name": each.trajectory.name, "truth": asdict(each.truth)}
        | {"outcome": each.outcome, "events": [event.to_json() for event in each.observed.events]}
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
    plain = {key: value for key, value in asdict(score).items() if key not in ("delays", "leads")}
    plain |= {"recall": score.recall, "alarms_per_run": score.alarms_per_run}
    return plain | {"median_delay": score.delay, "median_lead": score.lead}


def _select_drawn(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """One run per part, task and kind, and all runs with a wrong or unclear outcome."""
    seen, chosen = set(), []
    for each in runs:
        kind = (each.run.part, each.run.task, each.run.kind)
        if each.outcome not in ("hit", "quiet") or kind not in seen:
            chosen.append(each)
        seen.add(kind)
    return chosen


def _drawn(scored: ScoredRun) -> LevelRun:
    """A run as the page shows it."""
    run, curves, truth = scored.run, scored.trajectory, scored.truth
    defined = [step for step in (truth.onset, truth.event) if step is not None and truth.label == "event"]
    return LevelRun(
        f"{run.task}: {run.kind}", f"{curves.name}. {scored.outcome.capitalize()}.", curves.name, curves.step.tolist(),
        levels(curves, "train"), levels(curves, "valid"), scored.observed.states, scored.observed.events, defined,
    )  # fmt: skip
