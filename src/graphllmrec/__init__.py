"""GraphLLMRec: recommenders that combine user clicks with item texts. The whole public API on one screen.

    from graphllmrec import Recommender, compare, evaluate, load_data

    data = load_data("data/amazon-scientific")
    hybrid = Recommender.from_recipe("hybrid").fit(data)
    hybrid.recommend(users=["A3L1RF2"], k=10)           # titles and scores
    hybrid.recommend(history=["B00004U9JP"])            # an unknown user
    hybrid.add_items([{"item_id": "b7", "title": "…"}])  # an item without clicks: recommended at once
    evaluate(hybrid).overall["ndcg@20"]                  # full ranking on the test part

Names are imported when they are first used: `import graphllmrec` loads neither torch nor polars.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphllmrec.data.read import load_data
    from graphllmrec.data.tables import Dataset
    from graphllmrec.errors import GraphLLMRecError
    from graphllmrec.evaluation.compare import compare
    from graphllmrec.evaluation.evaluation import Evaluation
    from graphllmrec.proposal import Proposal, propose
    from graphllmrec.recipe import Recipe
    from graphllmrec.recommendation import Explanation, Recommendation
    from graphllmrec.recommender import Recommender, evaluate
    from graphllmrec.report.runs import save_report

_HOME = {
    "Dataset": "graphllmrec.data.tables",
    "Evaluation": "graphllmrec.evaluation.evaluation",
    "GraphLLMRecError": "graphllmrec.errors",
    "Explanation": "graphllmrec.recommendation",
    "Proposal": "graphllmrec.proposal",
    "Recipe": "graphllmrec.recipe",
    "Recommendation": "graphllmrec.recommendation",
    "Recommender": "graphllmrec.recommender",
    "compare": "graphllmrec.evaluation.compare",
    "evaluate": "graphllmrec.recommender",
    "load_data": "graphllmrec.data.read",
    "propose": "graphllmrec.proposal",
    "save_report": "graphllmrec.report.runs",
}

__all__ = [
    "Dataset",
    "Evaluation",
    "Explanation",
    "GraphLLMRecError",
    "Proposal",
    "Recipe",
    "Recommendation",
    "Recommender",
    "compare",
    "evaluate",
    "load_data",
    "propose",
    "save_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'graphllmrec' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
