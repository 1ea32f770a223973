"""What a fitted recommender answers from: a model, the data it was fitted on, and what is known of each user.

It is never changed. More items make another one, so a request that holds one of them sees one catalogue from beginning
to end, whatever other threads add meanwhile. Row numbers and external ids meet here: ids in, ranked rows out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphllmrec.arguments import id_list, list_length
from graphllmrec.data.ids import clean_id
from graphllmrec.data.item_filter import matching
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, Histories, Ints, Items
from graphllmrec.errors import UnknownIdError
from graphllmrec.evaluation.rank import Floats, best, top_k
from graphllmrec.models.explain import similarities
from graphllmrec.protocol import Logger, Model, Queries, TextVectors
from graphllmrec.recommendation import Ranking

Unknown = Literal["error", "skip", "popular"]
_GIVEN = {
    "error": "an empty list",
    "skip": "an empty list",
    "popular": "the most popular items, scored by their clicks",
}
_AT_ONCE = 512  # queries that are scored again together
_NAMED = 20  # unknown ids that a warning names


class SimilarOptions(TypedDict, total=False):
    """Which items `similar` may name."""

    exclude: Iterable[object]
    candidates: Iterable[object] | None
    filter: str | pl.Expr | None


class ListOptions(SimilarOptions, total=False):
    """Which items lists may hold, and what unknown users get."""

    allow_seen: bool
    unknown: Unknown


@dataclass(frozen=True)
class Limits:
    """Which items lists may hold, in row numbers."""

    allowed: NDArray[np.bool_] | None = None  # (num_items,); None: all
    allow_seen: bool = False  # items of the query's own history too


@dataclass(frozen=True)
class Fitted:
    """Model, catalogue, users and histories that belong together."""

    model: Model
    dataset: Dataset  # added items included
    split: Split  # the split the model was fitted on
    histories: Histories  # (num_users rows) all that is known of each user
    run: str | None = None  # identity of the run folder that holds exactly this

    @staticmethod
    def of(model: Model, dataset: Dataset, split: Split, run: str | None = None) -> Fitted:
        """With the histories of the split."""
        return Fitted(model, dataset, split, split.interactions().histories(split.num_users), run)

    @property
    def items(self) -> Items:
        """The catalogue."""
        return self.dataset.items

    def with_items(self, table: pl.DataFrame, text: TextVectors) -> Fitted:
        """The same with more items: rows of the catalogue's columns, and their text vectors."""
        items = self.items.extended(table)
        model, split = self.model.with_items(text), replace(self.split, num_items=len(items))
        return Fitted(model, replace(self.dataset, items=items), split, self.histories)

    def list_length(self, k: Any) -> int:
        """Length of lists: k, at most the number of items. Raises ArgumentError for an impossible one."""
        return min(list_length(k), max(len(self.items), 1))

    def limits(
        self,
        exclude: Iterable[object],
        candidates: Iterable[object] | None,
        condition: Any,
        *,
        allow_seen: bool = False,
    ) -> Limits:
        """Limits from the arguments of the front door. Raises ArgumentError, UnknownIdError without any candidate."""
        excluded = self._known_rows(id_list(exclude, "exclude"), "exclude")
        if candidates is None and condition is None and not len(excluded):
            return Limits(None, allow_seen)
        allowed = np.full(len(self.items), candidates is None)
        if candidates is not None:
            chosen = self._known_rows(id_list(candidates, "candidates"), "candidates")
            if not len(chosen):
                raise UnknownIdError("no item of candidates is known")
            allowed[chosen] = True
        if condition is not None:
            allowed &= matching(self.items, condition)
        allowed[excluded] = False
        return Limits(allowed, allow_seen)

    def find_users(self, users: Sequence[object], unknown: Unknown) -> tuple[list[str], Ints]:
        """Ids and rows (B,) of users; -1 for unknown ones, which are named in a warning. Raises UnknownIdError."""
        rows = self.dataset.users.rows(users)
        names = [clean_id(user) or str(user) for user in users]
        strangers = [name for name, row in zip(names, rows, strict=True) if row < 0]
        if strangers and unknown == "error":
            raise self._unknown_user(strangers[0])
        if strangers:
            warn_of(strangers, f"unknown users get {_GIVEN[unknown]}")
        return names, rows

    def for_users(
        self, names: Sequence[str], rows: Ints, k: int, limits: Limits, unknown: Unknown, logger: Logger | None = None
    ) -> Ranking:
        """A list per user of these ids and rows (B,); for row -1 an empty one, or with "popular" the most popular."""
        known = rows >= 0
        ranked, silent = self._rank(Queries.of(self.histories, rows[known]), known, k, limits, unknown, logger)
        if silent.any():
            what = f"users of whose histories {self.model.name} knows nothing get {_GIVEN[unknown]}"
            warn_of([name for name, nothing in zip(names, silent, strict=True) if nothing], what)
        return Ranking(self.items, "user_id", names, *ranked)

    def for_history(self, history: Sequence[object], k: int, limits: Limits, unknown: Unknown = "error") -> Ranking:
        """One list for an unknown user; a history of which the model knows no item as `unknown` says.

        Raises UnknownIdError.
        """
        query = self.history_query(history, needs_known=unknown == "error")
        known = np.array([self._has_known_item(query.histories.items)])
        if not known.all():
            query = Queries.anonymous(Histories.from_lists([]))
        ranked, silent = self._rank(query, known, k, limits, unknown, None)
        if silent.any() and unknown == "error":
            raise UnknownIdError(
                f"{self.model.name} knows nothing of the items of the history; add an item that has clicks"
            )
        if silent.any() or not known.all():
            warn_of([], f"a history without any item that {self.model.name} knows gets {_GIVEN[unknown]}")
        return Ranking(self.items, "query", ["history"], *ranked)

    def similar(self, item: object, k: int, limits: Limits) -> Ranking:
        """The items that the model finds most similar to `item`, without itself; fewer where it can compare no more.

        None, with a warning, where it knows nothing of `item`. Raises UnknownIdError.
        """
        row = self.items.ids.row(item, "item")
        alike = similarities(self.model, row, self.split.item_degree()).clone()
        alike[row] = -torch.inf
        if not alike.isfinite().any():
            reads = "clicks and text" if self.model.abilities.reads_text else "clicks"
            warn_of(
                [], f"no items similar to {str(item)!r}: {self.model.name} compares items by {reads}, and this has none"
            )
        scores = _limited(alike[None], limits)  # (1, num_items); `best` writes into it
        found = best(scores, Histories.from_lists([[row]]), k, name=self.model.name)
        return Ranking(self.items, "query", self.items.ids.of([row]), *found)

    def user_query(self, user: object) -> Queries:
        """The query of one known user. Raises UnknownIdError."""
        row = self.dataset.users.rows([user])
        if row[0] < 0:
            raise self._unknown_user(user)
        return Queries.of(self.histories, row)

    def history_query(self, history: Sequence[object], *, needs_known: bool = True) -> Queries:
        """The query of an unknown user. Raises UnknownIdError where it `needs_known` items and has none."""
        rows = self.items.ids.rows(history)
        listed = ", ".join(repr(str(value)) for value in history[:5]) or "nothing"
        if needs_known and not (rows >= 0).any():
            raise UnknownIdError(f"no item of the history is known (found {listed})")
        if needs_known and not self._has_known_item(rows[rows >= 0]):
            what = f"no item of the history has clicks in the training data (found {listed})"
            hint = "add an item that has clicks, or ask a model that reads text"
            raise UnknownIdError(f"{what}, and {self.model.name} knows items by their clicks only; {hint}")
        known = self._known_rows(history, "the history")
        first = np.sort(np.unique(known, return_index=True)[1])  # a repeated item counts once, as in the data
        return Queries.anonymous(Histories.from_lists([known[first]]))

    def _rank(
        self,
        queries: Queries,
        known: NDArray[np.bool_],
        k: int,
        limits: Limits,
        unknown: Unknown,
        logger: Logger | None,
    ) -> tuple[tuple[Ints, Floats], NDArray[np.bool_]]:
        """Item rows and scores (B, k), and for which of the `known` (B,) queries the model has nothing to say (B,).

        Those and queries that are not known have no items, or with "popular" the most popular ones.
        """
        rows = np.full((len(known), k), -1, dtype=np.int64)
        scores = np.full((len(known), k), -np.inf, dtype=np.float32)
        seen = Histories.from_lists([[]] * len(queries)) if limits.allow_seen else queries.histories
        found, found_scores = top_k(self.model, queries, seen, max(k, 2), allowed=limits.allowed, logger=logger)
        rows[known], scores[known] = found[:, :k], found_scores[:, :k]
        silent = np.zeros(len(known), dtype=np.bool_)
        silent[known] = self._says_nothing(queries, found_scores)
        rows[silent], scores[silent] = -1, -np.inf  # an arbitrary choice among equals is no recommendation
        if unknown == "popular" and (others := silent | ~known).any():
            clicks = torch.from_numpy(self.split.item_degree().astype(np.float32))
            seen = Histories.from_lists([[]])
            rows[others], scores[others] = best(_limited(clicks[None], limits), seen, k)
        return (rows, scores), silent

    def _says_nothing(self, queries: Queries, scores: Floats) -> NDArray[np.bool_]:
        """Queries (B,) for which the model tells no item with clicks from another; `scores` (B, ≥ 2): of the best.

        A model of clicks alone can have a reason for that (all items are equally popular), but not at score 0.
        """
        tied = (scores == scores[:, :1]) | ~np.isfinite(scores)
        if not self.model.abilities.ranks_cold_items:
            tied &= (scores == 0) | ~np.isfinite(scores)
        silent: NDArray[np.bool_] = tied.all(1)
        clicked = torch.from_numpy(np.flatnonzero(self.split.item_degree()))
        for rows in np.split(asked := np.flatnonzero(silent), range(_AT_ONCE, len(asked), _AT_ONCE)):  # few
            all_scores = self.model.scores(Queries(queries.users[rows], queries.histories.take(rows)))
            of_clicked = all_scores.index_select(1, clicked)
            silent[rows] = (of_clicked == of_clicked[:, :1]).all(1).numpy()
        return silent

    def _has_known_item(self, rows: Ints) -> bool:
        """Is an item among these rows that the model knows? A model of clicks knows those with training clicks."""
        if self.model.abilities.ranks_cold_items:
            return len(rows) > 0
        return bool(self.split.item_degree()[rows].any())

    def _unknown_user(self, user: object) -> UnknownIdError:
        try:
            self.dataset.users.row(user, "user")
        except UnknownIdError as error:
            hint = "for an unknown user, give a history of item ids (--history) instead"
            return UnknownIdError(f"{error}; {hint}, or say what unknown users get (unknown='skip' or 'popular')")
        raise AssertionError(f"user {user!r} is known")

    def _known_rows(self, ids: Sequence[object], what: str) -> Ints:
        """Rows of these item ids; unknown ones are named in a warning and left out."""
        rows = self.items.ids.rows(ids)
        unknown = [str(value) for value, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            warn_of(unknown, f"unknown items of {what} are ignored")
        return rows[rows >= 0]


def warn_of(ids: Sequence[str], what: str) -> None:
    """A warning that names some of the ids that it is about; it points to the line that called the front door."""
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    warnings.warn(f"{what}: {', '.join(ids[:_NAMED])}{more}" if ids else what, stacklevel=_outside())


def _outside() -> int:
    """Stack level, as seen from the caller, of the first frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("graphllmrec."):
        level, frame = level + 1, frame.f_back
    return level


def _limited(scores: Tensor, limits: Limits) -> Tensor:
    """Scores (B, num_items) with -inf for what lists may not hold."""
    if limits.allowed is None:
        return scores
    return scores.masked_fill(~torch.from_numpy(limits.allowed), -torch.inf)
