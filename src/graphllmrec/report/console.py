"""Evaluations and comparisons as tables for a terminal (rich), each with its protocol underneath."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphllmrec.evaluation.compare import Comparison
from graphllmrec.evaluation.evaluation import Evaluation, protocol_line, shared_protocol_line
from graphllmrec.evaluation.metrics import CATALOGUE_METRICS, METRICS
from graphllmrec.report.format import (
    STRATUM_TITLES,
    are_best,
    differs,
    interval,
    number,
    p_text,
    p_value,
    relative,
    short,
    significance,
)

SHORT_TITLES = {"item_degree": "clicks", "item_popularity": "items", "user_activity": "history"}


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """One evaluation: every metric at every k with its 95 % interval, then the strata at the largest k."""
    return Group(_overall(evaluation), "", _strata(evaluation), "", _protocol(evaluation))


def models_table(
    evaluations: Mapping[str, Evaluation], comparisons: Mapping[str, Comparison] | None = None, k: int = 20
) -> RenderableType:
    """Many evaluations of the same protocol, a line each; the best value of a column is bold. Fits 80 columns.

    Columns: recall and ndcg at k, ndcg by degree stratum, and with `comparisons` (from `compare_many`) the relative
    difference to the baseline with its Holm-corrected p.
    """
    first = next(iter(evaluations.values()))
    degrees = [name for name, row in first.strata["item_degree"].items() if row["users"]]
    values = {
        name: [entry.overall[f"recall@{k}"], entry.overall[f"ndcg@{k}"]]
        + [entry.strata["item_degree"][degree][f"ndcg@{k}"] for degree in degrees]
        for name, entry in evaluations.items()
    }
    best = dict(zip(values, zip(*map(are_best, zip(*values.values(), strict=True)), strict=True), strict=True))
    table = _table("", f"recall\n@{k}", f"ndcg\n@{k}", *(f"\n{degree}" for degree in degrees))
    if comparisons:
        metric, baseline = next((row.metric, row.b) for row in comparisons.values())
        table.add_column(f"{metric} vs\n{baseline}", justify="right", no_wrap=True)
    for name, row in values.items():
        cells: list[RenderableType] = [_number(value, top) for value, top in zip(row, best[name], strict=True)]
        if comparisons:
            cells.append(_versus(comparisons.get(name)))
        table.add_row(name, *cells)
    columns = f"columns {degrees[0]} to {degrees[-1]}" if len(degrees) > 1 else f"column {degrees[0]}"
    note = f"{columns}: ndcg@{k} of target items with that many training clicks"
    return Group(table, Text(note, style="dim"), Text(shared_protocol_line(evaluations), style="dim"))


def comparison_table(comparison: Comparison) -> RenderableType:
    """Two models side by side: overall and within every stratum, with interval and p of the difference."""
    table = _table("", "users", comparison.a, comparison.b, "difference", "95 % interval", "p", gap=1)
    table.add_row("all", *_comparison_cells(comparison), end_section=True)
    for kind, rows in comparison.strata.items():
        for place, (name, row) in enumerate(rows.items()):
            label = f"{SHORT_TITLES[kind]} {name}"
            table.add_row(label, *_comparison_cells(row), end_section=place == len(rows) - 1)
    title = Text(f"{comparison.metric}: {comparison.a} against {comparison.b}", style="bold")
    note = "interval: paired bootstrap over users; p: paired randomisation test, two-sided, each row by itself"
    return Group(title, table, Text(note, style="dim"))


def _overall(evaluation: Evaluation) -> Table:
    ks = evaluation.protocol["ks"]
    table = _table(evaluation.name, *(f"@{k}" for k in ks))
    one_target = evaluation.protocol["targets"] == evaluation.protocol["users"]
    twins = {"recall": "hr = recall", "mrr": "mrr = map"} if one_target else {}
    for metric in METRICS:
        if not (one_target and metric in ("hr", "map")):
            cells = []
            for k in ks:
                ends = interval(*evaluation.overall_ci[f"{metric}@{k}"]).replace("–", "-")
                mean = (number(evaluation.overall[f"{metric}@{k}"]), "bold")
                cells.append(Text.assemble(mean, (f"  {ends}" if ends else "", "dim")))
            table.add_row(twins.get(metric, metric), *cells)
    table.add_section()
    for metric in CATALOGUE_METRICS:
        table.add_row(metric, *(f"{evaluation.overall[f'{metric}@{k}']:.4f}" for k in ks))
    return table


def _strata(evaluation: Evaluation) -> Table:
    k = max(evaluation.protocol["ks"])
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr")]
    table = _table("", "users", *metrics)
    for kind, rows in evaluation.strata.items():
        table.add_row(Text(STRATUM_TITLES[kind], style="italic"))
        for name, row in rows.items():
            values = [f"{row[metric]:.4f}" if row["users"] else "-" for metric in metrics]
            table.add_row(f"  {name}", f"{row['users']:,.0f}", *values)
        table.add_section()
    return table


def _comparison_cells(row: Comparison) -> list[RenderableType]:
    difference = Text(f"{short(row.difference, '+')} {_relative(row):>7}", style=_style(row.difference, row.p))
    low, high = row.ci
    ends = f"{short(low, '+')} … {short(high, '+')}" if low < high else ""  # no user has a difference
    p = p_value(row.p) if differs(row.difference) else ""
    return [f"{row.users:,}", short(row.mean_a), short(row.mean_b), difference, ends, p]


def _versus(row: Comparison | None) -> RenderableType:
    if row is None:
        return Text("baseline", style="dim")
    p = row.p if row.p_holm is None else row.p_holm
    said = f"{_relative(row)} {p_text(p)}" if differs(row.difference) else _relative(row)
    return Text(said, style=_style(row.difference, p))


def _relative(row: Comparison) -> str:
    """Relative difference in a narrow column: "+9.5%", "-66.2%", "x18.6"."""
    text = relative(row.relative, row.difference)
    return text.replace(" %", "%").replace("−", "-").replace("×", "x")


def _style(difference: float, p: float) -> str:
    return {"good": "green", "bad": "red", "same": "dim"}[significance(difference, p)]


def _number(value: float, best: bool) -> Text:
    return Text(short(value), style="bold" if best else "")


def _protocol(evaluation: Evaluation) -> Text:
    return Text(protocol_line(evaluation.protocol), style="dim")


def _table(first: str, *others: str, gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")  # a long name takes two lines before a figure is cut
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
