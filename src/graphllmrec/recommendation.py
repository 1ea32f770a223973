"""Results of the front door in external ids and titles: ranked lists, as lists or tables, and explanations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.tables import Ints, Items
from graphllmrec.errors import ArgumentError
from graphllmrec.protocol import RowExplanation
from graphllmrec.report.elements import Cell, Table
from graphllmrec.report.notebook import Share, View, notebook_html
from graphllmrec.terminal import visible

FrameKind = Literal["polars", "pandas"]


@dataclass(frozen=True)
class Recommendation:
    """One place of a ranked list. `title` is None where the catalogue has none."""

    item_id: str
    title: str | None
    score: float

    def __str__(self) -> str:
        return f"{self.score:8.4f}  {visible(self.title or self.item_id)}"

    @staticmethod
    def from_rows(
        items: Items, rows: Ints | Sequence[int], scores: NDArray[Any] | Sequence[float]
    ) -> list[Recommendation]:
        """A ranked list from item rows and their scores; without entries of row -1, or without a finite score."""
        ranking = Ranking(items, "query", [""], np.asarray(rows, dtype=np.int64)[None], np.asarray(scores)[None])
        return ranking.lists()[0]


class RankedList(list[Recommendation]):
    """A list of recommendations, best first; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        return notebook_html(View(f"{len(self)} items", tables={"": _ranked_table(self)}))


class RankedLists(list[list[Recommendation]]):
    """Ranked lists with what each is for; a notebook shows the first ones as tables side by side."""

    SHOWN = 6

    def __init__(self, lists: Sequence[list[Recommendation]], headings: Sequence[str]) -> None:
        super().__init__(lists)
        self._headings = headings

    def _repr_html_(self) -> str:
        first = list(zip(self._headings, self, strict=False))[: self.SHOWN]
        tables = {heading: _ranked_table(entries) for heading, entries in first}
        rest = len(self) - len(first)
        notes = [f"{rest:,} more lists are not shown."] if rest else []
        return notebook_html(View("Recommendations", tables=tables, notes=notes))


@dataclass(frozen=True)
class Ranking:
    """B ranked lists in row numbers, and what each is for. Row -1 and scores that are not finite stand for no entry."""

    items: Items
    kind: str  # column of `queries` in a table: "user_id", "query"
    queries: Sequence[str]  # (B,)
    rows: Ints  # (B, k) item rows, best first
    scores: NDArray[Any]  # (B, k)

    def lists(self) -> RankedLists:
        """A list per query; ids and titles are looked up once for all of them."""
        keep, ids, titles, scores = self._kept()
        found = map(Recommendation, ids.to_list(), titles.to_list(), scores.tolist())
        lists = [RankedList(islice(found, count)) for count in keep.sum(axis=1).tolist()]
        prefix = "user" if self.kind == "user_id" else "the"
        return RankedLists(lists, [f"{prefix} {query}" for query in self.queries])

    def table(self) -> pl.DataFrame:
        """A row per entry: user_id or query, rank (from 1), item_id, title, score. An empty list has no row."""
        keep, ids, titles, scores = self._kept()
        counts = keep.sum(axis=1)
        rank = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        query = pl.Series(self.kind, self.queries, dtype=pl.String).gather(np.repeat(np.arange(len(keep)), counts))
        rank_column, score_column = pl.Series("rank", rank, pl.Int32), pl.Series("score", scores, pl.Float32)
        return pl.DataFrame([query, rank_column, ids.alias("item_id"), titles.alias("title"), score_column])

    def answer(self, as_frame: FrameKind | None) -> Any:
        """`lists`, or `table` as a DataFrame of polars or pandas. Raises ArgumentError without pandas."""
        return self.lists() if as_frame is None else as_dataframe(self.table(), as_frame)

    def _kept(self) -> tuple[NDArray[np.bool_], pl.Series, pl.Series, NDArray[Any]]:
        """Which entries there are (B, k), and ids, titles and scores of these (n,)."""
        keep = (self.rows >= 0) & np.isfinite(self.scores)
        shown, table = self.rows[keep], self.items.table
        untitled = pl.Series("title", [None], dtype=pl.String).new_from_index(0, len(shown))
        titles = table["title"].gather(shown) if "title" in table.columns else untitled
        return keep, self.items.ids.ids.gather(shown), titles, self.scores[keep]


def as_dataframe(table: pl.DataFrame, kind: FrameKind) -> Any:
    """The table as a DataFrame of polars or pandas. Raises ArgumentError without pandas."""
    if kind == "polars":
        return table
    try:
        pandas = import_module("pandas")
    except ModuleNotFoundError:
        raise ArgumentError('as_frame="pandas" needs pandas: pip install pandas, or take as_frame="polars"') from None
    return pandas.DataFrame({  # polars' own way needs pyarrow
        column.name: column.to_list() if column.dtype == pl.String else column.to_numpy() for column in table
    })  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """Why an item got its score: shares that add up to it, the gate of a fused model, and the nearest history items."""

    item_id: str
    title: str | None
    score: float
    shares: dict[str, float]  # "clicks", "text"
    gate: float | None  # weight of the text branch for this item, in [0, 1]
    context: dict[str, float] | None  # {"cold/tail": 0.8, …}
    history: list[Recommendation]  # `score` is the contribution (or similarity) of that history item, largest first

    @staticmethod
    def from_row(items: Items, row: int, found: RowExplanation) -> Explanation:
        """The explanation of item row `row`."""
        near = found.history or []
        history = Recommendation.from_rows(items, [r for r, _ in near], [score for _, score in near])
        item_id, title = items.ids.of([row])[0], items.title(row)
        return Explanation(item_id, title, found.score, found.shares, found.gate, found.context, history)

    def __str__(self) -> str:
        lines = [f"{visible(self.title or self.item_id)}: score {self.score:.4f}"]
        for (name, value), share in zip(self.shares.items(), percentages(self.shares.values()), strict=True):
            lines.append(f"  {share:3d}% from {name} ({value:+.4f})")
        if self.gate is not None:
            lines.append(f"  gate {self.gate:.2f} (0 = clicks only, 1 = text only)")
        context = self.context or {}
        for name, share in zip(context, percentages(context.values()), strict=True):
            lines.append(f"  {share:3d}% as an item that is {name}")
        lines += [f"  because of {entry}" for entry in self.history[:5]]
        return "\n".join(lines)

    def __repr__(self) -> str:
        shares = " ".join(f"{value:+.4f} {name}" for name, value in self.shares.items())
        gate = "" if self.gate is None else f", gate {self.gate:.2f}"
        return f"Explanation({self.item_id!r}, {self.title!r}: score {self.score:.4f} = {shares}{gate})"

    def _repr_html_(self) -> str:
        total = sum(map(abs, self.shares.values())) or 1.0
        shares = [Share(name, f"{value:+.4f}", abs(value) / total, value < 0) for name, value in self.shares.items()]
        facts = {"item_id": self.item_id, "score": f"{self.score:.4f}"}
        if self.gate is not None:
            facts["gate (0 clicks, 1 text)"] = f"{self.gate:.2f}"
        contexts = self.context or {}
        shown = zip(contexts, percentages(contexts.values()), strict=True)
        facts |= {f"as {name}": f"{share}%" for name, share in shown if share}
        near = {"nearest items of the history": _ranked_table(self.history[:5])} if self.history else {}
        return notebook_html(View(self.title or self.item_id, facts, shares, near))


def _ranked_table(entries: Sequence[Recommendation]) -> Table:
    rows: list[list[str | Cell]] = [
        [str(place), entry.title or "", entry.item_id, Cell(f"{entry.score:.4f}", kind="number")]
        for place, entry in enumerate(entries, start=1)
    ]
    return Table(["", "title", "item_id", "score"], rows)


def percentages(values: Iterable[float]) -> list[int]:
    """Shares of the sizes of `values` in whole per cent that add up to 100 (largest remainders); zeros of zeros.

    >>> percentages([0.944, 0.0505, -0.0055])
    [94, 5, 1]
    """
    sizes = [abs(value) for value in values]
    total = sum(sizes)
    if not total or not math.isfinite(total):
        return [0] * len(sizes)
    exact = [100 * size / total for size in sizes]
    found = [math.floor(share) for share in exact]
    for place in sorted(range(len(found)), key=lambda place: found[place] - exact[place])[: 100 - sum(found)]:
        found[place] += 1
    return found
