"""Looks at a dataset and proposes a recipe for it, with the reasons, the expected time and the expected memory.

proposal = propose(load_data("shop"))
proposal.recipe, proposal.reasons, proposal.minutes, proposal.gigabytes
Path("recipe.toml").write_text(proposal.to_toml())

The rules are those of docs/tutorials/choosing-a-model.md; the figures behind them are in docs/figures.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from graphllmrec.data.config import DataConfig
from graphllmrec.data.prepare import split_dataset
from graphllmrec.data.stats import statistics
from graphllmrec.data.tables import Dataset
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.text.config import NGRAMS
from graphllmrec.text.language import FOREIGN_LIMIT, UNKNOWN_LIMIT, text_figures

FEW_CLICKS = 5_000  # below, a trained model has too little to learn from
MANY_CLICKS = 500_000  # above, four trained experts and a gate take hours on a laptop
HUGE_CLICKS = 5_000_000  # above, propagating over the whole graph in every step takes days
DENSE_ITEMS = 20_000  # EASE's matrix of items × items has 1.6 GB then
COLD_SHARE = 0.05  # of the test targets, from which new items are worth a measurement of their own
HAS_TEXT = 0.5  # share of items with text, from which models read it
TEXTS_PER_SECOND = 160.0  # packaged encoder in float32, two cores: benchmarks/results/encode.json
LEAST, MOST = 0.5, 3.0  # a fit takes between so many times the estimate


@dataclass(frozen=True)
class Cost:
    """Time and memory of a fit on two idle cores, from measured fits (benchmarks/results)."""

    fixed: float  # seconds
    per_click: float  # seconds per training click
    per_item_cubed: float = 0.0
    bytes_per_pair: float = 0.0  # of items × items
    bytes_per_node: float = 4_000.0  # of users + items: vectors, their gradients, and what validation ranks


COSTS = {
    "ease": Cost(3, 1e-5, per_item_cubed=5e-12, bytes_per_pair=5.0),
    "z-sum": Cost(3, 1.5e-4, per_item_cubed=5e-12, bytes_per_pair=5.0),
    "sign": Cost(5, 1.2e-3),
    "hybrid": Cost(10, 1.8e-3),
    "textgcn": Cost(5, 1e-4),
    "lightgcn-fast": Cost(5, 1.3e-3),
    "lightgcn-fast, no order": Cost(5, 3e-4),
    "lightgcn-sampled": Cost(30, 3e-3),
    "graphsage": Cost(30, 4e-3),
}
SAMPLED = {  # no packaged recipe: LightGCN whose steps do not grow with the graph
    "name": "lightgcn-sampled", "loss": "softmax", "negatives": 1_000, "fanouts": [10, 10], "num_layers": 2,
    "epochs": 5, "batch_size": 4_096, "learning_rate": 0.005,
}  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """A recipe for a dataset, and why."""

    name: str  # the packaged recipe, or the model where there is none
    recipe: Recipe
    reasons: tuple[str, ...]
    hints: tuple[str, ...]  # what to look at, or to try
    minutes: tuple[float, float]  # of the fit on two idle cores, the first encoding of the texts included
    gigabytes: tuple[float, float]  # of memory
    statistics: dict[str, Any] = field(repr=False)  # what was understood of the data (data/stats.py)
    changes: dict[str, Any] = field(default_factory=dict, repr=False)  # sections of the file; defaults left out

    def to_toml(self) -> str:
        """The recipe as TOML with its reasons as comments; settings at their defaults are left out."""
        figures = self.statistics
        head = [
            f"Proposed for {figures['name']}: {figures['users']:,} users, {figures['items']:,} items, "
            f"{figures['interactions']:,} interactions, order: {figures['order'] or 'none'}, "
            f"items with text: {figures['items_with_text']:.0%}.",
            f"Expected on two idle cores: {self.time()}, {self.memory()}.",
            *(f"Why: {reason}" for reason in self.reasons),
            *(f"Look at: {hint}" for hint in self.hints),
        ]
        lines = "".join(f"# {' '.join(line.split())}\n" for line in head)
        return f"{lines}\n{tomli_w.dumps(self.changes)}"

    def time(self) -> str:
        """ "2 to 9 minutes"."""
        least, most = self.minutes
        return f"{_number(least * 60)} to {_number(most * 60)} seconds" if most < 2 else (
            f"{_number(least)} to {_number(most)} minutes" if most < 120 else
            f"{_number(least / 60)} to {_number(most / 60)} hours"
        )  # fmt: skip

    def memory(self) -> str:
        """ "1 to 2 GB of memory"."""
        return f"{self.gigabytes[0]:.1f} to {self.gigabytes[1]:.1f} GB of memory"

    def values(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "name": self.name,
            "recipe": self.recipe.values(),
            "reasons": list(self.reasons),
            "hints": list(self.hints),
            "minutes": list(self.minutes),
            "gigabytes": list(self.gigabytes),
            "statistics": self.statistics,
        }


def propose(dataset: Dataset) -> Proposal:
    """A recipe for the dataset, with reasons and expected cost. Raises DataError where it cannot be split."""
    figures = statistics(dataset, split_dataset(dataset, DataConfig(), seed=0)) | {"text": text_figures(dataset.items)}
    name, reasons = _choose(figures)
    model = SAMPLED if name == "lightgcn-sampled" else load_recipe(name).values()["model"]
    model = model if name != "graphsage" else {"name": "graphsage", "ids": False}
    changes: dict[str, Any] = {"title": f"{name} for {figures['name']}", "model": _given(model)}
    unordered = load_recipe(name).unordered if name not in ("lightgcn-sampled", "graphsage") else {}
    if unordered:
        changes["unordered"] = dict(unordered)
    if load_recipe(changes).build_model().abilities.reads_text and _is_foreign(figures["text"]):
        changes["text"] = {"encoder": NGRAMS}
        reasons.append(f"the texts look like {figures['text']['language']}; the packaged encoder knows English only")
    time, memory = _cost(name, figures)
    return Proposal(
        name, load_recipe(changes), tuple(reasons), tuple(_hints(dataset, figures)), time, memory, figures, changes
    )


def _given(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model without those at their defaults."""
    config = load_recipe({"model": dict(model)}).model.config
    values = config.model_dump(mode="json", exclude_none=True)
    return {"name": str(model["name"])} | {key: value for key, value in values.items() if config.changed(key)}


def _choose(figures: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A recipe and the reasons; see docs/tutorials/choosing-a-model.md."""
    clicks, items, share = figures["interactions"], figures["items"], figures["items_with_text"]
    if share < HAS_TEXT:
        text = "no item has text" if not share else f"only {share:.0%} of the items have text"
        return _of_clicks(figures, text)
    text = f"{share:.0%} of the items have text, so new and rare items can be ranked by it"
    if not figures["order"]:
        why = "the interactions have no order, so nothing can be learned from what follows what; textgcn needs none"
        return "textgcn", [text, why]
    if clicks < FEW_CLICKS:
        why = f"{clicks:,} interactions are few: z-sum trains nothing and only tunes weights of simple models"
        return "z-sum", [text, why]
    order = "the interactions have an order, so transitions and the newest clicks count"
    if clicks <= MANY_CLICKS:
        best = "of the models measured on all four data sets, hybrid has the highest mean (docs/figures.md)"
        return "hybrid", [text, order, best]
    if clicks <= HUGE_CLICKS:
        why = f"with {clicks:,} interactions the hybrid takes hours; sign is most of it in one training"
        return "sign", [text, order, why]
    why = f"with {clicks:,} interactions a step must not grow with the graph: graphsage samples neighbours"
    return "graphsage", [
        text,
        why,
        f"ids = false: embeddings of {items:,} items would make a step as large as the graph",
    ]


def _of_clicks(figures: Mapping[str, Any], text: str) -> tuple[str, list[str]]:
    """A recipe that reads no text."""
    clicks, items = figures["interactions"], figures["items"]
    reasons = [f"{text}, so the model learns from clicks alone"]
    if items <= DENSE_ITEMS:
        why = (
            f"ease is fitted in closed form; its matrix of {items:,} × {items:,} items has {items**2 * 4 / 1e9:.1f} GB"
        )
        return "ease", [*reasons, why]
    if clicks <= HUGE_CLICKS:
        why = f"ease would need {items**2 * 4 / 1e9:,.1f} GB for {items:,} items; lightgcn-fast has no such matrix"
        return "lightgcn-fast", [*reasons, why]
    why = f"with {clicks:,} interactions a step must not grow with the graph: it samples 10 neighbours per layer"
    return "lightgcn-sampled", [*reasons, why]


def _is_foreign(text: Mapping[str, Any]) -> bool:
    """Are the item texts in a language that the packaged encoder does not know?"""
    foreign = 1 - text["scripts"].get("Latin", 0.0) if text["scripts"] else 0.0
    return foreign >= FOREIGN_LIMIT or (text["unknown_tokens"] or 0.0) >= UNKNOWN_LIMIT


def _hints(dataset: Dataset, figures: Mapping[str, Any]) -> list[str]:
    """What to look at before trusting the figures."""
    hints, cold = list(figures["notes"]), figures["split"]["test_targets_cold"]
    if cold >= COLD_SHARE and figures["items_with_text"] >= HAS_TEXT:
        hints.append(
            f"{cold:.0%} of the test targets are items without a training click; measure new items by themselves with "
            "--set data.split=cold-item"
        )
    if dataset.interactions.rating is not None:
        hints.append("all ratings count as interest, low ones too; keep those of 4 and more with data.min_rating = 4")
    if figures["split"]["test_users"] < 1_000:
        hints.append(
            f"{figures['split']['test_users']:,} test users: differences below some 10 % will not be significant"
        )
    return hints


def _cost(name: str, figures: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Minutes and gigabytes of a fit, each from and to."""
    known = "lightgcn-fast, no order" if name == "lightgcn-fast" and not figures["order"] else name
    cost, items, users = COSTS[known], figures["items"], figures["users"]
    seconds = cost.fixed + cost.per_click * figures["split"]["train"] + cost.per_item_cubed * items**3
    reads = figures["items_with_text"] if name in ("z-sum", "sign", "hybrid", "textgcn", "graphsage") else 0.0
    seconds += (items * reads) / TEXTS_PER_SECOND
    room = 0.5 + 0.3 * (reads > 0)  # torch and the tables; the language model
    room += (cost.bytes_per_pair * items**2 + cost.bytes_per_node * (items + users)) / 1e9
    return (LEAST * seconds / 60, MOST * seconds / 60), (0.7 * room, 2.0 * room)


def _number(value: float) -> str:
    """Two leading digits."""
    return f"{value:.1f}" if value < 1 else f"{float(f'{value:.2g}'):,.0f}"
