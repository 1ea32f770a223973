"""Full ranking, per-user metrics, strata, paired comparisons, reports."""

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
