"""Run folders side by side: their test evaluations, and one HTML page about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphllmrec.errors import CheckpointError, EvaluationError
from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.models.registry import build
from graphllmrec.progress import RunLogger, open_logger
from graphllmrec.protocol import GatedModel
from graphllmrec.recommender import Recommender
from graphllmrec.report.plots.training import GateTable
from graphllmrec.report.run_report import ReportEntry, write_report
from graphllmrec.run_folder import load_about, load_log


def save_report(
    runs: Iterable[Path | str], out: Path | str, *, metric: str = "ndcg@20", baseline: str | None = None
) -> None:
    """Write one HTML page about run folders of the same data to `out`: metrics, strata, gates, training curves.

    `baseline`: the folder name of the run that others are tested against (default: the first). Runs that have no test
    evaluation are evaluated, and keep it. Raises CheckpointError for a run that cannot be read, EvaluationError when
    the runs cannot be compared.
    """
    with open_logger(None) as logger:
        report_runs(name_runs([Path(run) for run in runs]), Path(out), logger, metric=metric, baseline=baseline)


def name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the name of their folder, by their whole path where that is not unique.

    Raises CheckpointError when a run is given twice.
    """
    folders = [run.name or str(run) for run in runs]
    named = {name if folders.count(name) == 1 else str(run): run for name, run in zip(folders, runs, strict=True)}
    if len(named) < len(runs):
        raise CheckpointError(f"a run is given twice: {', '.join(map(str, runs))}")
    return named


def load_evaluations(runs: Mapping[str, Path], logger: RunLogger) -> dict[str, Evaluation]:
    """The test evaluation of every run; made now, and kept in the run folder, where there is none."""
    found = {}
    for name, path in runs.items():
        try:
            found[name] = Evaluation.read(path)
        except EvaluationError:  # there is none; a damaged one is a CheckpointError
            found[name] = Recommender.load(path).evaluate("test", logger=logger)
            found[name].write(path)
    return found


def report_runs(
    runs: Mapping[str, Path],
    out: Path,
    logger: RunLogger,
    *,
    metric: str = "ndcg@20",
    baseline: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Write the HTML report about finished runs of the same data to `out`; returns their test evaluations.

    `notes`: sentences that a reader of the page must know.

    Raises CheckpointError for a run that cannot be read, EvaluationError when the runs cannot be compared.
    """
    evaluations = load_evaluations(runs, logger)
    logger.begin("write report", len(runs))
    entries, sources, said = [], [], list(notes)
    for name, path in runs.items():
        about, data = load_about(path)
        sources.append(data.name)
        log = load_log(path)
        entries.append(ReportEntry(name, evaluations[name], log, _gate(about.model, path), about.seconds))
        said.extend(f"{name}: {note}" for note in _gate_notes(log))
        logger.advance()
    what = f"{len(runs)} recommenders" if len(runs) > 1 else next(iter(runs))
    title = f"{what} on {' and '.join(dict.fromkeys(sources))}"
    write_report(out, title, entries, notes=said, baseline=baseline, metric=metric)
    return evaluations


def _gate_notes(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a large catalogue left out of the fit of the gate, in a sentence; the last fit counts."""
    for entry in reversed(log):
        if entry.get("event") == "gate-users":
            users, of, columns, items = (entry[key] for key in ("users", "of", "columns", "items"))
            said = f"the gate was fitted on {users:,} of {of:,} validation users"
            if columns < items:
                return [f"{said}, with {columns:,} of {items:,} items each, a sample of which stands for the rest."]
            if users < of:
                return [f"{said}."]
            break
    return []


def _gate(model_name: str, path: Path) -> GateTable | None:
    """The gate of every item, for models that have one."""
    if not isinstance(build(model_name), GatedModel):
        return None
    recommender = Recommender.load(path)
    assert isinstance(recommender.model, GatedModel)
    gamma, contexts = recommender.model.gate_values()
    members = {name: values.numpy() for name, values in contexts.items()}
    return GateTable(recommender.split.item_degree(), gamma.numpy(), members)
