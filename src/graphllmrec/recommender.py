"""The front door: fit, evaluate, recommend, similar, explain, add_items, save, load. External ids in and out.

from graphllmrec import Recommender
recommender = Recommender.from_recipe("ease").fit("data/amazon-scientific")
recommender.recommend(users=["A3L1RF2"], k=10)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphllmrec import run_folder as run
from graphllmrec.arguments import id_list, list_length
from graphllmrec.data.new_items import new_item_table
from graphllmrec.data.prepare import read_and_split, read_dataset, split_in_rows
from graphllmrec.data.split import Part, Split
from graphllmrec.data.tables import Dataset, Histories, IdMap, Ints, Items
from graphllmrec.errors import ArgumentError, CheckpointError, GraphLLMRecError, Interrupted, UnknownIdError
from graphllmrec.evaluation.evaluation import Evaluation, evaluate_model
from graphllmrec.evaluation.rank import top_k
from graphllmrec.io import discard
from graphllmrec.models.explain import explain_item, similarities
from graphllmrec.progress import RunLogger, open_logger
from graphllmrec.protocol import Model, Queries, Task
from graphllmrec.recipe import Recipe, differences, load_recipe
from graphllmrec.recommendation import Explanation, Recommendation
from graphllmrec.text.prepare import prepare_new_text, prepare_text
from graphllmrec.train.checkpoint import EVERY, Checkpoints


class Recommender:
    """A recipe, and after `fit` or `load` a fitted model with its catalogue and users."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = self._given = recipe  # after `fit`, `recipe` has [unordered] merged in, or dropped
        self._fitted: tuple[Model, Dataset, Split] | None = None
        self._histories: Histories | None = None  # all that is known of each user

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

        With `out`, the run is kept in that folder, and `resume` continues an interrupted or killed fit; checkpoints are
        written every `save_every` seconds, or less often where writing takes more than 2 % of the time. With `cache`
        too, trained stages are shared with other runs that have the same settings, seed and data, through that folder.
        Raises DataError, TextError, CheckpointError (`out` is taken), Interrupted (Ctrl-C; the run can be resumed).
        """
        path = None if out is None else Path(out)
        if path is not None:
            run.require_free(path, overwrite)
        with open_logger(logger) as logger:
            logger.new_run()
            dataset, split = read_and_split(data, self._given.data, self._given.seed, logger)
            self.recipe = self._given.for_data(split.ordered)
            model = self.recipe.build_model()
            if path is None:
                return self._train(model, dataset, split, logger)
            run.begin(path, self.recipe, dataset, split, overwrite=overwrite)
            checkpoints = Checkpoints(path / "checkpoint", None if cache is None else Path(cache), save_every)
            try:
                return self._train(model, dataset, split, logger, path, checkpoints)
            except Interrupted:
                raise
            except GraphLLMRecError:  # another attempt would fail as well: no run folder is left
                discard(path)
                raise

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
        With both of them, a fit that was killed before its folder existed starts again.
        """
        path = Path(path)
        run.tidy(path)
        if recipe is not None and data is not None and run.state_of(path) == "absent":
            return cls(recipe).fit(data, out=path, save_every=save_every, logger=logger)
        if run.state_of(path) == "finished":
            raise CheckpointError(f"{path} is finished, there is nothing to resume; load it, or overwrite it")
        tables = run.load_tables(path)
        if recipe is not None and (recipe := recipe.for_data(tables.split.ordered)) != tables.recipe:
            listed = "; ".join(differences(recipe.values(), tables.recipe.values())[:5])
            raise CheckpointError(f"the recipe differs from the one of {path}: {listed}")
        recommender = cls(tables.recipe)
        with open_logger(logger) as logger:
            logger.new_run()
            if data is not None:
                dataset, _ = read_and_split(data, tables.recipe.data, tables.recipe.seed, logger)
                if run.fingerprint(dataset) != tables.fingerprint:
                    raise CheckpointError(f"the data changed since {path} was begun; fit again with --overwrite")
            checkpoints = Checkpoints(path / "checkpoint", every=save_every)
            model = tables.recipe.build_model()
            return recommender._train(model, tables.dataset, tables.split, logger, path, checkpoints)

    @classmethod
    def load(cls, path: str | Path) -> Recommender:
        """The recommender of a finished run folder. Raises CheckpointError naming what is missing or damaged."""
        model = run.load_model(Path(path))
        tables = run.load_tables(Path(path))
        return cls(tables.recipe)._set(model, tables.dataset, tables.split)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a complete run folder in one step. Raises CheckpointError when `path` is taken."""
        run.save_run(Path(path), self.recipe, self.dataset, self.split, self.model, overwrite=overwrite)

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
        with open_logger(logger) as logger:
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
        users: Iterable[object] | None = None,
        history: Iterable[object] | None = None,
        k: int = 10,
        *,
        exclude: Iterable[object] = (),
        candidates: Iterable[object] | None = None,
        allow_seen: bool = False,
    ) -> list[list[Recommendation]]:
        """The k best items per user, or for one unknown user with a `history` (item ids, oldest first).

        Ids come in any iterable: a list, a NumPy array, a column of pandas or polars. The history of a known user is
        all of the data; history items are recommended with `allow_seen` only. `exclude`: items that are in no list;
        `candidates`: the only items that may be. Returns one list per user (one list for `history`), shorter than k
        where the catalogue ends. Raises ArgumentError, UnknownIdError for a user that is not in the data and for a
        history or candidates without any known item; other unknown items are named in a warning and ignored.
        """
        length = list_length(k)
        if (users is None) == (history is None):
            raise ArgumentError("give either users=[…] or history=[…]")
        if users is not None:
            queries = self._user_queries(id_list(users, "users"))
        else:
            queries = self._history_query(id_list(history, "history"))
        seen = Histories.from_lists([[]] * len(queries)) if allow_seen else queries.histories
        rows, scores = top_k(self.model, queries, seen, length, allowed=self._allowed(exclude, candidates))
        return Recommendation.from_lists(self.dataset.items, rows, scores)

    def similar(self, item: object, k: int = 10) -> list[Recommendation]:
        """The k items that the model finds most similar to `item`, best first. Raises ArgumentError, UnknownIdError."""
        k, row = list_length(k), self.dataset.items.ids.row(item, "item")
        scores = similarities(self.model, row).numpy().copy()
        scores[row] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return Recommendation.from_rows(self.dataset.items, best, scores[best])

    def explain(
        self, user: object | None = None, item: object = None, *, history: Iterable[object] | None = None
    ) -> Explanation:
        """Why `item` gets its score for `user` (or for a `history`). An item of the history is left out of it for this.

        Raises UnknownIdError for an unknown user or item.
        """
        if (user is None) == (history is None):
            raise ArgumentError("give either a user or history=[…]")
        if item is None:
            raise ArgumentError("give the item to explain: explain(user, item) or explain(item=…, history=[…])")
        row = self.dataset.items.ids.row(item, "item")
        query = self._user_queries([user]) if history is None else self._history_query(id_list(history, "history"))
        if row in query.histories.items:  # otherwise an item would be explained by itself
            query = Queries(query.users, Histories.from_lists([query.histories.items[query.histories.items != row]]))
        return Explanation.from_row(self.dataset.items, row, explain_item(self.model, query, row))

    def add_items(self, rows: Any, *, logger: RunLogger | None = None) -> None:
        """Append items to the catalogue; they can be recommended at once.

        `rows`: a list such as [{"item_id": "b7", "title": "…"}], or a polars or pandas DataFrame.

        Raises DataError for missing, repeated or already known ids, unknown columns, and (for a model that ranks by
        text) an item without text; nothing is added then.
        """
        table = new_item_table(rows, self.dataset.items, needs_text=self.model.abilities.needs_text)
        model, dataset, split = self._get()
        new, recipe = Items(IdMap(table["item_id"]), table, dataset.items.roles), self.recipe
        with open_logger(logger) as logger:
            model.add_items(
                prepare_new_text(model.abilities, new, dataset.items, split, recipe.text, recipe.seed, logger)
            )
        items = dataset.items.extended(table)
        self._set(model, replace(dataset, items=items), replace(split, num_items=len(items)))

    def _get(self) -> tuple[Model, Dataset, Split]:
        if self._fitted is None:
            raise CheckpointError("this recommender is not fitted yet; call .fit(data) or Recommender.load(path)")
        return self._fitted

    def _set(self, model: Model, dataset: Dataset, split: Split) -> Recommender:
        self._fitted = (model, dataset, split)
        self._histories = split.interactions().histories(split.num_users)
        return self

    def _train(
        self,
        model: Model,
        dataset: Dataset,
        split: Split,
        logger: RunLogger,
        path: Path | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Recommender:
        """Encode the texts and fit the model; with a run folder, log, checkpoints and result are written there."""
        recipe = self.recipe
        if path is not None:
            logger.write_to(path)
        text, user_text = prepare_text(model.abilities, dataset, split, recipe.text, recipe.seed, logger)
        if split.train.weight is not None and not model.abilities.uses_weights:
            logger.say(f"note: {model.name} counts all clicks the same; the weights of the data are not used")
        logger.begin(f"fit {model.name}")
        began = time.monotonic()
        model.fit(Task(split, text, recipe.seed, logger, checkpoints, user_text=user_text, encoder=recipe.text))
        if path is not None and checkpoints is not None:
            seconds = time.monotonic() - began + checkpoints.earlier  # those of earlier attempts and other runs too
            logger.finish_log()
            run.finish(path, model, {"seconds": round(seconds, 2)})
        return self._set(model, dataset, split)

    def _user_queries(self, users: Sequence[object]) -> Queries:
        ids, histories = self.dataset.users, self._histories
        assert histories is not None
        try:
            rows = np.array([ids.row(user, "user") for user in users], dtype=np.int64)
        except UnknownIdError as error:
            hint = "for an unknown user, give a history of item ids (--history) instead"
            raise UnknownIdError(f"{error}; {hint}") from None
        return Queries.of(histories, rows)

    def _history_query(self, history: Sequence[object]) -> Queries:
        if not (self.dataset.items.ids.rows(history) >= 0).any():
            listed = ", ".join(repr(str(value)) for value in history[:5]) or "nothing"
            raise UnknownIdError(f"no item of the history is known (found {listed})")
        known = self._known_rows(history, "the history")
        first = np.sort(np.unique(known, return_index=True)[1])  # a repeated item counts once, as in the data
        return Queries.anonymous(Histories.from_lists([known[first]]))

    def _allowed(self, exclude: Iterable[object], candidates: Iterable[object] | None) -> NDArray[np.bool_] | None:
        """Items (num_items,) that lists may hold; None for all."""
        excluded = self._known_rows(id_list(exclude, "exclude"), "exclude")
        if candidates is None and not len(excluded):
            return None
        allowed = np.full(len(self.dataset.items), candidates is None)
        if candidates is not None:
            chosen = self._known_rows(id_list(candidates, "candidates"), "candidates")
            if not len(chosen):
                raise UnknownIdError("no item of candidates is known")
            allowed[chosen] = True
        allowed[excluded] = False
        return allowed

    def _known_rows(self, ids: Sequence[object], what: str) -> Ints:
        """Rows of these item ids; unknown ones are named in a warning and left out."""
        rows = self.dataset.items.ids.rows(ids)
        unknown = [str(value) for value, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            warnings.warn(f"unknown items of {what} are ignored: {', '.join(unknown[:20])}", stacklevel=4)
        return rows[rows >= 0]


def evaluate(recommender: Recommender, data: Dataset | str | Path | None = None, split: Part = "test") -> Evaluation:
    """Full-ranking metrics of a fitted recommender on its own data or other `data`; see `Recommender.evaluate`."""
    return recommender.evaluate(split, data=data)
