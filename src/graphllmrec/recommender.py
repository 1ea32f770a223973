"""The front door: fit, evaluate, recommend, similar, explain, add_items, save, load. External ids in and out.

from graphllmrec import Recommender
recommender = Recommender.from_recipe("ease").fit("data/amazon-scientific")
recommender.recommend(users=["A3L1RF2"], k=10)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Unpack, overload

import polars as pl

from graphllmrec import run_folder as run
from graphllmrec.arguments import file_path, id_list, one_id, one_of
from graphllmrec.data.frames import Table
from graphllmrec.data.new_items import new_item_table
from graphllmrec.data.prepare import Data, read_dataset, split_in_rows
from graphllmrec.data.split import Part, Split
from graphllmrec.data.tables import Dataset, Histories
from graphllmrec.data.tags import with_held_out_tags
from graphllmrec.errors import ArgumentError, CheckpointError
from graphllmrec.evaluation.evaluation import Evaluation, evaluate_model
from graphllmrec.fitted import Fitted, ListOptions, SimilarOptions, Unknown
from graphllmrec.fitting import WHOLE, Fit, Keep, Origin, fit_new, fit_rest, load_fit
from graphllmrec.lists_file import write_lists
from graphllmrec.models.explain import explain_item
from graphllmrec.progress import RunLogger, open_logger
from graphllmrec.protocol import Model, Queries
from graphllmrec.recipe import Recipe, evaluate_settings, load_recipe
from graphllmrec.recommendation import Explanation, FrameKind, Recommendation
from graphllmrec.report.card import CardSource, card_markdown, card_values
from graphllmrec.report.format import integer
from graphllmrec.report.notebook import View, notebook_html
from graphllmrec.text.decoys import make_decoys
from graphllmrec.text.prepare import prepare_new_text
from graphllmrec.train.checkpoint import EVERY


class Recommender:
    """A recipe, and after `fit` or `load` a fitted model with its catalogue and users.

    Once fitted, it can be used by any number of threads at once: every answer comes from one state of model and
    catalogue, and `add_items` puts another in its place in one step; several threads that add items take turns. `fit`
    is for a recommender that is not in use. Processes have a recommender each.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = self._given = recipe  # after `fit`, `recipe` has [unordered] merged in, or dropped
        self._fit: Fit | None = None  # never changed, only replaced
        self._adding = Lock()  # held by the thread that adds items

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock: a copy and an unpickled recommender have their own."""
        return {name: value for name, value in vars(self).items() if name != "_adding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _adding=Lock())

    def __repr__(self) -> str:
        if self._fit is None:
            return f"Recommender({self.recipe.model.name}, not fitted)"
        return f"Recommender({self.recipe.model.name}, fitted on {self.dataset!r})"

    def _repr_html_(self) -> str:
        return notebook_html(_view(self.recipe, None if self._fit is None else self._fit.fitted))

    @classmethod
    def from_recipe(cls, source: str | Path | Mapping[str, Any] | Recipe = "hybrid", **overrides: Any) -> Recommender:
        """An unfitted recommender from a packaged recipe ("ease"), a TOML file, plain values or a Recipe.

        Overrides are sections or top-level keys: `from_recipe("ease", model={"l2": 50.0}, seed=3)`.
        Raises RecipeError listing every problem.
        """
        return cls(load_recipe(source, overrides))

    def fit(
        self,
        data: Data,
        items: Table | None = None,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        cache: str | Path | None = None,
        save_every: float = EVERY,
        logger: RunLogger | None = None,
    ) -> Recommender:
        """Read, split and encode `data`, and fit the model. Returns self.

        `data`: a data folder, a Dataset, or interactions as a DataFrame of polars or pandas, with the items as another
        in `items`; see `load_data`.

        With `out`, the run is kept in that folder, and `resume` continues an interrupted or killed fit. With
        `overwrite`, a run in that folder stays as it is until the new one is whole, and is replaced then. Checkpoints
        are written every `save_every` seconds, less often where that takes more than 2 % of the time. With `cache`
        too, trained stages are shared with other runs that have the same settings, seed and data, through that folder.
        Raises DataError, TextError, CheckpointError (`out` is taken), Interrupted (Ctrl-C; the run can be resumed).
        """
        keep = Keep.of(out, overwrite, cache, save_every)
        return self._take(fit_new(self._given, data, items, keep=keep, logger=logger))

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        recipe: Recipe | None = None,
        data: Data | None = None,
        save_every: float = EVERY,
        logger: RunLogger | None = None,
    ) -> Recommender:
        """Continue the interrupted or killed fit in run folder `path`; recipe and data come from the folder.

        `recipe` and `data`, where given, must be those of the run: CheckpointError otherwise, and for a finished run.
        With both of them, a fit that was killed before its folder existed starts again.
        """
        return cls._of(fit_rest(Path(path), recipe, data, every=save_every, logger=logger))

    @classmethod
    def load(cls, path: str | Path) -> Recommender:
        """The recommender of a finished run folder. Raises CheckpointError naming what is missing or damaged."""
        return cls._of(load_fit(Path(path)))

    def refit(
        self,
        data: Data | None = None,
        items: Table | None = None,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        warm: float = 0.0,
        save_every: float = EVERY,
        logger: RunLogger | None = None,
    ) -> Recommender:
        """A new recommender for production: nothing is held out, and this fit's findings are taken over.

        Those are tuned settings, the best number of epochs of every stage, and the weights and gate of a fusion. `data`
        as in `fit`, by default the data of this recommender (of a loaded run without the tags written at its held-out
        interactions, which it does not keep; a note says so); new users and items in it are included. There is no test
        part: the figures to expect are those of this recommender. `warm`: share of the epochs, 0 to 1, to train from
        the earlier weights, in stages that read no text; 0: all epochs from new weights. An interrupted refit is
        continued by `resume`. Raises as `fit` does, and CheckpointError for a run without findings (of version 0.1).
        """
        if not 0 <= warm <= 1:
            raise ArgumentError(f"warm is a share of the epochs, from 0 to 1; got {warm!r}")
        now, origin = self._get(), Origin.of(self._get_fit(), warm)
        recommender = Recommender(load_recipe(self.recipe, WHOLE))
        keep = Keep.of(out, overwrite, None, save_every)
        own = with_held_out_tags(now.dataset) if data is None else data
        return recommender._take(fit_new(recommender.recipe, own, items, keep=keep, origin=origin, logger=logger))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a complete run folder in one step. Raises CheckpointError when `path` is taken."""
        now, findings = self._get(), self._get_fit().read_findings()
        run.save_run(Path(path), self.recipe, now.dataset, now.split, now.model, findings, overwrite=overwrite)

    @property
    def model(self) -> Model:
        """The fitted model."""
        return self._get().model

    @property
    def dataset(self) -> Dataset:
        """Users, catalogue (added items included) and interactions."""
        return self._get().dataset

    @property
    def split(self) -> Split:
        """The split the model was fitted on."""
        return self._get().split

    def evaluate(
        self,
        split: Part = "test",
        *,
        data: Data | None = None,
        branch: str | None = None,
        decoys: int | None = None,
        decoys_from: str | Path | None = None,
        logger: RunLogger | None = None,
    ) -> Evaluation:
        """Full-ranking metrics on the test or validation part; `branch` ("graph", "text") scores one branch alone.

        `decoys`: so many items that nobody clicks are added to the candidates, `decoys_from` "auto" or a data folder
        (text/decoys.py); by default those of the recipe. This recommender's own catalogue stays as it is.

        With `data` (e.g. train.* = what is known today, test.* = next week), that data is split as the recipe says;
        all its users and items must be known. Raises DataError for unknown ones, EvaluationError without any target.
        """
        settings = evaluate_settings(self.recipe, decoys, decoys_from)
        with open_logger(logger) as logger:
            now = self._get()
            known, run_id = now.split, now.run if data is None else None
            if data is not None:
                other = read_dataset(data, self.recipe.data, logger)
                known = split_in_rows(now.dataset, other, self.recipe.data, self.recipe.seed)
            added = None
            if settings.decoys:
                added = make_decoys(now.items, settings.decoys, settings.decoys_from, settings.decoys_seed)
                now = self._with_items(now, added.table, logger)
                known = replace(known, num_items=len(now.items))
            found = evaluate_model(
                now.model,
                known,
                split,
                ks=settings.ks,
                branch=branch,
                placebo=self.recipe.text.placebo if now.model.abilities.reads_text else "none",
                decoys=added,
                logger=logger,
            )
            return replace(found.with_ids(now.dataset.users, now.dataset.items.ids), run=run_id)

    def card(
        self,
        *,
        evaluation: Evaluation | None = None,
        baselines: Mapping[str, Evaluation] | None = None,
        data_licence: str | None = None,
    ) -> str:
        """A model card in Markdown: data, protocol, figures, limits, recipe, and how to reproduce them.

        `evaluation`: of the test part (default: made now); `baselines`: evaluations that it is tested against;
        `data_licence` (default: what a LICENSE or README file of the data folder says). Raises EvaluationError for
        baselines with other users, targets or masked items.
        """
        if evaluation is None and len(self.split.test):
            evaluation = self.evaluate()
        source = CardSource(
            self.recipe, self.model.abilities, self.dataset, self.split, evaluation, baselines or {}, data_licence
        )
        return card_markdown(card_values(source))

    @overload
    def recommend(
        self, users: Iterable[object] | None = None, history: Iterable[object] | None = None, k: int = 10,
        *, as_frame: None = None, **options: Unpack[ListOptions],
    ) -> list[list[Recommendation]]: ...  # fmt: skip

    @overload
    def recommend(
        self, users: Iterable[object] | None = None, history: Iterable[object] | None = None, k: int = 10,
        *, as_frame: FrameKind, **options: Unpack[ListOptions],
    ) -> Any: ...  # fmt: skip

    def recommend(
        self,
        users: Iterable[object] | None = None,
        history: Iterable[object] | None = None,
        k: int = 10,
        *,
        exclude: Iterable[object] = (),
        candidates: Iterable[object] | None = None,
        filter: str | pl.Expr | None = None,
        allow_seen: bool = False,
        unknown: Unknown = "error",
        as_frame: FrameKind | None = None,
    ) -> Any:
        """The k best items per user, or for one unknown user with a `history` (item ids, oldest first).

        Ids come in any iterable: a list, a NumPy array, a column of pandas or polars. The history of a known user is
        all of the data; a repeated item of a history counts once, and items of the history are recommended with
        `allow_seen` only. Which items lists may hold:

        - `candidates`: these alone; with `allow_seen` and `k=len(candidates)` each of them gets a score and a place;
        - `exclude`: not these;
        - `filter`: those for which a condition on the columns of the catalogue is true, in SQL
          ("price < 20 AND brand = 'Lego'", "array_contains(categories, 'Garden')") or as a polars expression.

        `unknown` says what is for a user who is not in the data, or a history without any known item: an "error", an
        empty list ("skip"), or the most popular items of the training data ("popular"); a warning names them. A model
        of clicks alone knows items with training clicks only, not those added since. Known users of whose histories a
        model knows nothing get an empty list, or with "popular" the most popular items.

        Returns one list per user (one list for `history`), shorter than k where the catalogue ends; with
        `as_frame="polars"` or `"pandas"` one table: user_id (for a history: query), rank, item_id, title, score.

        Raises ArgumentError, UnknownIdError for a user that is not in the data and for a history or candidates without
        any known item; other unknown items are named in a warning and ignored.
        """
        now = self._get()
        length = now.list_length(k)
        one_of(unknown, Unknown, "unknown")
        one_of(as_frame, FrameKind, "as_frame", optional=True)
        if (users is None) == (history is None):
            raise ArgumentError("give either users=[…] or history=[…]")
        limits = now.limits(exclude, candidates, filter, allow_seen=allow_seen)
        if users is not None:
            names, rows = now.find_users(id_list(users, "users"), unknown)
            found = now.for_users(names, rows, length, limits, unknown)
        else:
            found = now.for_history(id_list(history, "history"), length, limits, unknown)
        return found.answer(as_frame)

    def recommend_all(
        self,
        out: str | Path,
        k: int = 10,
        *,
        users: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
        candidates: Iterable[object] | None = None,
        filter: str | pl.Expr | None = None,
        allow_seen: bool = False,
        unknown: Unknown = "error",
        overwrite: bool = False,
        logger: RunLogger | None = None,
    ) -> Path:
        """Write the k best items of every user (or of `users`) into the file `out`; options as in `recommend`.

        A row per entry: user_id, rank, item_id, title, score, users in the order of the data. The ending says how it is
        written: .parquet, .csv, .tsv or .jsonl; the last three may be compressed (.gz, .zst). Memory does not grow with
        the number of users. What is ready is kept beside `out`, in a folder `OUT.parts`: the same call after a kill
        goes on from there, and `out` is there only when it is complete. Returns its path.

        Raises ArgumentError (also for a file that exists, unless `overwrite`), UnknownIdError.
        """
        now = self._get()
        length = now.list_length(k)
        one_of(unknown, Unknown, "unknown")
        limits = now.limits(exclude, candidates, filter, allow_seen=allow_seen)
        path = file_path(out, "out")
        asked = now.dataset.users.ids.to_list() if users is None else id_list(users, "users")
        with open_logger(logger) as logger:
            return write_lists(now, path, asked, length, limits, unknown, logger, overwrite=overwrite)

    @overload
    def similar(
        self, item: object, k: int = 10, *, as_frame: None = None, **options: Unpack[SimilarOptions]
    ) -> list[Recommendation]: ...

    @overload
    def similar(self, item: object, k: int = 10, *, as_frame: FrameKind, **options: Unpack[SimilarOptions]) -> Any: ...

    def similar(
        self,
        item: object,
        k: int = 10,
        *,
        exclude: Iterable[object] = (),
        candidates: Iterable[object] | None = None,
        filter: str | pl.Expr | None = None,
        as_frame: FrameKind | None = None,
    ) -> Any:
        """The k items that the model finds most similar to `item`, best first; the options are those of `recommend`.

        With `as_frame` a table: query (the item), rank, item_id, title, score. Raises ArgumentError, UnknownIdError.
        """
        now = self._get()
        length = now.list_length(k)
        one_of(as_frame, FrameKind, "as_frame", optional=True)
        found = now.similar(one_id(item, "item"), length, now.limits(exclude, candidates, filter))
        return found.lists()[0] if as_frame is None else found.answer(as_frame)

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
        now = self._get()
        row = now.items.ids.row(one_id(item, "item"), "item")
        if history is None:
            query = now.user_query(one_id(user, "user"))
        else:
            query = now.history_query(id_list(history, "history"))
        if row in query.histories.items:  # otherwise an item would be explained by itself
            query = Queries(query.users, Histories.from_lists([query.histories.items[query.histories.items != row]]))
        return Explanation.from_row(now.items, row, explain_item(now.model, query, row))

    def add_items(self, rows: Any, *, logger: RunLogger | None = None) -> None:
        """Append items to the catalogue; they can be recommended at once.

        `rows`: a list such as [{"item_id": "b7", "title": "…"}], or a polars or pandas DataFrame. Other threads see the
        catalogue before or after all of them.

        Raises DataError for missing, repeated or already known ids, unknown columns, and (for a model that ranks by
        text) an item without text; nothing is added then.
        """
        with self._adding, open_logger(logger) as logger:
            now = self._get()
            needs_text, columns = now.model.abilities.needs_text, self.recipe.text.columns
            table = new_item_table(rows, now.items, needs_text=needs_text, text_columns=columns)
            self._fit = replace(self._get_fit(), fitted=self._with_items(now, table, logger))

    def _with_items(self, now: Fitted, table: pl.DataFrame, logger: RunLogger) -> Fitted:
        """The same with more items, rows of the catalogue's columns, whose texts are encoded as the recipe says."""
        recipe, new = self.recipe, now.items.others(table)
        text = prepare_new_text(now.model.abilities, new, now.items, now.split, recipe.text, recipe.seed, logger)
        return now.with_items(table, text)

    @classmethod
    def _of(cls, fit: Fit) -> Recommender:
        return cls(fit.recipe)._take(fit)

    def _take(self, fit: Fit) -> Recommender:
        self.recipe, self._fit = fit.recipe, fit
        return self

    def _get_fit(self) -> Fit:
        if self._fit is None:
            raise CheckpointError("this recommender is not fitted yet; call .fit(data) or Recommender.load(path)")
        return self._fit

    def _get(self) -> Fitted:
        return self._get_fit().fitted


def evaluate(recommender: Recommender, data: Data | None = None, split: Part = "test") -> Evaluation:
    """Full-ranking metrics of a fitted recommender on its own data or other `data`; see `Recommender.evaluate`."""
    return recommender.evaluate(split, data=data)


def _view(recipe: Recipe, now: Fitted | None) -> View:
    """What a notebook shows: the data it was fitted on, and what it can rank."""
    title, notes = f"Recommender {recipe.model.name}", [recipe.title] if recipe.title else []
    if now is None:
        return View(title, {"state": "not fitted", "seed": str(recipe.seed)}, notes=notes)
    data, split, abilities = now.dataset, now.split, now.model.abilities
    facts = {
        "fitted on": data.name,
        "users": integer(data.num_users),
        "items": integer(data.num_items),
        f"{split.kind}: train / valid / test": " / ".join(
            integer(len(part)) for part in (split.train, split.valid, split.test)
        ),
        "text": f"{recipe.text.encoder}" if abilities.reads_text and data.items.text_columns else "not used",
        "new items": "ranked by text" if abilities.ranks_cold_items else "not ranked",
        "seed": str(recipe.seed),
    }
    return View(title, facts, notes=notes)
