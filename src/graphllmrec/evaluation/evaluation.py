"""Evaluate a model by full ranking: every item is ranked for every user, and per-user values are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from graphllmrec.data.split import Part, Split
from graphllmrec.data.tables import Histories, IdMap, Ints
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.metrics import (
    METRICS,
    catalogue_metrics,
    hit_matrix,
    mean_interval,
    parse_metric,
    user_metrics,
)
from graphllmrec.evaluation.rank import rank_targets, top_k
from graphllmrec.evaluation.stored import MetricsFile, check_tables
from graphllmrec.evaluation.strata import (
    DEGREES,
    ITEM_STRATA,
    POPULARITY,
    USER_STRATA,
    activity_strata,
    degree_strata,
    popularity_strata,
)
from graphllmrec.io import atomic_file, write_text
from graphllmrec.manifest import RunFiles, evaluation_files, read_run
from graphllmrec.protocol import Logger, Model, Queries
from graphllmrec.report.elements import Cell, Table
from graphllmrec.report.format import integer, interval, number
from graphllmrec.report.notebook import View, notebook_html
from graphllmrec.text.decoys import AUTO, Decoys

Rows = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Evaluation:
    """What a model achieved on one part of a split, with everything that strata, intervals and paired tests need."""

    protocol: dict[str, Any]  # how it was measured; `fingerprint` identifies users, targets and masked items
    overall: dict[str, float]  # {"ndcg@20": mean over users, …, "coverage@20": x, …}
    overall_ci: dict[str, tuple[float, float]]  # 95 % interval of every mean over users
    strata: (
        Rows  # {"item_degree": {"0": {"users": n, "ndcg@20": x, …}, …}, …}; a stratum without users has only "users": 0
    )
    per_user: (
        pl.DataFrame
    )  # user (row), user_id, history (its length), user_activity, n_targets, and a column per metric
    targets: (
        pl.DataFrame
    )  # user, item (rows), their ids, rank (1 = first, 0 = not in the list), item_degree, item_popularity
    lists: Ints  # (U, max(ks)) recommended item rows in the order of per_user; -1 where nothing was left
    run: str | None = None  # identity of the run folder that was evaluated; None: of a model in memory

    @property
    def name(self) -> str:
        """The model's name, with the branch where only one was ranked, and the placebo: "hybrid (shuffled text)"."""
        placebo = _placebo(self.protocol)
        said = [part for part in (self.protocol["branch"], f"{placebo} text" if placebo else None) if part]
        return f"{self.protocol['model']} ({', '.join(said)})" if said else str(self.protocol["model"])

    def __repr__(self) -> str:
        k = max(self.protocol["ks"])
        values = ", ".join(f"{name}@{k} {self.overall[f'{name}@{k}']:.4f}" for name in ("ndcg", "recall", "mrr"))
        return f"Evaluation({self.name}, {self.protocol['part']} part: {values}; {self.protocol['users']:,} users)"

    def _repr_html_(self) -> str:
        return notebook_html(_view(self))

    def within(self, kind: str, stratum: str) -> pl.DataFrame:
        """Per-user values of one stratum: `user`, `user_id` and a column per metric: `within("item_degree", "1-3")`.

        Raises EvaluationError for a kind of stratum that does not exist.
        """
        found = _within(self.per_user, self.targets, self.protocol["ks"], kind, stratum)
        if "user_id" in found.columns or "user_id" not in self.per_user.columns:
            return found
        ids = self.per_user.select("user", "user_id")
        return found.join(ids, on="user", how="left", maintain_order="left").select(
            "user", "user_id", pl.exclude("user", "user_id")
        )

    def with_ids(self, users: IdMap, items: IdMap) -> Evaluation:
        """With the ids of the data beside the row numbers: `user_id` in both tables, `item_id` in `targets`."""

        def named(table: pl.DataFrame, column: str, ids: IdMap) -> pl.DataFrame:
            found = ids.ids.gather(table[column]).alias(f"{column}_id")
            return table.with_columns(found).select(column, found.name, pl.exclude(column, found.name))

        targets = named(named(self.targets, "item", items), "user", users)
        return replace(self, per_user=named(self.per_user, "user", users), targets=targets)

    def to_json(self) -> dict[str, Any]:
        """Protocol, overall values, intervals and strata as plain JSON values."""
        intervals = {name: list(ends) for name, ends in self.overall_ci.items()}
        return {"protocol": self.protocol, "overall": self.overall, "overall_ci": intervals, "strata": self.strata}

    def write(self, folder: Path | str) -> None:
        """Write metrics-PART.json and, beside it, per-user-PART.parquet (with the lists) and targets-PART.parquet.

        PART is "test" or "valid", and "test-text" for one branch. In a run folder, their checksums go into its manifest
        last, which marks a complete set. Raises CheckpointError when the folder holds another run by now, or a process
        writes there.
        """
        folder = Path(folder)
        name = _file_part(self.protocol["part"], self.protocol["branch"])
        width = self.lists.shape[1]
        lists = pl.Series("recommended", self.lists, dtype=pl.Array(pl.Int64, width))
        with evaluation_files(folder, name, self.run):
            for stem, table in (("per-user", self.per_user.with_columns(lists)), ("targets", self.targets)):
                with atomic_file(folder / f"{stem}-{name}.parquet") as temporary:
                    table.write_parquet(temporary.absolute())
            write_text(folder / f"metrics-{name}.json", json.dumps(self.to_json(), indent=1) + "\n")

    @staticmethod
    def read(folder: Path | str, part: Part = "test", branch: str | None = None) -> Evaluation:
        """What `write` left in `folder`. Raises EvaluationError when there is none, CheckpointError when damaged."""
        name = _file_part(part, branch)
        return read_run(Path(folder), lambda files: read_evaluation(files, name))


def read_evaluation(files: RunFiles, name: str) -> Evaluation:
    """The evaluation `name` ("test", "valid-text") of a run folder, or of a folder with evaluations alone."""
    entries = None if files.manifest is None else files.manifest.evaluations.get(name)
    path = files.path(f"metrics-{name}.json")
    if not path.is_file() or (files.manifest is not None and entries is None):
        raise EvaluationError(f"{path}: no such evaluation; run `graphllmrec evaluate` on this run first")
    found = files.json(path.name, MetricsFile, entries)
    per_user, targets = (files.parquet(f"{stem}-{name}.parquet", entries) for stem in ("per-user", "targets"))
    check_tables(path, found, per_user, targets)
    return Evaluation(
        protocol=found.protocol.model_dump(),
        overall=found.overall,
        overall_ci={metric: (low, high) for metric, (low, high) in found.overall_ci.items()},
        strata=found.strata,
        per_user=per_user.drop("recommended"),
        targets=targets,
        lists=per_user["recommended"].to_numpy(),
        run=None if files.manifest is None else files.manifest.identity,
    )


def evaluate_model(
    model: Model,
    split: Split,
    part: Part = "test",
    *,
    ks: Sequence[int] = (10, 20),
    branch: str | None = None,
    placebo: str = "none",
    decoys: Decoys | None = None,
    batch_size: int | None = None,
    logger: Logger | None = None,
) -> Evaluation:
    """Rank all items for every user with a target in `part`; known items are masked (`split.known(part)`).

    `branch` evaluates one branch of a BranchModel alone; `placebo` (kept in the protocol) is the text placebo that the
    model was fitted on (text/placebo.py); `decoys` (text/decoys.py) are the last items of model and split. Raises
    EvaluationError when no user has a target, for scores that are NaN or not one per item, for an unknown branch, and
    for a cut-off below 1.
    """
    if not ks or min(ks) < 1:
        raise EvaluationError(f"cut-offs must be at least 1; got ks = {list(ks)}")
    ks = sorted(set(ks))
    users, targets = _users_with_targets(split, part)
    known = split.known(part)
    if logger is not None:
        logger.begin(f"evaluate {model.name} on {part}", len(users))
    queries = Queries.of(known, users)
    lists, _ = top_k(
        model, queries, queries.histories, ks[-1], branch=branch, batch_size=batch_size, logger=logger,
        num_items=split.num_items,
    )  # fmt: skip
    degree = split.item_degree()
    target_table = _target_table(users, targets, lists, degree)
    activity, activities = activity_strata(queries.histories.lengths)
    per_user = _metric_table(users, target_table, ks)
    per_user.insert_column(1, pl.Series("history", queries.histories.lengths))
    per_user.insert_column(2, activity.alias("user_activity"))
    metrics = {name: per_user[name].to_numpy() for name in per_user.columns if "@" in name}
    return Evaluation(
        protocol=_protocol(model, split, part, ks, branch, users, targets, known, decoys) | {"placebo": placebo},
        overall={name: float(value.mean()) for name, value in metrics.items()} | catalogue_metrics(lists, degree, ks),
        overall_ci={name: mean_interval(value) for name, value in metrics.items()},
        strata=_strata(per_user, target_table, ks, activities),
        per_user=per_user,
        targets=target_table,
        lists=lists,
    )


def validation_metric(model: Model, split: Split, metric: str = "ndcg@20", *, users: Ints | None = None) -> float:
    """Mean of one metric on the validation part, for early stopping and tuning.

    `users` (row numbers) restricts it to those of them that have a validation target. Raises EvaluationError when none
    has, for an unknown metric, and for NaN scores.
    """
    name, k = parse_metric(metric)
    found, targets = _users_with_targets(split, "valid", users)
    queries = Queries.of(split.known("valid"), found)
    lists, _ = top_k(model, queries, queries.histories, k, num_items=split.num_items)
    hits = hit_matrix(targets.row_of_entry, rank_targets(lists, targets), len(found), k)
    return float(METRICS[name](hits, targets.lengths).mean())


def _users_with_targets(split: Split, part: Part, users: Ints | None = None) -> tuple[Ints, Histories]:
    """The users (U,) with at least one target, and their distinct targets (U rows)."""
    targets = split.targets(part)
    pairs = np.unique(targets.row_of_entry * split.num_items + targets.items)
    rows, items = np.divmod(pairs, split.num_items)
    counts = np.bincount(rows, minlength=split.num_users)
    distinct = Histories(np.concatenate([[0], np.cumsum(counts)]), items)
    found = np.flatnonzero(counts) if users is None else np.unique(users)[counts[np.unique(users)] > 0]
    if not len(found):
        raise EvaluationError(
            f"no user has a target in the {part} part of this {split.kind} split: nothing to evaluate"
        )
    return found, distinct.take(found)


def _target_table(users: Ints, targets: Histories, lists: Ints, degree: Ints) -> pl.DataFrame:
    """One row per target: user and item row, rank in the user's list, and the strata of the item."""
    columns = {"user": users[targets.row_of_entry], "item": targets.items, "rank": rank_targets(lists, targets)}
    return pl.DataFrame(columns).with_columns(
        degree_strata(degree).gather(targets.items).alias("item_degree"),
        popularity_strata(degree).gather(targets.items).alias("item_popularity"),
    )


def _metric_table(users: Ints, targets: pl.DataFrame, ks: Sequence[int]) -> pl.DataFrame:
    """user, n_targets and every metric at every k for `users` (U,), ascending, from their rows of the target table."""
    rows = np.searchsorted(users, targets["user"].to_numpy())
    num_targets = np.bincount(rows, minlength=len(users))
    hits = hit_matrix(rows, targets["rank"].to_numpy(), len(users), max(ks))
    return pl.DataFrame({"user": users, "n_targets": num_targets} | user_metrics(hits, num_targets, ks))


def _within(per_user: pl.DataFrame, targets: pl.DataFrame, ks: Sequence[int], kind: str, stratum: str) -> pl.DataFrame:
    if kind in ITEM_STRATA:
        chosen = targets.filter(pl.col(kind) == stratum)
        return _metric_table(np.unique(chosen["user"].to_numpy()), chosen, ks)
    if kind in USER_STRATA:
        return per_user.filter(pl.col(kind) == stratum).drop("history", kind)
    raise EvaluationError(f"unknown kind of stratum {kind!r}; known: {', '.join(ITEM_STRATA + USER_STRATA)}")


def _strata(per_user: pl.DataFrame, targets: pl.DataFrame, ks: Sequence[int], activities: Sequence[str]) -> Rows:
    labels = {"item_degree": DEGREES, "item_popularity": POPULARITY, "user_activity": activities}
    out: Rows = {}
    for kind, names in labels.items():
        out[kind] = {}
        for name in names:
            values = _within(per_user, targets, ks, kind, name)
            row: dict[str, float] = {"users": len(values)}
            if len(values):
                row |= values.drop("user", "n_targets").mean().row(0, named=True)
            out[kind][name] = row
    return out


def _protocol(
    model: Model, split: Split, part: Part, ks: Sequence[int], branch: str | None,
    users: Ints, targets: Histories, known: Histories, decoys: Decoys | None,
) -> dict[str, Any]:  # fmt: skip
    digest = hashlib.sha256(f"{part}/{split.num_items}".encode())
    for values in (users, targets.indptr, targets.items, known.indptr, known.items):
        digest.update(np.ascontiguousarray(values, dtype=np.int64).tobytes())
    if decoys is not None:
        digest.update(decoys.digest)
    both = part == "test" and split.valid_in_history and len(split.valid) > 0
    return {
        "model": model.name,
        "branch": branch,
        "split": split.kind,
        "split_settings": split.settings,
        "part": part,
        "ranking": "all items",
        "masked": "train and validation items" if both else "train items",
        "ks": list(ks),
        "users": len(users),
        "items": split.num_items,
        "decoys": 0 if decoys is None else len(decoys),
        "decoys_from": None if decoys is None else decoys.source,
        "targets": len(targets.items),
        "ties": "fixed pseudo-random item order",
        "fingerprint": digest.hexdigest()[:16],
    }


def protocol_line(protocol: dict[str, Any]) -> str:
    """The protocol in one line, to be printed with every figure."""
    placebo = _placebo(protocol)
    return (
        f"{protocol['split']} split, {protocol['part']} part · {protocol['users']:,} users, "
        f"{protocol['targets']:,} targets · all {protocol['items']:,} items ranked, "
        + decoys_told(protocol)
        + f"{protocol['masked']} masked"
        + _ties_told(protocol["split_settings"])
        + (f" · placebo: {placebo} instead of text" if placebo else "")
    )


def decoys_told(protocol: Mapping[str, Any]) -> str:
    """ "with 1,500 unclicked decoys, "; "" for an evaluation without any, and for those of earlier versions."""
    if not (number := protocol.get("decoys", 0)):
        return ""
    source = protocol["decoys_from"]
    return f"with {number:,} unclicked decoys{'' if source == AUTO else f' of {source}'}, "


def _ties_told(split_settings: dict[str, Any]) -> str:
    """What decided between targets at one time, where that concerns any user."""
    share = split_settings.get("tied_users", 0.0)
    if not share:
        return ""
    rule = "a hash of the ids" if split_settings["ties"] == "hash" else "the order of rows"
    return f" · newest two at one time for {share:.0%} of users, sorted by {rule}"


def shared_protocol_line(evaluations: Mapping[str, Evaluation]) -> str:
    """The line for several evaluations, by name, with one protocol; it names those on placebos."""
    protocols = {name: evaluation.protocol for name, evaluation in evaluations.items()}
    found = {name: _placebo(protocol) for name, protocol in protocols.items()}
    said = ", ".join(f"{name}: {placebo}" for name, placebo in found.items() if placebo)
    line = protocol_line(next(iter(protocols.values())) | {"placebo": "none"})
    return line + (f" · placebos instead of text: {said}" if said else "")


def _view(evaluation: Evaluation) -> View:
    """Every metric with its interval, and the strata of items by training clicks, at every cut-off."""
    ks = evaluation.protocol["ks"]
    rows: list[list[str | Cell]] = [
        [name, *(_value_cell(evaluation, f"{name}@{k}") for k in ks)]
        for name in dict.fromkeys(metric.split("@")[0] for metric in evaluation.overall)
    ]
    strata = {name: row for name, row in evaluation.strata["item_degree"].items() if row["users"]}
    metric = f"ndcg@{max(ks)}"
    by_clicks: list[list[str | Cell]] = [
        [name, _number(integer(row["users"])), _number(number(row[metric]))] for name, row in strata.items()
    ]
    tables = {
        "": Table(["", *(f"@{k}" for k in ks)], rows),
        "by training clicks of the target item": Table(["clicks", "users", metric], by_clicks),
    }
    return View(f"Evaluation of {evaluation.name}", tables=tables, notes=[f"{protocol_line(evaluation.protocol)}."])


def _value_cell(evaluation: Evaluation, metric: str) -> Cell:
    ends = evaluation.overall_ci.get(metric)
    return Cell(number(evaluation.overall[metric]), interval(*ends) if ends else "")


def _number(text: str) -> Cell:
    return Cell(text, kind="number")


def _placebo(protocol: dict[str, Any]) -> str | None:
    """Name of the text placebo; None for real text."""
    placebo = protocol.get("placebo", protocol.get("control", "none"))  # "control": in evaluations of version 0.1
    return None if placebo == "none" else str(placebo)


def _file_part(part: str, branch: str | None) -> str:
    return f"{part}-{branch}" if branch else part
