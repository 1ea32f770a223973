"""The run report: one HTML page about one or many evaluations, with significance, strata, gates, training curves.

The page is a single file without scripts, fonts or images from elsewhere: it can be mailed, archived and read offline,
on a phone, in light and in dark. It says once how its numbers were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

_STRATUM_FIGURES = {
    "item_degree": (
        "by training clicks of the item",
        "Left: items with few or no training clicks, where mostly text helps. Right: popular items.",
    ),
    "user_activity": ("by length of the user's history", "Left: users with short histories. Right: with long ones."),
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
    write_page(
        path,
        "run_report.html.j2",
        title=title,
        protocol=shared_protocol_line(evaluations),
        headline=_headline(report, best),
        overall=_overall(report),
        strata_figures=_strata_figures(report),
        strata=_strata(report),
        gate_figures=[*_gate_figures(report), *_gate_log_figures(report)],
        training_figures=[*_curve_figures(report), *_branch_figures(report)],
        notes=notes,
    )


def _headline(report: _Report, best: Sequence[str]) -> dict[str, Any]:
    """What the first sentences of the page say of the models that are best; [] where no model has any hit."""
    first = best[0] if best else report.entries[0].name
    evaluation, row = report.evaluations[first], report.comparisons.get(first)
    low, high = evaluation.overall_ci[report.metric]
    against = None
    if row is not None and len(best) == 1:
        against = (against_text(row.relative, row.difference, row.b), significance_text(_p(row)))
    return {
        "best": listed(best) if best else None,
        "verb": _verb(report, best),
        "is_baseline": list(best) == [report.baseline],
        "metric": report.metric,
        "value": evaluation.overall[report.metric],
        "low": low,
        "high": high,
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
        note = f"{caption} Bars: 95 % intervals. Second line below: number of users."
        figures.append(Figure(f"{report.metric} {title}", drawing, note))
    return figures


def _gate_figures(report: _Report) -> Iterator[Figure]:
    """γ by clicks for all models, and contexts, once for models that have the same ones."""
    gates = {entry.name: entry.gate for entry in report.entries if entry.gate is not None}
    if gates:
        caption = "Line: median item. Band: the middle half of the items. γ = 1: the text alone, γ = 0: the clicks."
        yield Figure("Gate by training clicks", gate_figure(gates, report.look), caption)
    left = {name: gate for name, gate in gates.items() if gate.contexts}
    while left:
        gate = next(iter(left.values()))
        names = [name for name, other in left.items() if other.shares_contexts(gate)]
        left = {name: other for name, other in left.items() if name not in names}
        text = " and ".join(names)
        caption = f"Mean membership in each context of the items with so many clicks, {text}."
        yield Figure("Contexts by training clicks", contexts_figure(gate, text), caption)


def _gate_log_figures(report: _Report) -> Iterator[Figure]:
    """The gate over training, by clicks and by context, of the models that logged it."""
    for entry in report.entries:
        last = [line["gate"] for line in gate_log(entry.curves)][-1:]
        for what, by_clicks in (("clicks", True), ("context", False)):
            groups = [name for gate in last for name in gate if name.startswith("clicks ") == by_clicks]
            if groups:
                title = f"Gate over training by {what}, {entry.name}"
                means = ", ".join(f"{name} {last[0][name]['mean']:.3f}" for name in groups)
                caption = f"Line: median item. Band: the middle half. Final means: {means}."
                yield Figure(title, gate_log_figure(entry.curves, groups, title), caption)


def _curve_figures(report: _Report) -> Iterator[Figure]:
    """Validation metric and loss by epoch; where models have several stages of training, a figure for each."""
    metric = report.metric
    captions = {
        metric: "On the validation part, all items ranked, training items masked. Ring: best epoch, the one kept.",
        "loss": "Relative to the first epoch: models and stages minimise different losses, so only the course can be "
        "compared.",
    }
    for key, caption in captions.items():
        what = "Loss by epoch" if key == "loss" else f"Validation {key} by epoch"
        for stage, curves in curves_by_stage({entry.name: entry.curves for entry in report.entries}, key).items():
            title = f"{what}, {stage}" if stage else what
            yield Figure(title, curves_figure(curves, key, report.look, title), caption)


def _branch_figures(report: _Report) -> Iterator[Figure]:
    """What single branches can do over training, of the models that logged it."""
    for entry in report.entries:
        rows = branch_log(entry.curves)
        if not rows:
            continue
        parts = {
            "valid": (
                "Branches on validation",
                f"A validation click of a sample of users, all items ranked. {_events_text(entry.curves)}",
            ),
            "train": ("Branches on training", "The last training click of the same users, which has been learned."),
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
