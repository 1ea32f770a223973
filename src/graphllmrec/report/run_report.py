"""The run report: one HTML page about one or many evaluations, with significance, strata, gates, training curves.

The page is a single file without scripts, fonts or images from elsewhere: it can be mailed, archived and read offline,
on a phone, in light and in dark. It says once how its numbers were measured.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.compare import Comparison, compare_many
from graphllmrec.evaluation.evaluation import Evaluation, shared_protocol_line
from graphllmrec.evaluation.metrics import parse_metric
from graphllmrec.report.elements import Cell, Figure, Table, Whisker, difference_cell, number_cells
from graphllmrec.report.format import (
    STRATUM_TITLES,
    against_text,
    integer,
    interval,
    interval_text,
    leaders,
    listed,
    seconds,
    significance_text,
)
from graphllmrec.report.plots.evaluation import strata_figure
from graphllmrec.report.plots.look import Look, css_colour, looks
from graphllmrec.report.plots.training import (
    GateTable,
    Log,
    branch_log,
    branches_figure,
    contexts_figure,
    curves_by_stage,
    curves_figure,
    gate_figure,
    gate_log,
    gate_log_figure,
    gate_shares,
    late_events,
)
from graphllmrec.report.render import write_page

T = TypeVar("T")
_STRATUM_FIGURES = {
    "item_degree": (
        "by training clicks of the item",
        "Left: items with few or no training clicks, where mostly text helps. Right: popular items.",
    ),
    "user_activity": ("by length of the user's history", "Left: users with short histories. Right: with long ones."),
}
# Said once, above all figures of a section.
_STRATA_NOTE = "Vertical bars: 95 % intervals. Second line below an axis: number of users."
_GATE_NOTE = (
    "γ = 1: the text alone, γ = 0: the clicks. Line: median item. Band: the middle half of the items. "
    "Contexts: mean membership of the items with so many clicks."
)
_TRAINING_NOTES = {
    "metric": "Validation: all items ranked, training items masked; the ring is at the best epoch, the one kept.",
    "loss": "Loss: relative to the first epoch, as models and stages minimise different losses: only the course can be "
    "compared.",
    "branches": "Branches: one click of each user of a sample, all items ranked; on training the last click, which has "
    "been learned.",
}
_ENOUGH_USERS = 30  # of a stratum that the first lines of the page speak of


@dataclass(frozen=True)
class ReportEntry:
    """One model on the page."""

    name: str
    evaluation: Evaluation
    curves: Log = field(default_factory=list)  # entries of log.jsonl; those with "epoch" are drawn
    gate: GateTable | None = None
    seconds: float | None = None  # time to fit


@dataclass(frozen=True)
class _Report:
    """What every section needs."""

    entries: Sequence[ReportEntry]
    evaluations: Mapping[str, Evaluation]
    comparisons: Mapping[str, Comparison]
    baseline: str | None
    metric: str
    look: Mapping[str, Look]

    @property
    def k(self) -> int:
        return parse_metric(self.metric)[1]


def write_report(
    path: Path | str,
    title: str,
    entries: Sequence[ReportEntry],
    *,
    notes: Sequence[str] = (),
    baseline: str | None = None,
    metric: str = "ndcg@20",
) -> None:
    """Write the page to `path`. Models are tested against the entry named `baseline` (default: the first of several).

    `metric` is what the headline, the tests and the figures are about. Raises EvaluationError when there is no entry,
    when names repeat, when the baseline is none of them, and when users or targets of the entries differ.
    """
    names = [entry.name for entry in entries]
    if not entries or len(set(names)) < len(names):
        raise EvaluationError(f"a report needs entries with different names; got {', '.join(names) or 'none'}")
    evaluations = {entry.name: entry.evaluation for entry in entries}
    baseline = baseline or (names[0] if len(names) > 1 else None)
    comparisons = compare_many(evaluations, baseline, metric) if baseline else {}
    best = leaders({name: entry.overall[metric] for name, entry in evaluations.items()})
    thick = best[0] if len(best) == 1 else None
    report = _Report(entries, evaluations, comparisons, baseline, metric, looks(names, baseline, thick))
    training = {
        "metric": _curve_figures(report, metric),
        "loss": _curve_figures(report, "loss"),
        "branches": [*_branch_figures(report)],
    }
    write_page(
        path,
        "run_report.html.j2",
        title=title,
        protocol=shared_protocol_line(evaluations),
        headline=_headline(report, best),
        overall=_overall(report),
        strata_figures=_strata_figures(report),
        strata_note=_STRATA_NOTE,
        strata=_strata(report),
        gate_figures=[*_gate_figures(report), *_gate_log_figures(report)],
        gate_note=_GATE_NOTE,
        training_figures=[figure for part in training.values() for figure in part],
        training_note=" ".join(_TRAINING_NOTES[part] for part, figures in training.items() if figures),
        notes=notes,
    )


def _headline(report: _Report, best: Sequence[str]) -> dict[str, Any]:
    """What the first sentences of the page say of the models that are best; [] where no model has any hit."""
    first = best[0] if best else report.entries[0].name
    evaluation, row = report.evaluations[first], report.comparisons.get(first)
    against = None
    if row is not None and len(best) == 1:
        against = (against_text(row.relative, row.difference, row.b), significance_text(_p(row)))
    return {
        "best": listed(best) if best else None,
        "verb": _verb(report, best),
        "is_baseline": list(best) == [report.baseline],
        "metric": report.metric,
        "value": evaluation.overall[report.metric],
        "interval": interval_text(*evaluation.overall_ci[report.metric]),
        "against": against,
        "found": 100 * evaluation.overall[f"hr@{report.k}"],
        "k": report.k,
        "num_items": evaluation.protocol["items"],
        "rare": _rarest_items(report),
    }


def _verb(report: _Report, best: Sequence[str]) -> str:
    if len(report.entries) == 1:
        return "reaches"
    return "ranks best:" if len(best) == 1 else "rank best, all with"


def _rarest_items(report: _Report) -> dict[str, Any] | None:
    """The best models where the target items have the fewest clicks, in the first stratum with enough users."""
    first = report.evaluations[report.entries[0].name]
    for stratum, row in first.strata["item_degree"].items():
        if row["users"] >= _ENOUGH_USERS:
            found = {n: e.strata["item_degree"][stratum][f"hr@{report.k}"] for n, e in report.evaluations.items()}
            best = leaders(found)
            named = listed(best) if len(best) < len(found) else None
            return {"clicks": stratum, "best": named, "found": 100 * max(found.values())}
    return None


def _overall(report: _Report) -> Table:
    """A line per model: metrics with interval, what the lists are like, the test against the baseline, time."""
    k, metric, evaluations = report.k, report.metric, list(report.evaluations.values())
    names = list(dict.fromkeys([metric, *(f"{name}@{k}" for name in ("recall", "ndcg", "mrr"))]))
    cells = {name: number_cells([entry.overall[name] for entry in evaluations]) for name in names}
    columns: dict[str, Sequence[str | Cell]] = {
        "model": [Cell(name, key=css_colour(look.colour)) for name, look in report.look.items()],
        metric: cells[metric],
        "95 % interval": [_interval(report, entry) for entry in report.entries],
        **{name: cells[name] for name in names[1:]},
        "coverage": [f"{entry.overall[f'coverage@{k}']:.2f}" for entry in evaluations],
        "novelty": [f"{entry.overall[f'novelty@{k}']:.1f}" for entry in evaluations],
        "gini": [f"{entry.overall[f'gini@{k}']:.2f}" for entry in evaluations],
    }
    if report.comparisons:
        columns[f"vs {report.baseline}"] = [_against(report.comparisons.get(name)) for name in report.evaluations]
    if any(entry.seconds is not None for entry in report.entries):
        columns["fit, s"] = [seconds(entry.seconds) for entry in report.entries]
    return Table(list(columns), list(zip(*columns.values(), strict=True)), _overall_note(report))


def _overall_note(report: _Report) -> str:
    note = (
        f"Interval: 95 %, over users. coverage: share of the catalogue that is among the first {report.k} of at least "
        "one user; novelty: bits, higher = rarer items; gini: 0 = all items recommended equally often, 1 = always the "
        "same."
    )
    if report.comparisons:
        many = f"{len(report.comparisons)} comparison{'s' if len(report.comparisons) > 1 else ''}"
        note += (
            f" Bold: best of its column. Differences: relative, in {report.metric}; p by a paired randomisation test "
            f"over users, Holm-corrected for {many}."
        )
    return note


def _interval(report: _Report, entry: ReportEntry) -> Cell:
    """The interval as numbers and drawn; rows share the scale, a dotted line marks the baseline's mean."""
    metric, intervals = report.metric, [each.overall_ci[report.metric] for each in report.evaluations.values()]
    left = min(low for low, _ in intervals)
    width = max(max(high for _, high in intervals) - left, 1e-12)

    def place(value: float) -> float:
        return (value - left) / width

    low, high = entry.evaluation.overall_ci[metric]
    reference = place(report.evaluations[report.baseline].overall[metric]) if report.baseline else None
    mean, colour = place(entry.evaluation.overall[metric]), css_colour(report.look[entry.name].colour)
    whisker = Whisker(place(low), mean, place(high), reference, colour)
    return Cell(interval(low, high), kind="minor", whisker=whisker)


def _against(row: Comparison | None) -> Cell:
    return Cell("baseline", kind="same") if row is None else difference_cell(row.relative, row.difference, _p(row))


def _p(row: Comparison) -> float:
    return row.p if row.p_holm is None else row.p_holm


def _strata(report: _Report) -> Table:
    """The metric in every stratum that has users."""
    rows: list[str | list[str | Cell]] = []
    first = report.evaluations[report.entries[0].name]
    for kind, strata in first.strata.items():
        rows.append(STRATUM_TITLES[kind])
        for stratum, row in strata.items():
            if row["users"]:
                values = [entry.strata[kind][stratum][report.metric] for entry in report.evaluations.values()]
                rows.append([stratum, integer(row["users"]), *number_cells(values)])
    note = f"{report.metric} in every stratum; rankings are of all items, strata only select targets or users."
    return Table(["stratum", "users", *report.evaluations], rows, note)


def _strata_figures(report: _Report) -> list[Figure]:
    figures = []
    for kind, (title, caption) in _STRATUM_FIGURES.items():
        drawing = strata_figure(report.evaluations, kind, report.metric, report.look)
        figures.append(Figure(f"{report.metric} {title}", drawing, caption))
    return figures


def _together(values: Mapping[str, T], same: Callable[[T, T], bool]) -> Iterator[tuple[str, T]]:
    """Each different value once, with the names of all models that have it: "hybrid and hybrid-static"."""
    left = dict(values)
    while left:
        first = next(iter(left.values()))
        names = [name for name, other in left.items() if same(first, other)]
        left = {name: other for name, other in left.items() if name not in names}
        yield listed(names), first


def _gate_figures(report: _Report) -> Iterator[Figure]:
    """γ by clicks for all models, and contexts, once for models that have the same ones."""
    gates = {entry.name: entry.gate for entry in report.entries if entry.gate is not None}
    if gates:
        yield Figure("Gate by training clicks", gate_figure(gates, report.look))
    with_contexts = {name: gate for name, gate in gates.items() if gate.contexts}
    for names, gate in _together(with_contexts, GateTable.shares_contexts):
        yield Figure(f"Contexts by training clicks, {names}", contexts_figure(gate, names))


def _gate_log_figures(report: _Report) -> Iterator[Figure]:
    """The gate over training, by clicks and by context, of the models that logged it; once for the same gate."""
    logs = {entry.name: gate_log(entry.curves) for entry in report.entries}
    for names, log in _together({name: log for name, log in logs.items() if log}, operator.eq):
        last = log[-1]["gate"]
        for what, by_clicks in (("clicks", True), ("context", False)):
            groups = [name for name in last if name.startswith("clicks ") == by_clicks]
            if groups:
                title = f"Gate over training by {what}, {names}"
                means = ", ".join(f"{name} {last[name]['mean']:.3f}" for name in groups)
                yield Figure(title, gate_log_figure(log, groups, title), f"Final means: {means}.")


def _curve_figures(report: _Report, key: str) -> list[Figure]:
    """A validation metric or the loss by epoch; where models have several stages of training, a figure for each."""
    what = "Loss by epoch" if key == "loss" else f"Validation {key} by epoch"
    figures = []
    for stage, curves in curves_by_stage({entry.name: entry.curves for entry in report.entries}, key).items():
        title = f"{what}, {stage}" if stage else what
        figures.append(Figure(title, curves_figure(curves, key, report.look, title)))
    return figures


def _branch_figures(report: _Report) -> Iterator[Figure]:
    """What single branches can do over training, of the models that logged it."""
    for entry in report.entries:
        rows = branch_log(entry.curves)
        if not rows:
            continue
        parts = {
            "valid": ("Branches on validation", _events_text(entry.curves)),
            "train": ("Branches on training", ""),
        }
        if any(any(gate_shares(row).values()) for row in rows):
            parts["share"] = ("Gate share handed over", "Share of the gate that the schedule hands to a branch.")
        for part, (what, caption) in parts.items():
            title = f"{what}, {entry.name}"
            yield Figure(title, branches_figure(entry.curves, part, title), caption)


def _events_text(entries: Log) -> str:
    events = late_events(entries)
    found = [f"{event['branch']}: {event['kind']}, detected at epoch {event['epoch']}" for event in events]
    return f"{'; '.join(found)}." if found else "No branch generalised late, and the gate was not shifted."
