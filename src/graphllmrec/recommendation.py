"""Results of the front door in external ids and titles: recommendations and explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphllmrec.data.tables import Ints, Items
from graphllmrec.protocol import RowExplanation
from graphllmrec.report.elements import Cell, Table
from graphllmrec.report.notebook import Share, View, notebook_html
from graphllmrec.terminal import visible


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
        return Recommendation.from_lists(items, np.asarray(rows, dtype=np.int64)[None], np.asarray(scores)[None])[0]

    @staticmethod
    def from_lists(items: Items, rows: Ints, scores: NDArray[Any]) -> list[list[Recommendation]]:
        """`from_rows` of B lists at once, rows and scores (B, k): ids and titles are looked up once for all."""
        keep = (rows >= 0) & np.isfinite(scores)
        shown, table = rows[keep], items.table
        titles = table["title"].gather(shown).to_list() if "title" in table.columns else [None] * len(shown)
        entries = map(Recommendation, items.ids.of(shown), titles, scores[keep].tolist())
        return [RankedList(islice(entries, count)) for count in keep.sum(axis=1).tolist()]


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
        item_id, title = items.ids.of([row])[0], items.titles[row]
        return Explanation(item_id, title, found.score, found.shares, found.gate, found.context, history)

    def __str__(self) -> str:
        lines = [f"{visible(self.title or self.item_id)}: score {self.score:.4f}"]
        total = sum(abs(value) for value in self.shares.values()) or 1.0
        lines += [f"  {abs(value) / total:4.0%} from {name} ({value:+.4f})" for name, value in self.shares.items()]
        if self.gate is not None:
            lines.append(f"  gate {self.gate:.2f} (0 = clicks only, 1 = text only)")
        lines += [f"  {weight:4.0%} as an item that is {name}" for name, weight in (self.context or {}).items()]
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
        contexts = {name: weight for name, weight in (self.context or {}).items() if weight >= 0.005}
        facts |= {f"as {name}": f"{weight:.0%}" for name, weight in contexts.items()}
        near = {"nearest items of the history": _ranked_table(self.history[:5])} if self.history else {}
        return notebook_html(View(self.title or self.item_id, facts, shares, near))


def _ranked_table(entries: Sequence[Recommendation]) -> Table:
    rows: list[list[str | Cell]] = [
        [str(place), entry.title or "", entry.item_id, Cell(f"{entry.score:.4f}", kind="number")]
        for place, entry in enumerate(entries, start=1)
    ]
    return Table(["", "title", "item_id", "score"], rows)
