"""`graphllmrec evaluate`, `compare`, `report` and `stats`: metrics of runs, statistics of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphllmrec.cli.common import Json, Run, print_json, say
from graphllmrec.terminal import command

if TYPE_CHECKING:
    from graphllmrec.evaluation.compare import Comparison

Runs = Annotated[list[Path], typer.Argument(help="Run folders made by `graphllmrec fit`.", show_default=False)]
Metric = Annotated[str, typer.Option("--metric", help="A metric per user, e.g. ndcg@20 or hr@10.")]


def evaluate(
    run: Run,
    split: Annotated[
        Literal["test", "valid"], typer.Option("--split", help="The part whose items are to be found.")
    ] = "test",
    branch: Annotated[
        str | None, typer.Option("--branch", help="Rank by one branch alone: graph or text.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank all items for every user with a target, print the metrics and write them into the run folder."""
    from rich.console import Console

    from graphllmrec.progress import RunLogger
    from graphllmrec.recommender import Recommender
    from graphllmrec.report.console import evaluation_table
    from graphllmrec.report.format import interval_text, number

    recommender = Recommender.load(run)
    with RunLogger() as logger:
        evaluation = recommender.evaluate(split, branch=branch, logger=logger)
    evaluation.write(run)
    if as_json:
        print_json(evaluation.to_json())
        return
    Console().print(evaluation_table(evaluation))
    metric = recommender.recipe.evaluate.metric
    between = interval_text(*evaluation.overall_ci[metric])
    say(f"{evaluation.name} reaches {split} {metric} {number(evaluation.overall[metric])}{between}; "
        f"kept in {run}. Next: {command('compare', 'OTHER_RUN', run)}", "bold")  # fmt: skip


def compare(runs: Runs, metric: Metric = "ndcg@20", as_json: Json = False) -> None:
    """Paired tests of runs against the first one, on the same test users; p-values are Holm-corrected."""
    if len(runs) < 2:
        raise typer.BadParameter("give at least two runs; the others are compared with the first one")
    from rich.console import Console

    from graphllmrec.evaluation.compare import compare_many
    from graphllmrec.evaluation.metrics import parse_metric
    from graphllmrec.progress import RunLogger
    from graphllmrec.report.console import comparison_table, models_table
    from graphllmrec.report.runs import load_evaluations, name_runs

    with RunLogger() as logger:
        evaluations = load_evaluations(name_runs(runs), logger)
    baseline = next(iter(evaluations))
    found = compare_many(evaluations, baseline, metric, strata=True)
    if as_json:
        rows = {name: comparison.to_json() for name, comparison in found.items()}
        print_json({"metric": metric, "baseline": baseline, "comparisons": rows})
        return
    tables = [comparison_table(row) for row in found.values()] if len(found) == 1 else []
    Console().print(*tables or [models_table(evaluations, found, parse_metric(metric)[1])])
    say("\n".join(_verdict(row) for row in found.values()), "bold")


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    metric: Metric = "ndcg@20",
    as_json: Json = False,
) -> None:
    """One self-contained HTML page about one or more runs: metrics, strata, gates, training curves."""
    from graphllmrec.progress import RunLogger
    from graphllmrec.report.format import leaders, listed
    from graphllmrec.report.runs import name_runs, report_runs

    with RunLogger() as logger:
        evaluations = report_runs(name_runs(runs), out, logger, metric=metric)
    values = {name: evaluation.overall[metric] for name, evaluation in evaluations.items()}
    if as_json:
        print_json({"report": str(out), "metric": metric, "values": values})
        return
    best = leaders(values)
    first = f"{listed(best)} first with {metric} {values[best[0]]:.4f}" if best else f"{metric} is 0 for every run"
    say(f"Wrote {out} about {len(runs)} run(s); {first}.", "bold")


def stats(
    data: Annotated[Path, typer.Argument(help="A data folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Statistics of a data set: sizes, density, text, order, the role of every item column, and the default split."""
    from rich.console import Console

    from graphllmrec.data.read import load_data
    from graphllmrec.data.split import make_split
    from graphllmrec.data.stats import columns_table, statistics, statistics_table
    from graphllmrec.text.language import text_figures, text_lines

    dataset = load_data(data)
    split = make_split(dataset)
    text = text_figures(dataset.items)
    if as_json:
        print_json(statistics(dataset, split) | {"text": text})
        return
    Console().print(statistics_table(dataset, split, text_lines(text)))
    if len(dataset.items.table.columns) > 1:
        Console().print(columns_table(dataset))
    say(f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items, {len(dataset.interactions):,} "
        f"interactions. Next: {command('fit', 'ease', '--data', data, '--out', 'runs/ease')}", "bold")  # fmt: skip


def _verdict(row: Comparison) -> str:
    from graphllmrec.report.format import differs, number, p_text

    if not differs(row.difference):
        return f"{row.a} and {row.b} have the same {row.metric}, {number(row.mean_a)}."
    p = row.p if row.p_holm is None else row.p_holm
    if p >= 0.05:
        return f"{row.a} and {row.b} do not differ significantly in {row.metric} ({row.difference:+.4f}, {p_text(p)})."
    word = "better" if row.difference > 0 else "worse"
    return f"{row.a} is {word} than {row.b}: {row.metric} {row.difference:+.4f} ({p_text(p)})."
