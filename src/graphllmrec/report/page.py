"""One HTML page about one or many evaluations: headline, significance, strata, gates, training curves.

The page is a single file without scripts, fonts or images from elsewhere: it can be mailed, archived and read offline,
on a phone, in light and in dark. Every table and figure carries the protocol that its numbers were measured with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.compare import Comparison, compare_many
from graphllmrec.evaluation.evaluation import Evaluation, shared_protocol_line
from graphllmrec.evaluation.metrics import parse_metric
from graphllmrec.io import write_text
from graphllmrec.report.console import STRATUM_TITLES, p_text, relative_text
from graphllmrec.report.html import document, figure, table
from graphllmrec.report.plots import (
    BASELINE,
    SERIES,
    GateTable,
    Look,
    branch_course,
    branches_figure,
    contexts_figure,
    curves_figure,
    gate_course,
    gate_course_figure,
    gate_figure,
    late_events,
    looks,
    strata_figure,
)


@dataclass(frozen=True)
class ReportEntry:
    """One model on the page."""

    name: str
    evaluation: Evaluation
    curves: Sequence[Mapping[str, Any]] = field(
        default_factory=list
    )  # entries of log.jsonl; those with "epoch" are drawn
    gate: GateTable | None = None
    seconds: float | None = None  # time to fit


@dataclass(frozen=True)
class _Page:
    """What every section needs."""

    rows: Sequence[ReportEntry]
    evaluations: dict[str, Evaluation]
    comparisons: dict[str, Comparison]
    baseline: str | None
    metric: str
    k: int
    look: dict[str, Look]
    protocol: str


def write_report(
    path: Path | str,
    title: str,
    rows: Sequence[ReportEntry],
    *,
    notes: Sequence[str] = (),
    baseline: str | None = None,
    metric: str = "ndcg@20",
) -> None:
    """Write the page to `path`. Models are tested against the entry named `baseline` (default: the first of several).

    `metric` is what the verdict, the tests and the figures are about. Raises EvaluationError when there is no entry,
    when names repeat, when the baseline is none of them, and when users or targets of the entries differ.
    """
    names = [row.name for row in rows]
    if not rows or len(set(names)) < len(names):
        raise EvaluationError(f"a report needs entries with different names; got {', '.join(names) or 'none'}")
    evaluations = {row.name: row.evaluation for row in rows}
    baseline = baseline or (names[0] if len(names) > 1 else None)
    comparisons = compare_many(evaluations, baseline, metric) if baseline else {}
    best = max(names, key=lambda name: evaluations[name].overall[metric])
    page = _Page(
        rows, evaluations, comparisons, baseline, metric, parse_metric(metric)[1],
        looks(names, baseline, best), shared_protocol_line(evaluations),
    )  # fmt: skip
    sections = [
        f"<h1>{escape(title)}</h1>\n<p class='protocol'>{escape(page.protocol)}</p>",
        _verdict(page, best),
        _headline(page),
        _figures("Who is good where", _strata_figures(page)),
        _strata_table(page),
        _figures("What the gate does", _gate_figures(page)),
        _figures("Training", [*_curve_figures(page), *_branch_figures(page)]),
        _notes(notes),
    ]
    write_text(Path(path), document(title, sections))


def _verdict(page: _Page, best: str) -> str:
    """What the numbers mean, in plain sentences."""
    evaluation, k = page.evaluations[best], page.k
    low, high = evaluation.overall_ci[page.metric]
    found = evaluation.overall[f"hr@{k}"]
    verb = "ranks best:" if len(page.rows) > 1 else "reaches"
    first = (
        f"<strong>{escape(best)}</strong> {verb} {page.metric} {evaluation.overall[page.metric]:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}){_against(page, best)}."
    )
    second = (
        f"For {100 * found:.0f} of 100 users, something they really went on to choose is among the first {k} "
        f"of {evaluation.protocol['items']:,} items{_cold_clause(page)}."
    )
    return f"<p class='verdict'>{first}</p>\n<p class='verdict'>{second}</p>"


def _against(page: _Page, best: str) -> str:
    row = page.comparisons.get(best)
    if row is None:
        return ", and it is the baseline" if page.comparisons else ""
    p = row.p_holm if row.p_holm is not None else row.p
    sure = "a difference that chance does not explain" if p < 0.05 else "a difference that may be chance"
    return f", {relative_text(row)} against {escape(row.b)}, {sure} ({escape(p_text(p))}, Holm-corrected)"


def _cold_clause(page: _Page) -> str:
    """Who finds the rarest items, where that stratum has enough users to say so."""
    first = next(iter(page.evaluations.values()))
    for stratum, row in first.strata["item_degree"].items():
        if row["users"] >= 30:
            values = {n: e.strata["item_degree"][stratum][f"hr@{page.k}"] for n, e in page.evaluations.items()}
            best = max(values, key=values.__getitem__)
            clicks = "no training click" if stratum == "0" else f"{stratum} training clicks"
            who = f" (<strong>{escape(best)}</strong> does best there)" if len(values) > 1 else ""
            return f"; where that item had {clicks}, for {100 * values[best]:.0f} of 100{who}"
    return ""


def _headline(page: _Page) -> str:
    k, columns = page.k, list(dict.fromkeys([page.metric, *(f"{name}@{page.k}" for name in ("recall", "ndcg", "mrr"))]))
    best = {name: max(entry.overall[name] for entry in page.evaluations.values()) for name in columns}
    head = ["model", page.metric, "95 % interval", *columns[1:], "coverage", "novelty", "gini"]
    head += [f"vs {page.baseline}"] if page.comparisons else []
    head += ["fit, s"] if any(row.seconds is not None for row in page.rows) else []
    ends = [entry.overall_ci[page.metric] for entry in page.evaluations.values()]
    scale = (min(low for low, _ in ends), max(high for _, high in ends))
    body = []
    for row in page.rows:
        values = row.evaluation.overall
        cells = [_key(page, row.name) + escape(row.name)]
        numbers = [_number(values[name], values[name] == best[name] and len(page.rows) > 1) for name in columns]
        cells += [numbers[0], _interval(row, page, scale), *numbers[1:]]
        cells += [f"{values[f'coverage@{k}']:.2f}", f"{values[f'novelty@{k}']:.1f}", f"{values[f'gini@{k}']:.2f}"]
        cells += [_versus(page.comparisons.get(row.name))] if page.comparisons else []
        if "fit, s" in head:
            cells.append("" if row.seconds is None else f"{row.seconds:,.1f}")
        body.append(cells)
    note = (
        f"Interval: 95 %, over users. coverage: share of the catalogue that is in anybody's first {k}; "
        f"novelty: bits, higher = rarer items; gini: 0 = all items recommended equally often, 1 = always the same."
    )
    if page.comparisons:
        many = f"{len(page.comparisons)} comparison{'s' if len(page.comparisons) > 1 else ''}"
        note += (
            f" Bold: best of its column. Differences: relative, in {page.metric}; p by a paired randomisation test "
            f"over users, Holm-corrected for {many}."
        )
    return (
        f"<h2>Overall</h2>\n{table(head, body)}\n<p class='note'>{escape(note)} Protocol: {escape(page.protocol)}.</p>"
    )


def _strata_table(page: _Page) -> str:
    rows: list[list[str]] = []
    first = next(iter(page.evaluations.values()))
    for kind, strata in first.strata.items():
        rows.append([STRATUM_TITLES[kind]])
        for stratum, row in strata.items():
            if row["users"]:
                values = [entry.strata[kind][stratum][page.metric] for entry in page.evaluations.values()]
                cells = [_number(value, value == max(values) and len(values) > 1) for value in values]
                rows.append([escape(stratum), f"{row['users']:,.0f}", *cells])
    head = ["stratum", "users", *page.evaluations]
    note = f"{page.metric} in every stratum; rankings are of all items, strata only select targets or users."
    return (
        f"<h2>Strata</h2>\n{table(head, rows)}\n<p class='note'>{escape(note)} Protocol: {escape(page.protocol)}.</p>"
    )


def _strata_figures(page: _Page) -> list[str]:
    captions = {
        "item_degree": "Left: items that hardly anybody has clicked, where only text helps. Right: well-known items.",
        "user_activity": "Left: users of whom little is known. Right: users with long histories.",
    }
    titles = {"item_degree": "by training clicks of the item", "user_activity": "by length of the user's history"}
    return [
        figure(
            f"{page.metric} {titles[kind]}",
            strata_figure(page.evaluations, kind, page.metric, page.look),
            f"{caption} Bars: 95 % intervals. Second line below: number of users. Protocol: {page.protocol}.",
        )
        for kind, caption in captions.items()
    ]


def _gate_figures(page: _Page) -> list[str]:
    gates = {row.name: row.gate for row in page.rows if row.gate is not None}
    if not gates:
        return []
    caption = "Line: median item. Band: the middle half of the items. γ = 1: the text decides alone, γ = 0: the clicks."
    out = [figure("Gate by training clicks", gate_figure(gates, page.look), f"{caption} Protocol: {page.protocol}.")]
    for name, gate in gates.items():
        if gate.contexts:
            caption = f"How much the items of each degree belong to each context, {name}. Protocol: {page.protocol}."
            out.append(figure("Contexts by training clicks", contexts_figure(gate), caption))
    return out + _gate_courses(page)


def _gate_courses(page: _Page) -> list[str]:
    """The gate over training, by clicks and by context, of the models that logged it."""
    out = []
    for row in page.rows:
        course = gate_course(row.curves)
        if not course:
            continue
        clicks = [name for name in course[-1] if name.startswith("clicks ")]
        contexts = [name for name in course[-1] if name not in clicks]
        for what, groups in (("clicks", clicks), ("context", contexts)):
            caption = "Line: median item. Band: the middle half. Final means: " + ", ".join(
                f"{name} {course[-1][name]['mean']:.3f}" for name in groups
            )
            if groups:
                title = f"Gate over training by {what}, {row.name}"
                out.append(figure(title, gate_course_figure(row.curves, groups), f"{caption}."))
    return out


def _curve_figures(page: _Page) -> list[str]:
    captions = {
        page.metric: "On the validation part, all items ranked, training items masked. Ring: best epoch, the one kept.",
        "loss": "Relative to the first epoch: models optimise different losses, so only the course can be compared.",
    }
    out = []
    for key, caption in captions.items():
        curves = {row.name: row.curves for row in page.rows if any(key in e and "epoch" in e for e in row.curves)}
        if curves:
            title = f"{key} by epoch" if key == "loss" else f"Validation {key} by epoch"
            out.append(figure(title, curves_figure(curves, key, page.look), caption))
    return out


def _branch_figures(page: _Page) -> list[str]:
    """What single branches could do over training, of the models that logged it."""
    out = []
    for row in page.rows:
        course, told = branch_course(row.curves), _grokking_text(row.curves)
        if not course:
            continue
        parts = {"valid": f"A validation click of a sample of people, all items ranked. {told}"}
        parts["train"] = "Their last training click, which has been learned."
        if any(any(entry.get("share", {}).values()) for entry in course):
            parts["share"] = "What the branch gets of the gate, whatever the gate has learned."
        for part, caption in parts.items():
            what = {"valid": "Branches on validation", "train": "Branches on training", "share": "Gate moved"}[part]
            out.append(figure(f"{what}, {row.name}", branches_figure(row.curves, part), caption))
    return out


def _grokking_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """The events in words."""
    told = [f"{entry['branch']}: {entry['kind']}, told at epoch {entry['epoch']}" for entry in late_events(entries)]
    return f"{'; '.join(told)}." if told else "No branch generalised late, and nothing moved the gate."


def _figures(title: str, figures: Sequence[str]) -> str:
    return f"<h2>{escape(title)}</h2>\n<div class='figures'>{''.join(figures)}</div>" if figures else ""


def _interval(row: ReportEntry, page: _Page, scale: tuple[float, float]) -> str:
    """The interval in figures and drawn; rows share the scale, a dotted line marks the baseline's mean."""
    left, right = scale

    def place(value: float) -> float:
        return 6 + 108 * (value - left) / max(right - left, 1e-12)

    low, high = row.evaluation.overall_ci[page.metric]
    colour = _colour(page.look[row.name])
    mark = ""
    if page.baseline:
        x = place(page.evaluations[page.baseline].overall[page.metric])
        mark = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='16' stroke='var(--base)' stroke-dasharray='2 2'/>"
    return (
        f"<span class='ci'>{low:.4f}–{high:.4f}</span> <svg class='whisker' viewBox='0 0 120 16' aria-hidden='true'>"
        f"{mark}<line x1='{place(low):.1f}' x2='{place(high):.1f}' y1='8' y2='8' "
        f"stroke='{colour}' stroke-width='2'/>"
        f"<circle cx='{place(row.evaluation.overall[page.metric]):.1f}' cy='8' r='4' fill='{colour}'/></svg>"
    )


def _versus(row: Comparison | None) -> str:
    if row is None:
        return "<span class='same'>baseline</span>"
    p = row.p_holm if row.p_holm is not None else row.p
    kind = "same" if p >= 0.05 else "good" if row.difference > 0 else "bad"
    return f"<span class='{kind}'>{relative_text(row)}</span> <span class='ci'>{escape(p_text(p))}</span>"


def _number(value: float, best: bool) -> str:
    return f"<b>{value:.4f}</b>" if best else f"{value:.4f}"


def _key(page: _Page, name: str) -> str:
    if name == page.baseline:
        return "<span class='key base'></span>"
    return f"<span class='key' style='background:{_colour(page.look[name])}'></span>"


def _colour(look: Look) -> str:
    return "var(--base)" if look.colour == BASELINE else f"var(--s{SERIES.index(look.colour)})"


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>" if notes else ""
