"""What the front door hands out: recommendations and reasons, in external ids and titles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommendation:
    """One place of a ranked list. `title` is None where the catalogue has none."""

    item_id: str
    title: str | None
    score: float

    def __str__(self) -> str:
        return f"{self.score:8.4f}  {self.title or self.item_id}"


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

    def __str__(self) -> str:
        lines = [f"{self.title or self.item_id}: score {self.score:.4f}"]
        total = sum(abs(value) for value in self.shares.values()) or 1.0
        lines += [f"  {abs(value) / total:4.0%} from {name} ({value:+.4f})" for name, value in self.shares.items()]
        if self.gate is not None:
            lines.append(f"  gate {self.gate:.2f} (0 = clicks only, 1 = text only)")
        lines += [f"  {weight:4.0%} as an item that is {name}" for name, weight in (self.context or {}).items()]
        lines += [f"  because of {entry}" for entry in self.history[:5]]
        return "\n".join(lines)
