"""Ranking metrics: a value per user first, means last.

Of one user let r(1) … r(k) be 1 where the list hits a target and 0 elsewhere, and n the number of that user's targets.

    hr@k        1 if Σ r > 0 else 0
    recall@k    Σ r / n
    precision@k Σ r / k
    mrr@k       1 / (place of the first hit), 0 without one
    map@k       Σ_p r(p) · (Σ_{q≤p} r(q)) / p   /  min(k, n)
    ndcg@k      Σ_p r(p) / log2(p + 1)   /  Σ_{p ≤ min(k, n)} 1 / log2(p + 1)

With one target per user (leave-last-out) hr@k = recall@k, map@k = mrr@k and the ideal DCG is 1.
Coverage, novelty and gini describe all lists together.

`discounts` and `ideal_dcg` compute NDCG from hits, in float64. `gains` and `ideal_gains` are the same formula in
float32, from ranks that are counted without a list (evaluation/rank.py): for tuning and for monitoring.

The examples below: one user with three targets, two of them hit, at the places 2 and 4 of a list of k = 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphllmrec.data.tables import Ints
from graphllmrec.errors import EvaluationError

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]  # (U, K): is the item at this place of the user's list a target?
TUNING_CUTOFF = 20  # k of the NDCG@k that tuning, early stopping and monitoring look at


def hit_matrix(users: Ints, ranks: Ints, num_users: int, k: int) -> Hits:
    """Hits (num_users, k) from the rank (1 = first, 0 = not in the list) and the user row of every target (n,).

    >>> hit_matrix(users=np.array([0, 0, 1]), ranks=np.array([2, 0, 1]), num_users=2, k=3).astype(int)
    array([[0, 1, 0],
           [1, 0, 0]])
    """
    hits = np.zeros((num_users, k), dtype=np.bool_)
    found = (ranks > 0) & (ranks <= k)
    hits[users[found], ranks[found] - 1] = True
    return hits


def hr(hits: Hits, _: Ints, /) -> Floats:
    """Hit rate (U,): is any target in the list?

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> hr(hits, num_targets)
    array([1.])
    """
    found: Floats = hits.max(axis=1).astype(np.float64)
    return found


def recall(hits: Hits, num_targets: Ints) -> Floats:
    """Share (U,) of the targets that are in the list: 2 of 3.

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> recall(hits, num_targets).round(3)
    array([0.667])
    """
    found: Floats = hits.sum(axis=1) / num_targets
    return found


def precision(hits: Hits, _: Ints, /) -> Floats:
    """Share (U,) of the k places that hold a target; places left empty count as misses.

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> precision(hits, num_targets)
    array([0.5])
    """
    found: Floats = hits.mean(axis=1)
    return found


def mrr(hits: Hits, _: Ints, /) -> Floats:
    """Reciprocal rank (U,) of the first hit: 1 / 2.

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> mrr(hits, num_targets)
    array([0.5])
    """
    return np.where(hits.max(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)


def mean_average_precision(hits: Hits, num_targets: Ints) -> Floats:
    """Average precision (U,): precision at the places of the hits, over the number of hits that were possible.

    Here (1 / 2 + 2 / 4) / min(4, 3).

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> mean_average_precision(hits, num_targets).round(3)
    array([0.333])
    """
    k = hits.shape[1]
    at_hit = np.where(hits, hits.cumsum(axis=1) / np.arange(1, k + 1), 0.0)  # (U, k)
    average: Floats = at_hit.sum(axis=1) / np.minimum(k, num_targets)
    return average


def ndcg(hits: Hits, num_targets: Ints) -> Floats:
    """Discounted gain (U,) of binary relevance, divided by that of a list with as many targets in front as fit.

    Here (1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3) + 1 / log2(4)) = (.631 + .431) / 2.131.

    >>> hits, num_targets = np.array([[False, True, False, True]]), np.array([3])
    >>> ndcg(hits, num_targets).round(3)
    array([0.498])
    """
    k = hits.shape[1]
    gain: Floats = (hits @ discounts(k)) / ideal_dcg(num_targets, k)
    return gain


def discounts(k: int) -> Floats:
    """1 / log2(place + 1) (k,) of the places 1 … k: what a hit there adds to the DCG.

    >>> discounts(3).round(3)
    array([1.   , 0.631, 0.5  ])
    """
    out: Floats = 1.0 / np.log2(np.arange(2, k + 2))
    return out


def ideal_dcg(num_targets: Ints, k: int) -> Floats:
    """DCG@k (U,) of the best possible list for so many targets (U,), at least 1 each.

    >>> ideal_dcg(np.array([1, 2, 9]), k=3).round(3)
    array([1.   , 1.631, 2.131])
    """
    ideal: Floats = np.cumsum(discounts(k))[np.minimum(k, num_targets) - 1]
    return ideal


def gains(ranks: Tensor, k: int) -> Tensor:
    """What targets at these ranks (n,), 1 = first, add to the DCG@k (n,) float32: `discounts`, 0 below place k.

    >>> gains(torch.tensor([1, 3, 4]), k=3)
    tensor([1.0000, 0.5000, 0.0000])
    """
    return torch.where(ranks <= k, 1 / torch.log2(ranks + 1.0), 0.0)


def ideal_gains(num_targets: Tensor, k: int) -> Tensor:
    """`ideal_dcg` (U,) in float32.

    >>> ideal_gains(torch.tensor([1, 2, 9]), k=3)
    tensor([1.0000, 1.6309, 2.1309])
    """
    ranks = torch.arange(1, k + 1, device=num_targets.device)
    return gains(ranks, k).cumsum(0)[num_targets.clamp(1, k) - 1]


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
    """Share of the catalogue that is in at least one list. `lists` (U, k) holds item rows, -1 where empty.

    >>> coverage(np.array([[0, 1], [1, -1]]), degree=np.array([4, 2, 1, 1]))
    0.5
    """
    return len(np.unique(lists[lists >= 0])) / len(degree)


def novelty(lists: Ints, degree: Ints) -> float:
    """Mean self-information in bits, -log2(share of all training clicks), of the recommended items.

    `degree` (num_items,) is the training clicks per item; an item without any counts as one with a single click.
    Source: Vargas & Castells, RecSys 2011, with the share of clicks as the probability. Below: items with 4 and 2 of 8
    clicks are 1 and 2 bits, and the second one is shown twice.

    >>> round(novelty(np.array([[0, 1], [1, -1]]), degree=np.array([4, 2, 1, 1])), 3)
    1.667
    """
    shown = lists[lists >= 0]
    bits = -np.log2(np.maximum(degree, 1) / max(int(degree.sum()), 1))
    return float(bits[shown].mean()) if len(shown) else 0.0


def gini(lists: Ints, degree: Ints) -> float:
    """Gini coefficient of how often each item is recommended: 0 = all equally often, towards 1 = always the same.

    >>> gini(np.array([[0, 1], [2, 3]]), degree=np.array([4, 2, 1, 1]))
    0.0
    >>> gini(np.array([[0], [0]]), degree=np.array([4, 2, 1, 1]))
    0.75
    """
    shown = np.sort(np.bincount(lists[lists >= 0], minlength=len(degree)))
    if not shown.sum():
        return 0.0
    n = len(shown)
    return float(((2 * np.arange(1, n + 1) - n - 1) * shown).sum() / (n * shown.sum()))


CATALOGUE_METRICS: dict[str, Callable[[Ints, Ints], float]] = {"coverage": coverage, "novelty": novelty, "gini": gini}


def catalogue_metrics(lists: Ints, degree: Ints, ks: Sequence[int]) -> dict[str, float]:
    """Coverage, novelty and gini of the first k places of all lists, as {"coverage@20": x, …}."""
    return {f"{name}@{k}": metric(lists[:, :k], degree) for k in ks for name, metric in CATALOGUE_METRICS.items()}
