"""Ranking metrics: a value per user first, means last.

Of one user let r(1) … r(k) be 1 where the list hits a target and 0 elsewhere, and n the number of that user's targets.

    hr@k        1 if Σ r > 0 else 0
    recall@k    Σ r / n
    precision@k Σ r / k
    mrr@k       1 / (place of the first hit), 0 without one
    map@k       Σ_p r(p) · (Σ_{q≤p} r(q)) / p   /  min(k, n)
    ndcg@k      Σ_p r(p) / log2(p + 1)   /  Σ_{p ≤ min(k, n)} 1 / log2(p + 1)

With one target per user (leave-last-out) hr@k = recall@k, map@k = mrr@k and the ideal DCG is 1.
Of all lists together: coverage, novelty and gini describe what is recommended, whoever it is recommended to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from graphllmrec.data.tables import Ints
from graphllmrec.errors import EvaluationError

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]  # (U, K): is the item at this place of the user's list a target?


def hit_matrix(users: Ints, ranks: Ints, num_users: int, k: int) -> Hits:
    """Hits (num_users, k) from the rank (1 = first, 0 = not in the list) and the user row of every target (n,)."""
    hits = np.zeros((num_users, k), dtype=np.bool_)
    found = (ranks > 0) & (ranks <= k)
    hits[users[found], ranks[found] - 1] = True
    return hits


def hr(hits: Hits, _: Ints, /) -> Floats:
    """Hit rate (U,): is any target in the list?"""
    found: Floats = hits.max(axis=1).astype(np.float64)
    return found


def recall(hits: Hits, num_targets: Ints) -> Floats:
    """Share (U,) of the targets that are in the list."""
    found: Floats = hits.sum(axis=1) / num_targets
    return found


def precision(hits: Hits, _: Ints, /) -> Floats:
    """Share (U,) of the k places that hold a target; places left empty count as misses."""
    found: Floats = hits.mean(axis=1)
    return found


def mrr(hits: Hits, _: Ints, /) -> Floats:
    """Reciprocal rank (U,) of the first hit."""
    return np.where(hits.max(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)


def mean_average_precision(hits: Hits, num_targets: Ints) -> Floats:
    """Average precision (U,) at the places of the hits, divided by the number of hits that were possible."""
    k = hits.shape[1]
    at_hit = np.where(hits, hits.cumsum(axis=1) / np.arange(1, k + 1), 0.0)  # (U, k)
    average: Floats = at_hit.sum(axis=1) / np.minimum(k, num_targets)
    return average


def ndcg(hits: Hits, num_targets: Ints) -> Floats:
    """Binary discounted gain (U,), divided by that of a list with as many targets in front as fit."""
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))  # (k,)
    ideal = np.cumsum(discount)[np.minimum(hits.shape[1], num_targets) - 1]
    gain: Floats = (hits @ discount) / ideal
    return gain


METRICS: dict[str, Callable[[Hits, Ints], Floats]] = {
    "hr": hr,
    "recall": recall,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": mean_average_precision,
    "precision": precision,
}


def parse_metric(metric: str) -> tuple[str, int]:
    """ "ndcg@20" -> ("ndcg", 20). Raises EvaluationError, listing the metrics there are."""
    name, _, k = metric.partition("@")
    if name not in METRICS or not k.isdigit() or int(k) < 1:
        raise EvaluationError(
            f"unknown metric {metric!r}; write one of {', '.join(METRICS)} and a cut-off, e.g. 'ndcg@20'"
        )
    return name, int(k)


def user_metrics(hits: Hits, num_targets: Ints, ks: Sequence[int]) -> dict[str, Floats]:
    """Every metric at every k as {"ndcg@20": (U,), …}, from hits (U, max(ks)) and targets per user (U,), at least 1."""
    return {f"{name}@{k}": metric(hits[:, :k], num_targets) for k in ks for name, metric in METRICS.items()}


def mean_interval(values: Floats) -> tuple[float, float]:
    """95 % confidence interval of the mean over users, normal approximation, within [0, 1]; one user: all of [0, 1]."""
    if len(values) < 2:
        return 0.0, 1.0
    mean, half = float(values.mean()), 1.959964 * float(values.std(ddof=1)) / len(values) ** 0.5
    return max(mean - half, 0.0), min(mean + half, 1.0)


def coverage(lists: Ints, degree: Ints) -> float:
    """Share of the catalogue that is in at least one list. `lists` (U, k) holds item rows, -1 where empty."""
    return len(np.unique(lists[lists >= 0])) / len(degree)


def novelty(lists: Ints, degree: Ints) -> float:
    """Mean self-information in bits, -log2(share of all training clicks), of the recommended items.

    `degree` (num_items,) is the training clicks per item; an item without any counts as one with a single click.
    Source: Vargas & Castells, RecSys 2011, with the share of clicks as the probability.
    """
    shown = lists[lists >= 0]
    bits = -np.log2(np.maximum(degree, 1) / max(int(degree.sum()), 1))
    return float(bits[shown].mean()) if len(shown) else 0.0


def gini(lists: Ints, degree: Ints) -> float:
    """Gini coefficient of how often each item is recommended: 0 = all equally often, towards 1 = always the same."""
    shown = np.sort(np.bincount(lists[lists >= 0], minlength=len(degree)))
    if not shown.sum():
        return 0.0
    n = len(shown)
    return float(((2 * np.arange(1, n + 1) - n - 1) * shown).sum() / (n * shown.sum()))


CATALOGUE_METRICS: dict[str, Callable[[Ints, Ints], float]] = {"coverage": coverage, "novelty": novelty, "gini": gini}


def catalogue_metrics(lists: Ints, degree: Ints, ks: Sequence[int]) -> dict[str, float]:
    """Coverage, novelty and gini of the first k places of all lists, as {"coverage@20": x, …}."""
    return {f"{name}@{k}": metric(lists[:, :k], degree) for k in ks for name, metric in CATALOGUE_METRICS.items()}
