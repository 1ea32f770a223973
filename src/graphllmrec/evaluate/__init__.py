"""Full ranking, per-user metrics, strata, paired comparisons, reports.

`from graphllmrec import evaluate` gives this folder, and calling it evaluates a recommender: `evaluate(recommender)`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from graphllmrec.data.split import Part
from graphllmrec.data.tables import Dataset
from graphllmrec.evaluate.compare import Comparison, compare, compare_many
from graphllmrec.evaluate.evaluation import Evaluation, evaluate_model, protocol_line, validation_metric
from graphllmrec.evaluate.rank import best, rank_targets, top_k

__all__ = [
    "Comparison",
    "Evaluation",
    "best",
    "compare",
    "compare_many",
    "evaluate_model",
    "protocol_line",
    "rank_targets",
    "top_k",
    "validation_metric",
]

if TYPE_CHECKING:
    from graphllmrec.recommender import Recommender


class _CallableFolder(ModuleType):
    # Importing a folder sets its name in the package, over any function of that name; so the folder itself is callable.

    def __call__(
        self, recommender: Recommender, data: Dataset | str | Path | None = None, split: Part = "test"
    ) -> Evaluation:
        """Full-ranking metrics of a fitted recommender on its own data or other `data`; see `Recommender.evaluate`."""
        return recommender.evaluate(split, data=data)


sys.modules[__name__].__class__ = _CallableFolder
