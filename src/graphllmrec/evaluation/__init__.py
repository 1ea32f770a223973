"""Full ranking, per-user metrics, strata, paired comparisons."""

from graphllmrec.evaluation.compare import Comparison, compare, compare_many
from graphllmrec.evaluation.evaluation import Evaluation, evaluate_model, protocol_line, validation_metric
from graphllmrec.evaluation.rank import best, rank_targets, top_k

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
