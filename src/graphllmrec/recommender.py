"""The front door: fit, evaluate, recommend, similar, explain, add_items, save, load. External ids in and out.

from graphllmrec import Recommender
recommender = Recommender.from_recipe("ease").fit("data/amazon-scientific")
recommender.recommend(users=["A3L1RF2"], k=10)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from graphllmrec import run
from graphllmrec.data.read import load_data
from graphllmrec.data.split import Part, Split, make_split
from graphllmrec.data.tables import Dataset, Histories, Interactions, Items
from graphllmrec.errors import CheckpointError, DataError, GraphLLMRecError, Interrupted, UnknownIdError
from graphllmrec.evaluate import Evaluation, evaluate_model, top_k
from graphllmrec.explain import explain_item, similarities
from graphllmrec.files import discard
from graphllmrec.journal import RunJournal
from graphllmrec.models import build
from graphllmrec.models.base import Model, Queries, Task, TextVectors
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.results import Reason, Recommendation
from graphllmrec.text.encoder import encode_items
from graphllmrec.train.checkpoint import EVERY, Checkpoints


class Recommender:
    """A recipe, and after `fit` or `load` a fitted model with its catalogue and users."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = self._asked = recipe  # once fitted, `recipe` is what was asked as it applies to the data
        self._fitted: tuple[Model, Dataset, Split] | None = None
        self._everything: Histories | None = None

    @classmethod
    def from_recipe(cls, source: str | Path | Mapping[str, Any] | Recipe = "hybrid", **overrides: Any) -> Recommender:
        """An unfitted recommender from a packaged recipe ("ease"), a TOML file, plain values or a Recipe.

        Overrides are sections or top-level keys: `from_recipe("ease", model={"l2": 50.0}, seed=3)`.
        Raises RecipeError listing every problem.
        """
        return cls(load_recipe(source, overrides))

    def fit(
        self,
        data: Dataset | str | Path,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        stages: str | Path | None = None,
        save_every: float = EVERY,
        journal: RunJournal | None = None,
    ) -> Recommender:
        """Read, split and encode `data` (a Dataset or a data folder), and fit the model. Returns self.

        With `out`, everything is kept in that run folder and an interrupted or killed fit can be continued with
        `resume`; checkpoints of a training are `save_every` seconds apart, or more where writing them takes more than
        2 % of the time. With `stages` too, training stages that another run with the same settings, seed and data has
        finished are taken over from that folder, and left there for others.
        Raises DataError, TextError, CheckpointError (`out` is taken), Interrupted (Ctrl-C; the run can be resumed).
        """
        if out is not None:
            run.require_free(Path(out), overwrite)
        with _reporting(journal) as journal:
            journal.new_run()
            dataset = _dataset(data, self._asked, journal)
            split = _split(dataset, self._asked)
            self.recipe = self._asked.for_data(split.ordered)
            model = build(self.recipe.model.name, self.recipe.model.config.model_dump())
            if out is None:
                self._learn(model, dataset, split, journal)
            else:
                run.begin(Path(out), self.recipe, dataset, split, overwrite=overwrite)
                kept = Checkpoints(Path(out) / "checkpoint", Path(stages) if stages is not None else None, save_every)
                try:
                    self._learn_in(Path(out), model, dataset, split, journal, kept)
                except GraphLLMRecError as error:
                    if not isinstance(error, Interrupted):  # this cannot work, so it leaves nothing
                        discard(Path(out))
                    raise
        self._set(model, dataset, split)
        return self

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        recipe: Recipe | None = None,
        data: Dataset | str | Path | None = None,
        save_every: float = EVERY,
        journal: RunJournal | None = None,
    ) -> Recommender:
        """Continue the interrupted or killed fit in run folder `path`; recipe and data come from the folder.

        `recipe` and `data`, where given, must be those of the run: CheckpointError otherwise, and for a finished run.
        With both of them, a fit that was killed before it had made the folder is begun again.
        """
        path = Path(path)
        run.tidy(path)
        if recipe is not None and data is not None and run.state_of(path) == "absent":
            return cls(recipe).fit(data, out=path, save_every=save_every, journal=journal)
        if run.state_of(path) == "finished":
            raise CheckpointError(f"{path} is finished, there is nothing to resume; load it, or overwrite it")
        tables = run.read_tables(path)
        if recipe is not None and (recipe := recipe.for_data(tables.split.ordered)) != tables.recipe:
            raise CheckpointError(f"the recipe differs from the one of {path}: {_difference(recipe, tables.recipe)}")
        recommender = cls(tables.recipe)
        with _reporting(journal) as journal:
            journal.new_run()
            if data is not None:
                dataset = _dataset(data, tables.recipe, journal)
                if run.fingerprint(dataset) != tables.fingerprint:
                    raise CheckpointError(f"the data changed since {path} was begun; fit again with --overwrite")
            model = build(tables.recipe.model.name, tables.recipe.model.config.model_dump())
            kept = Checkpoints(path / "checkpoint", every=save_every)
            recommender._learn_in(path, model, tables.dataset, tables.split, journal, kept)
        recommender._set(model, tables.dataset, tables.split)
        return recommender

    @classmethod
    def load(cls, path: str | Path) -> Recommender:
        """The recommender of a finished run folder. Raises CheckpointError naming what is missing or damaged."""
        model = run.read_model(Path(path))
        tables = run.read_tables(Path(path))
        recommender = cls(tables.recipe)
        recommender._set(model, tables.dataset, tables.split)
        return recommender

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a complete run folder in one step. Raises CheckpointError when `path` is taken."""
        run.write_run(Path(path), self.recipe, self.dataset, self.split, self.model, overwrite=overwrite)

    @property
    def model(self) -> Model:
        """The fitted model."""
        return self._get()[0]

    @property
    def dataset(self) -> Dataset:
        """Users, catalogue (added items included) and interactions."""
        return self._get()[1]

    @property
    def split(self) -> Split:
        """The split the model was fitted on."""
        return self._get()[2]

    def evaluate(
        self,
        split: Part = "test",
        *,
        data: Dataset | str | Path | None = None,
        branch: str | None = None,
        journal: RunJournal | None = None,
    ) -> Evaluation:
        """Full-ranking metrics on the test or validation part; `branch` ("graph", "text") scores one branch alone.

        With `data` (e.g. train.* = what is known today, test.* = next week), that data is split as the recipe says;
        all its users and items must be known. Raises DataError for unknown ones, EvaluationError without any target.
        """
        with _reporting(journal) as journal:
            return evaluate_model(
                self.model,
                self.split if data is None else self._split_of(data, journal),
                split,
                ks=self.recipe.evaluate.ks,
                branch=branch,
                journal=journal,
            )

    def recommend(
        self,
        users: Sequence[object] | None = None,
        history: Sequence[object] | None = None,
        k: int = 10,
    ) -> list[list[Recommendation]]:
        """The k best items per user, or for one person of whom only a history (item ids, oldest first) is known.

        A known user's history is everything in the data; history items are never recommended. Returns one list per
        user (one list for `history`), shorter than k where the catalogue ends. Raises UnknownIdError for a user that
        the data does not hold and for a history without any known item; unknown ids among known ones are named in a
        warning and ignored.
        """
        if (users is None) == (history is None):
            raise ValueError("give either users=[…] or history=[…]")
        if isinstance(users, str) or isinstance(history, str):
            raise TypeError("users and history are lists of ids, not one string")
        queries = self._known(users) if users is not None else self._anonymous(history or [])
        rows, scores = top_k(self.model, queries, queries.histories, k)
        return [self._listed(*entry) for entry in zip(rows, scores, strict=True)]

    def similar(self, item: object, k: int = 10) -> list[Recommendation]:
        """The k items most similar to `item` in the eyes of the model, best first. Raises UnknownIdError."""
        row = self.dataset.items.ids.row(item, "item")
        scores = similarities(self.model, row).numpy().copy()
        scores[row] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return self._listed(best, scores[best])

    def explain(
        self, user: object | None = None, item: object = None, *, history: Sequence[object] | None = None
    ) -> Reason:
        """Why `item` gets its score for `user` (or for a `history`). An item of the history is left out of it for this.

        Raises UnknownIdError for an unknown user or item.
        """
        if (user is None) == (history is None):
            raise ValueError("give either a user or history=[…]")
        row = self.dataset.items.ids.row(item, "item")
        query = self._known([user]) if history is None else self._anonymous(history)
        if row in query.histories.items:  # otherwise the answer would be: because of itself
            query = Queries(query.users, Histories.from_lists([query.histories.items[query.histories.items != row]]))
        found = explain_item(self.model, query, row)
        near = found.history or []
        listed = self._listed(np.array([r for r, _ in near], dtype=np.int64), np.array([s for _, s in near]))
        about = Recommendation(self.dataset.items.ids.of([row])[0], self.dataset.items.titles[row], found.score)
        return Reason(about.item_id, about.title, about.score, found.shares, found.gate, found.context, listed)

    def add_items(self, rows: Iterable[Mapping[str, Any]], *, journal: RunJournal | None = None) -> None:
        """Append items, e.g. [{"item_id": "b7", "title": "…"}], to the catalogue; they can be recommended at once.

        Raises DataError for missing, repeated or already known ids, unknown columns, and (for a model that ranks by
        text) an item without text; nothing is added then.
        """
        table = _checked_items(list(rows), self.dataset.items, needs_text=self.model.needs_text)
        model, dataset, split = self._get()
        added = Items(type(dataset.items.ids)(table["item_id"]), table)
        with _reporting(journal) as journal:
            text = self._encode(added, model, journal)
        if text is None:
            text = TextVectors(torch.zeros(len(added), 0), torch.zeros(len(added), dtype=torch.bool))
        model.add_items(text)
        items = Items(dataset.items.ids.extended(added.ids.ids.to_list()), pl.concat([dataset.items.table, table]))
        self._set(model, replace(dataset, items=items), replace(split, num_items=len(items)))

    def _get(self) -> tuple[Model, Dataset, Split]:
        if self._fitted is None:
            raise CheckpointError("this recommender is not fitted yet; call .fit(data) or Recommender.load(path)")
        return self._fitted

    def _set(self, model: Model, dataset: Dataset, split: Split) -> None:
        self._fitted = (model, dataset, split)
        self._everything = run.joined(split).histories(split.num_users)

    def _learn(
        self, model: Model, dataset: Dataset, split: Split, journal: RunJournal, checkpoints: Checkpoints | None = None
    ) -> float:
        """Encode the texts and fit the model; returns the seconds that fitting took."""
        text = self._encode(dataset.items, model, journal)
        journal.stage(f"fit {model.name}")
        began = time.monotonic()
        model.fit(Task(split, text, self.recipe.seed, journal, checkpoints, encoder=self.recipe.text))
        return time.monotonic() - began

    def _learn_in(
        self, path: Path, model: Model, dataset: Dataset, split: Split, journal: RunJournal, checkpoints: Checkpoints
    ) -> None:
        """`_learn` with checkpoints and log in the run folder, which is then marked finished."""
        journal.keep_in(path)
        seconds = self._learn(model, dataset, split, journal, checkpoints)
        journal.end_log()
        run.finish(path, model, {"seconds": round(seconds, 2)})

    def _encode(self, items: Items, model: Model, journal: RunJournal) -> TextVectors | None:
        """Text vectors for a model that needs them, or that uses them where there is text."""
        wanted = model.needs_text or (getattr(model, "uses_text", False) and items.text_columns)
        return encode_items(items, self.recipe.text, journal=journal) if wanted else None

    def _split_of(self, data: Dataset | str | Path, journal: RunJournal) -> Split:
        """The split of other data, in the row numbers of this recommender."""
        dataset = _dataset(data, self.recipe, journal)
        rows = {}
        for kind, mine, theirs in (
            ("user", self.dataset.users, dataset.users),
            ("item", self.dataset.items.ids, dataset.items.ids),
        ):
            rows[kind] = mine.rows(theirs.ids.to_list())
            unknown = np.flatnonzero(rows[kind] < 0)
            if len(unknown):
                raise DataError(f"{len(unknown):,} {kind}s are not in the data this recommender was fitted on",
                                file=dataset.source, value=theirs.of(unknown[:1])[0],
                                hint="leave them out, or fit again")  # fmt: skip
        split = _split(dataset, self.recipe)
        parts = {
            name: Interactions.sort(rows["user"][part.user], rows["item"][part.item], part.order, part.rating)
            for name, part in (("train", split.train), ("valid", split.valid), ("test", split.test))
        }
        return Split(
            split.kind, len(self.dataset.users), len(self.dataset.items), parts["train"], parts["valid"], parts["test"],
            split.valid_in_history, split.ordered, split.settings,
        )  # fmt: skip

    def _known(self, users: Sequence[object]) -> Queries:
        ids, everything = self.dataset.users, self._everything
        assert everything is not None
        try:
            rows = np.array([ids.row(user, "user") for user in users], dtype=np.int64)
        except UnknownIdError as error:
            raise UnknownIdError(f"{error}; for somebody new, give a history of item ids (--history) instead") from None
        return Queries.of(everything, rows)

    def _anonymous(self, history: Sequence[object]) -> Queries:
        rows = self.dataset.items.ids.rows(history)
        unknown = [str(value) for value, row in zip(history, rows, strict=True) if row < 0]
        if len(unknown) == len(rows):
            listed = ", ".join(map(repr, unknown[:5])) or "nothing"
            raise UnknownIdError(f"no item of the history is known (found {listed})")
        if unknown:
            warnings.warn(f"unknown items of the history are ignored: {', '.join(unknown[:20])}", stacklevel=3)
        return Queries.anonymous(Histories.from_lists([rows[rows >= 0]]))

    def _listed(self, rows: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> list[Recommendation]:
        keep = (rows >= 0) & np.isfinite(scores)
        ids, table = self.dataset.items.ids.of(rows[keep]), self.dataset.items.table
        titles = table["title"].gather(rows[keep]).to_list() if "title" in table.columns else [None] * len(ids)
        return [Recommendation(*entry) for entry in zip(ids, titles, scores[keep].tolist(), strict=True)]


def _dataset(data: Dataset | str | Path, recipe: Recipe, journal: RunJournal) -> Dataset:
    """A Dataset as it is, a data folder read and filtered as the recipe says. Raises DataError."""
    if isinstance(data, Dataset):
        return data
    journal.stage("reading data")
    dataset = load_data(data, min_rating=recipe.data.min_rating, k_core=recipe.data.k_core)
    for note in dataset.notes:
        journal.say(f"note: {note}")
    return dataset


def _split(dataset: Dataset, recipe: Recipe) -> Split:
    section = recipe.data
    return make_split(
        dataset,
        kind=section.split,
        seed=recipe.seed,
        valid_ratio=section.valid_ratio,
        test_ratio=section.test_ratio,
        cold_ratio=section.cold_ratio,
    )


@contextmanager
def _reporting(journal: RunJournal | None) -> Iterator[RunJournal]:
    """The caller's journal as it is, or a silent one that is closed at the end."""
    if journal is not None:
        yield journal
        return
    with RunJournal(quiet=True) as silent:
        yield silent


def _difference(given: Recipe, stored: Recipe) -> str:
    """The first settings in which two recipes differ, as "section.key: given, not stored"."""
    flat = [_flat(recipe.values()) for recipe in (given, stored)]
    keys = [key for key in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(key) != flat[1].get(key)]
    return "; ".join(f"{key}: {flat[0].get(key)!r}, not {flat[1].get(key)!r}" for key in keys[:5])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _checked_items(rows: Sequence[Mapping[str, Any]], items: Items, *, needs_text: bool) -> pl.DataFrame:
    """New rows as a table with the columns of the catalogue. Raises DataError naming the row (counted from 1)."""
    columns, ids = items.table.columns, set()
    for number, row in enumerate(rows, start=1):
        where = f"new item {number}"
        value = row.get("item_id")
        if value is None or not str(value).strip():
            raise DataError(f"{where} has no item_id", hint='give {"item_id": …, "title": …}')
        if str(value) in items.ids or str(value) in ids:
            raise DataError(f"{where}: this id is already in the catalogue", column="item_id", value=value)
        ids.add(str(value))
        unknown = [name for name in row if name not in columns]
        if unknown:
            raise DataError(f"{where}: the catalogue has no such column", column=unknown[0],
                            hint=f"columns are {', '.join(columns)}")  # fmt: skip
        if needs_text and not any(row.get(name) for name in items.text_columns):
            raise DataError(f"{where} has no text, so nothing could place it", value=value,
                            hint=f"fill one of {', '.join(items.text_columns)}")  # fmt: skip
    if not rows:
        raise DataError("no items to add")
    try:
        return pl.DataFrame([{**row, "item_id": str(row["item_id"])} for row in rows], schema=items.table.schema)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(f"{name} {kind}" for name, kind in items.table.schema.items())
        raise DataError("new items do not fit the catalogue", hint=f"columns are {kinds} ({error})") from None
