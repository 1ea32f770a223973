"""GraphLLMRec: recommenders that fuse what people click with what items say. The whole public API on one screen.

    from graphllmrec import Recommender, compare, evaluate, load_data

    data = load_data("data/amazon-scientific")
    hybrid = Recommender.from_recipe("hybrid").fit(data)
    hybrid.recommend(users=["A3L1RF2"], k=10)           # titles and scores
    hybrid.recommend(history=["B00004U9JP"])            # somebody new
    hybrid.add_items([{"item_id": "b7", "title": "…"}])  # an item that nobody has clicked: recommended at once
    evaluate(hybrid).overall["ndcg@20"]                  # full ranking on the test part

Names are imported when they are first used: `import graphllmrec` loads neither torch nor polars.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from graphllmrec.data.read import load_data
    from graphllmrec.data.split import Part
    from graphllmrec.data.tables import Dataset
    from graphllmrec.errors import GraphLLMRecError
    from graphllmrec.evaluate import Evaluation
    from graphllmrec.evaluate.compare import compare
    from graphllmrec.recipe import Recipe
    from graphllmrec.recommender import Recommender
    from graphllmrec.results import Reason, Recommendation

    def evaluate(
        recommender: Recommender, data: Dataset | str | Path | None = None, split: Part = "test"
    ) -> Evaluation:
        """Full-ranking metrics of a fitted recommender; see `Recommender.evaluate`."""


_HOME = {
    "Dataset": "graphllmrec.data.tables",
    "Evaluation": "graphllmrec.evaluate",
    "GraphLLMRecError": "graphllmrec.errors",
    "Reason": "graphllmrec.results",
    "Recipe": "graphllmrec.recipe",
    "Recommendation": "graphllmrec.results",
    "Recommender": "graphllmrec.recommender",
    "compare": "graphllmrec.evaluate.compare",
    "load_data": "graphllmrec.data.read",
}

__all__ = [
    "Dataset",
    "Evaluation",
    "GraphLLMRecError",
    "Reason",
    "Recipe",
    "Recommendation",
    "Recommender",
    "compare",
    "evaluate",
    "load_data",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name == "evaluate":  # the folder of that name, which can be called
        return import_module("graphllmrec.evaluate")
    if name not in _HOME:
        raise AttributeError(f"module 'graphllmrec' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
