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

from graphllmrec import run_folder as run
from graphllmrec.data.new_items import new_item_table
from graphllmrec.data.prepare import read_dataset, split_dataset, split_in_rows
from graphllmrec.data.split import Part, Split
from graphllmrec.data.tables import Dataset, Histories, IdMap, Items
from graphllmrec.errors import CheckpointError, GraphLLMRecError, Interrupted, UnknownIdError
from graphllmrec.evaluation.evaluation import Evaluation, evaluate_model
from graphllmrec.evaluation.rank import top_k
from graphllmrec.io import discard
from graphllmrec.models.explain import explain_item, similarities
from graphllmrec.models.registry import build
from graphllmrec.progress import RunLogger
from graphllmrec.protocol import Model, Queries, Task, TextVectors
from graphllmrec.recipe import Recipe, difference, load_recipe
from graphllmrec.recommendation import Explanation, Recommendation
from graphllmrec.text.encoder import encode_items
from graphllmrec.text.placebo import TextPlacebo, without_encoder
from graphllmrec.text.reviews import user_text, with_reviews
from graphllmrec.train.checkpoint import EVERY, Checkpoints


class Recommender:
    """A recipe, and after `fit` or `load` a fitted model with its catalogue and users."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = self._given = recipe  # once fitted, `recipe` is the given one as it applies to the data
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
        cache: str | Path | None = None,
        save_every: float = EVERY,
        logger: RunLogger | None = None,
    ) -> Recommender:
        """Read, split and encode `data` (a Dataset or a data folder), and fit the model. Returns self.

        With `out`, everything is kept in that run folder and an interrupted or killed fit can be continued with
        `resume`; checkpoints of a training are `save_every` seconds apart, or more where writing them takes more than
        2 % of the time. With `cache` too, training stages that another run with the same settings, seed and data has
        finished are taken over from that folder, and left there for others.
        Raises DataError, TextError, CheckpointError (`out` is taken), Interrupted (Ctrl-C; the run can be resumed).
        """
        if out is not None:
            run.require_free(Path(out), overwrite)
        with _reporting(logger) as logger:
            logger.new_run()
            dataset = read_dataset(data, self._given.data, logger)
            split = split_dataset(dataset, self._given.data, self._given.seed)
            self.recipe = self._given.for_data(split.ordered)
            model = build(self.recipe.model.name, self.recipe.model.config.model_dump())
            if out is None:
                self._learn(model, dataset, split, logger)
            else:
                run.begin(Path(out), self.recipe, dataset, split, overwrite=overwrite)
                kept = Checkpoints(Path(out) / "checkpoint", Path(cache) if cache is not None else None, save_every)
                try:
                    self._learn_in(Path(out), model, dataset, split, logger, kept)
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
        logger: RunLogger | None = None,
    ) -> Recommender:
        """Continue the interrupted or killed fit in run folder `path`; recipe and data come from the folder.

        `recipe` and `data`, where given, must be those of the run: CheckpointError otherwise, and for a finished run.
        With both of them, a fit that was killed before it had made the folder is begun again.
        """
        path = Path(path)
        run.tidy(path)
        if recipe is not None and data is not None and run.state_of(path) == "absent":
            return cls(recipe).fit(data, out=path, save_every=save_every, logger=logger)
        if run.state_of(path) == "finished":
            raise CheckpointError(f"{path} is finished, there is nothing to resume; load it, or overwrite it")
        tables = run.read_tables(path)
        if recipe is not None and (recipe := recipe.for_data(tables.split.ordered)) != tables.recipe:
            raise CheckpointError(f"the recipe differs from the one of {path}: {difference(recipe, tables.recipe)}")
        recommender = cls(tables.recipe)
        with _reporting(logger) as logger:
            logger.new_run()
            if data is not None:
                dataset = read_dataset(data, tables.recipe.data, logger)
                if run.fingerprint(dataset) != tables.fingerprint:
                    raise CheckpointError(f"the data changed since {path} was begun; fit again with --overwrite")
            model = build(tables.recipe.model.name, tables.recipe.model.config.model_dump())
            kept = Checkpoints(path / "checkpoint", every=save_every)
            recommender._learn_in(path, model, tables.dataset, tables.split, logger, kept)
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
        logger: RunLogger | None = None,
    ) -> Evaluation:
        """Full-ranking metrics on the test or validation part; `branch` ("graph", "text") scores one branch alone.

        With `data` (e.g. train.* = what is known today, test.* = next week), that data is split as the recipe says;
        all its users and items must be known. Raises DataError for unknown ones, EvaluationError without any target.
        """
        with _reporting(logger) as logger:
            known = self.split
            if data is not None:
                other = read_dataset(data, self.recipe.data, logger)
                known = split_in_rows(self.dataset, other, self.recipe.data, self.recipe.seed)
            return evaluate_model(
                self.model,
                known,
                split,
                ks=self.recipe.evaluate.ks,
                branch=branch,
                placebo=self.recipe.text.placebo if self.model.abilities.reads_text else "none",
                logger=logger,
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
    ) -> Explanation:
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
        return Explanation(about.item_id, about.title, about.score, found.shares, found.gate, found.context, listed)

    def add_items(self, rows: Iterable[Mapping[str, Any]], *, logger: RunLogger | None = None) -> None:
        """Append items, e.g. [{"item_id": "b7", "title": "…"}], to the catalogue; they can be recommended at once.

        Raises DataError for missing, repeated or already known ids, unknown columns, and (for a model that ranks by
        text) an item without text; nothing is added then.
        """
        table = new_item_table(list(rows), self.dataset.items, needs_text=self.model.abilities.needs_text)
        model, dataset, split = self._get()
        added = Items(IdMap(table["item_id"]), table)
        with _reporting(logger) as logger:
            model.add_items(self._new_text(model, added, logger))
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
        self, model: Model, dataset: Dataset, split: Split, logger: RunLogger, checkpoints: Checkpoints | None = None
    ) -> float:
        """Encode the texts and fit the model; returns the seconds it took, earlier and shared ones too."""
        text, user_text = self._texts(model, dataset, split, logger)
        logger.begin(f"fit {model.name}")
        began = time.monotonic()
        recipe = self.recipe
        model.fit(Task(split, text, recipe.seed, logger, checkpoints, user_text=user_text, encoder=recipe.text))
        return time.monotonic() - began + (checkpoints.earlier if checkpoints is not None else 0.0)

    def _learn_in(
        self, path: Path, model: Model, dataset: Dataset, split: Split, logger: RunLogger, checkpoints: Checkpoints
    ) -> None:
        """`_learn` with checkpoints and log in the run folder, which is then marked finished."""
        logger.write_to(path)
        seconds = self._learn(model, dataset, split, logger, checkpoints)
        logger.finish_log()
        run.finish(path, model, {"seconds": round(seconds, 2)})

    def _texts(
        self, model: Model, dataset: Dataset, split: Split, logger: RunLogger
    ) -> tuple[TextVectors | None, TextVectors | None]:
        """Vectors of items and of users as far as the model reads them, or those of the recipe's placebo."""
        config, placebo = self.recipe.text, self._placebo(split)
        items = users = None
        if _reads_item_text(model, dataset.items):
            items = self._encode(dataset.items, placebo, logger)
            if config.reviews:
                items = with_reviews(items, split, config, logger=logger)
            items = placebo.items(items, dataset.items.ids)
        if model.abilities.uses_user_text:
            users = user_text(split, config, read=placebo.reads_text, logger=logger)
            users = None if users is None else placebo.users(users, dataset.users)
        return items, users

    def _new_text(self, model: Model, added: Items, logger: RunLogger) -> TextVectors:
        """Vectors of items that join the catalogue; none for a model that reads no text."""
        _, dataset, split = self._get()
        if not _reads_item_text(model, added):
            return TextVectors(torch.zeros(len(added), 0), torch.zeros(len(added), dtype=torch.bool))
        placebo = self._placebo(split)
        if placebo.kind == "shuffled":
            added = placebo.donors(added, dataset.items, self.recipe.text)
        return placebo.new_items(self._encode(added, placebo, logger), added.ids)

    def _placebo(self, split: Split) -> TextPlacebo:
        return TextPlacebo(self.recipe.text.placebo, self.recipe.seed, split)

    def _encode(self, items: Items, placebo: TextPlacebo, logger: RunLogger) -> TextVectors:
        """Text vectors of items; of no dimensions where the placebo does not need them."""
        if placebo.reads_text:
            return encode_items(items, self.recipe.text, logger=logger)
        return without_encoder(items, self.recipe.text)

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


def evaluate(recommender: Recommender, data: Dataset | str | Path | None = None, split: Part = "test") -> Evaluation:
    """Full-ranking metrics of a fitted recommender on its own data or other `data`; see `Recommender.evaluate`."""
    return recommender.evaluate(split, data=data)


@contextmanager
def _reporting(logger: RunLogger | None) -> Iterator[RunLogger]:
    """The caller's logger as it is, or a silent one that is closed at the end."""
    if logger is not None:
        yield logger
        return
    with RunLogger(quiet=True) as silent:
        yield silent


def _reads_item_text(model: Model, items: Items) -> bool:
    """Does the model need text, or use it where there is some, as there is here?"""
    return model.abilities.needs_text or bool(model.abilities.uses_text and items.text_columns)
