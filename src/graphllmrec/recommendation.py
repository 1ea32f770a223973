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
        return [list(islice(entries, count)) for count in keep.sum(axis=1).tolist()]


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
