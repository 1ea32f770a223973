"""The pages of the grokking lab: rules and runs (index.html), and the fusion experiment (fusion.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphllmrec.grokking.detector import Event
from graphllmrec.report.elements import Cell, Figure, Table
from graphllmrec.report.format import number, p_value, percent, signed
from graphllmrec.report.plots.lab import STATES, Floats, LevelRun, levels_figure, steps_figure
from graphllmrec.report.plots.look import INK, MUTED, SERIES, css_colour
from graphllmrec.report.render import write_page

Json = Mapping[str, Any]
_FUSIONS = {
    "static, best on the way": SERIES[5],
    "gate": SERIES[4],
    "gate, grokking": SERIES[2],
    "gate, ratio": SERIES[0],
}  # those that are drawn
_WITH_EVENTS = "gate, grokking"


@dataclass(frozen=True)
class FusionRun:
    """One way to fuse two branches, on one seed."""

    step: Sequence[int]  # (n,)
    test: Floats  # (n,) NDCG of the fused scores on test pairs
    gate: Floats  # (n,) mean γ of items with clicks
    branches: Mapping[str, Floats]  # (n,) validation NDCG of "graph" and "text" alone
    events: Sequence[Event]


def write_lab(path: Path, found: Json, runs: Sequence[LevelRun]) -> None:
    """The page of the lab. `found`: the content of lab.json; `runs`: those to draw."""
    rules = found.get("rules", {})
    parts = [part for part in next(iter(rules.values()), {}) if part not in ("threshold", "build", "second build")]
    write_page(
        path,
        "lab.html.j2",
        title="Grokking lab",
        legend={state: css_colour(colour) for state, colour in STATES.items()},
        rules={part: _scores(rules, part) for part in parts},
        figures=[Figure(run.title, levels_figure(run), run.caption) for run in runs],
    )


def write_fusion(path: Path, found: Json, seed: int, runs: Mapping[str, FusionRun]) -> None:
    """The page of the fusion experiment. `found`: the content of fusion.json; `runs`: all ways to fuse on `seed`."""
    drawn = {name: runs[name] for name in _FUSIONS if name in runs}
    write_page(
        path,
        "fusion.html.j2",
        title="Two branches, one of which generalises late",
        seeds=found["table"][0]["seeds"],
        ways=_ways(found["table"]),
        worlds=found["without an event"],
        seed=seed,
        legend={name: css_colour(_FUSIONS[name]) for name in drawn},
        figures=_fusion_figures(drawn),
    )


def delay_text(delay: float | None) -> str:
    """A delay in distances from memorisation to the event: "+12 %"; "" without one."""
    return "" if delay is None else percent(delay, 0)


def _scores(rules: Json, part: str) -> Table:
    """Every rule on one part of the collection."""
    rows = []
    for name, rule in rules.items():
        score = rule[part]
        rows.append([
            name,
            f"{rule['threshold']:g}" if rule["threshold"] else "",
            f"{score['hits']} of {score['events']}",
            "" if score["recall"] is None else f"{score['recall']:.2f}",
            f"{score['false_alarms']} in {score['runs']}",
            "" if score["alarms_per_run"] is None else f"{score['alarms_per_run']:.3f}",
            delay_text(score["median_delay"]),
            delay_text(score["median_lead"]),
            "" if score["auroc"] is None else f"{score['auroc']:.2f}",
        ])  # fmt: skip
    return Table(
        ["rule", "threshold", "events hit", "recall", "false alarms", "per run", "median delay", "lead", "AUROC"], rows
    )


def _ways(table: Sequence[Json]) -> Table:
    rows = []
    for way in table:
        row: list[str | Cell] = [way["name"]]
        for what in ("area", "final"):
            values = way[what]
            compared = "difference" in values
            row += [number(values["mean"]), signed(values["difference"]) if compared else ""]
            row.append(Cell(p_value(values["p"]) if compared else "", kind="minor"))
        rows.append(row)
    return Table(["", "area", "grokking is ahead", "p", "end", "grokking is ahead", "p"], rows)


def _fusion_figures(runs: Mapping[str, FusionRun]) -> list[Figure]:
    events = [event for event in runs[_WITH_EVENTS].events if event.kind == "generalising"]
    step, branches = runs[_WITH_EVENTS].step, runs[_WITH_EVENTS].branches
    test, gate = "Test NDCG of the fused scores", "Weight of the text branch"
    fused = {name: run.test for name, run in runs.items()}
    gates = {name: run.gate for name, run in runs.items()}
    alone = "The branches alone"
    of_branches = {"graph": MUTED, "text": INK}
    captions = {
        test: "Line: the event is detected.",
        gate: "Mean γ of items with clicks.",
        alone: "Validation NDCG of the graph branch (grey) and the text branch (black, white on dark pages), "
        f"under “{_WITH_EVENTS}”.",
    }
    drawings = {
        test: steps_figure(step, fused, _FUSIONS, test, low=0.4, events=events),
        gate: steps_figure(step, gates, _FUSIONS, gate, events=events),
        alone: steps_figure(step, branches, of_branches, alone, events=events),
    }
    return [Figure(title, drawing, captions[title]) for title, drawing in drawings.items()]
