"""The results of a study, from the per-user values of its fits: means, intervals, paired tests, strata.

    value(u)      mean over the seeds of the metric of user u
    mean          mean of value(u) over users; `ci`: its 95 % interval over users
    by_seed       the mean over users of each seed; `std`: their standard deviation (how much the seed matters)
    a against b   paired tests on value_a(u) - value_b(u) (evaluation/compare.py)

p-values of one metric are Holm-corrected over *all* comparisons of the study, on all data sets; those within a stratum
over all comparisons in that stratum. Where the split follows the seed (user-ratio, cold-item), each seed has other test
users and targets: values are then averaged over the seeds that two models share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl

from graphllmrec.evaluation.compare import Comparison, Floats, compare_values, holm
from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.evaluation.metrics import mean_interval
from graphllmrec.study.config import Variant
from graphllmrec.study.folder import read_json
from graphllmrec.study.plan import FitJob, Plan
from graphllmrec.study.search import Source

STRATA = "item_degree"


@dataclass(frozen=True)
class Entry:
    """All fits of one variant on one data set, with the test values of those that are done."""

    source: Source
    variant: Variant
    jobs: list[FitJob]
    tests: dict[int, Evaluation]  # by seed
    _tables: dict[tuple[int, str], pl.DataFrame] = field(default_factory=dict)  # of strata, made once

    @cached_property
    def questions(self) -> dict[str, list[Evaluation]]:
        """Evaluations by users, targets and masked items (a fingerprint): one group, unless the split has a seed."""
        found: dict[str, list[Evaluation]] = {}
        for evaluation in self.tests.values():
            found.setdefault(evaluation.protocol["fingerprint"], []).append(evaluation)
        return found

    def values(
        self, metrics: Sequence[str], stratum: str | None = None, of: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """A row per user and a column per metric: means over the seeds of the questions `of` (default: all)."""
        tables = []
        for question in self.questions if of is None else of:
            parts = [self._rows(entry, stratum).select("user", *metrics) for entry in self.questions[question]]
            tables.append(_mean_by_user(parts))
        return _mean_by_user(tables)

    def _rows(self, evaluation: Evaluation, stratum: str | None) -> pl.DataFrame:
        if stratum is None:
            return evaluation.per_user
        key = (id(evaluation), stratum)
        if key not in self._tables:
            table = evaluation.within(STRATA, stratum)
            self._tables[key] = table.select("user", *self.variant.study.all_metrics)
        return self._tables[key]


def summarize(plan: Plan) -> dict[str, Any]:
    """The contents of study.json. Only keys named "seconds", "fit_seconds" and "tune_seconds" hold times."""
    study = plan.study
    entries = [_entry(plan, source, variant) for source in plan.sources for variant in plan.variants]
    comparisons = list(_comparisons(plan, entries))
    failed = [job for job in plan.jobs if job.state() != "done"]
    return {
        "title": study.title,
        "notes": study.notes,
        "metric": study.metric,
        "metrics": list(study.all_metrics),
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "trials": study.trials,
        "tune_seed": study.tune_seed,
        "tune_placebos": study.tune_placebos,
        "fits": len(plan.jobs),
        "failed": len(failed),
        "data": {source.name: _data(source, entries) for source in plan.sources},
        "entries": [_described(entry) for entry in entries],
        "comparisons": [
            {"data": name, **row.to_json(), "relative_ci": _relative_ci(row)} for name, row in comparisons
        ],
        "missing": [
            {"data": entry.source.name, "a": a, "b": b} for a, b, entry in _missing(plan, entries)
        ],
        "versions": {name: version(name) for name in ("graphllmrec", "torch")},
    }  # fmt: skip


def _entry(plan: Plan, source: Source, variant: Variant) -> Entry:
    jobs = [job for job in plan.jobs if job.source == source and job.variant.label == variant.label]
    tests = {job.seed: Evaluation.read(job.folder / "run") for job in jobs if job.state() == "done"}
    return Entry(source, variant, jobs, tests)


def _data(source: Source, entries: Sequence[Entry]) -> dict[str, Any]:
    protocols = [test.protocol for entry in entries if entry.source == source for test in entry.tests.values()]
    questions = sorted({protocol["fingerprint"] for protocol in protocols})
    protocol = (
        {key: value for key, value in protocols[0].items() if key not in ("model", "placebo")} if protocols else {}
    )
    return {"fingerprint": source.fingerprint, "protocol": protocol, "questions": questions}


def _described(entry: Entry) -> dict[str, Any]:
    """One entry as plain values."""
    variant, metrics = entry.variant, entry.variant.study.all_metrics
    search, settings = entry.jobs[0].search, entry.jobs[0].settings()
    trials = search.trials()
    found: dict[str, Any] = {
        "data": entry.source.name,
        "label": variant.label,
        "model": variant.model.label,
        "placebo": variant.placebo,
        "recipe": variant.recipe(0).model.name,
        "settings": settings or {},
        "trials": len(trials),
        "failed_trials": sum(trial.value is None for trial in trials),
        "tune_seconds": round(sum(trial.seconds for trial in trials), 2),
        "fits": [_fit_values(job) for job in entry.jobs],
    }
    if entry.tests:
        values = entry.values(metrics)
        found |= {
            "users": len(values),
            "test": {metric: _summary(values[metric].to_numpy(), entry, metric) for metric in metrics},
            "valid": {metric: _valid_mean(found["fits"], metric) for metric in metrics},
            "strata": {STRATA: {name: _stratum(entry, name) for name in _strata_with_targets(entry)}},
            "fit_seconds": float(np.mean([fit["fit_seconds"] for fit in found["fits"] if fit["state"] == "done"])),
        }
    return found


def _fit_values(job: FitJob) -> dict[str, Any]:
    """One fit as plain values: its metrics on both parts, or its error."""
    state, study = job.state(), job.variant.study
    if state != "done":
        return {"seed": job.seed, "state": state, "error": job.error() or "not run yet"}
    parts = {}
    for part in ("valid", "test"):
        overall = read_json(job.folder / "run" / f"metrics-{part}.json")["overall"]
        parts[part] = {name: overall[name] for name in overall if name in study.all_metrics or _describes_lists(name)}
    times = {key: value for key, value in job.record().items() if key in ("fit_seconds", "seconds")}
    return {"seed": job.seed, "state": state, **parts, **times}


def _describes_lists(name: str) -> bool:
    return name.split("@")[0] in ("coverage", "novelty", "gini")


def _summary(values: Floats, entry: Entry, metric: str) -> dict[str, Any]:
    by_seed = {str(seed): test.overall[metric] for seed, test in entry.tests.items()}
    std = float(np.std(list(by_seed.values()), ddof=1)) if len(by_seed) > 1 else None
    return {"mean": float(values.mean()), "ci": list(mean_interval(values)), "std": std, "by_seed": by_seed}


def _valid_mean(fits: Sequence[dict[str, Any]], metric: str) -> float:
    return float(np.mean([fit["valid"][metric] for fit in fits if fit["state"] == "done"]))


def _strata_with_targets(entry: Entry) -> list[str]:
    """Strata in which at least one user has a target."""
    tests = list(entry.tests.values())
    return [name for name in tests[0].strata[STRATA] if any(test.strata[STRATA][name]["users"] for test in tests)]


def _stratum(entry: Entry, stratum: str) -> dict[str, Any]:
    metrics = entry.variant.study.all_metrics
    table = entry.values(metrics, stratum)
    row: dict[str, Any] = {"users": len(table)}
    for metric in metrics:
        values = table[metric].to_numpy()
        row[metric] = {"mean": float(values.mean()), "ci": list(mean_interval(values))}
    return row


def _mean_by_user(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The mean of every column over the tables that hold a user; users ascending."""
    if len(tables) == 1:
        return tables[0].sort("user")
    users = [table["user"].to_numpy() for table in tables]
    if all(np.array_equal(users[0], each) for each in users):  # summed in the order of the tables, whatever the threads
        means = {
            name: np.mean([table[name].to_numpy() for table in tables], axis=0)
            for name in tables[0].columns
            if name != "user"
        }
        return pl.DataFrame({"user": users[0], **means}).sort("user")
    all_users = np.unique(np.concatenate(users))
    count = np.zeros(len(all_users))
    sums = {name: np.zeros(len(all_users)) for name in tables[0].columns if name != "user"}
    for table, each in zip(tables, users, strict=True):
        rows = np.searchsorted(all_users, each)
        count[rows] += 1
        for name, total in sums.items():
            total[rows] += table[name].to_numpy()
    return pl.DataFrame({"user": all_users, **{name: total / count for name, total in sums.items()}})


def _pairs(plan: Plan, entries: Sequence[Entry]) -> Iterator[tuple[str, str, Entry, Entry, list[str]]]:
    """Every comparison on every data set, with the questions that both models have."""
    for source in plan.sources:
        here = {entry.variant.label: entry for entry in entries if entry.source == source}
        for a, b in plan.study.pairs():
            shared = [question for question in here[a].questions if question in here[b].questions]
            yield a, b, here[a], here[b], shared


def _missing(plan: Plan, entries: Sequence[Entry]) -> Iterator[tuple[str, str, Entry]]:
    yield from ((a, b, left) for a, b, left, _, shared in _pairs(plan, entries) if not shared)


def _comparisons(plan: Plan, entries: Sequence[Entry]) -> Iterator[tuple[str, Comparison]]:
    """All comparisons, corrected: (data set, comparison); the headline metric's with strata."""
    pairs = [pair for pair in _pairs(plan, entries) if pair[-1]]
    for metric in plan.study.all_metrics:
        rows = [_compared(left, right, shared, metric) for _, _, left, right, shared in pairs]
        if metric == plan.study.metric:
            names = dict.fromkeys(name for _, _, left, *_ in pairs for name in _strata_with_targets(left))
            for name in names:
                found = {
                    n: _compared(*pair[2:], metric, name) for n, pair in enumerate(pairs) if _has_users(*pair[2:], name)
                }
                for place, row in zip(found, _holm(list(found.values())), strict=True):
                    rows[place].strata.setdefault(STRATA, {})[name] = row
        for (_, _, left, *_), row in zip(pairs, _holm(rows), strict=True):
            yield left.source.name, row


def _compared(left: Entry, right: Entry, shared: Sequence[str], metric: str, stratum: str | None = None) -> Comparison:
    a, b = (entry.values([metric], stratum, shared) for entry in (left, right))
    names = (left.variant.label, right.variant.label)
    return compare_values(a[metric].to_numpy(), b[metric].to_numpy(), metric=metric, names=names)


def _has_users(left: Entry, _: Entry, shared: Sequence[str], stratum: str) -> bool:
    evaluations = [evaluation for question in shared for evaluation in left.questions[question]]
    return any(evaluation.strata[STRATA][stratum]["users"] for evaluation in evaluations)


def _holm(rows: Sequence[Comparison]) -> list[Comparison]:
    corrected = holm([row.p for row in rows]) if rows else []
    return [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _relative_ci(row: Comparison) -> list[float] | None:
    """The interval of the difference in units of b's mean, which counts as known exactly."""
    return [end / row.mean_b for end in row.ci] if row.mean_b else None
