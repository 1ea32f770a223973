"""Strata: the same lists and the same metrics, of a part of the items or of the users.

Item strata keep the full ranking and narrow what counts as relevant: a user belongs to stratum s with the targets of s,
and the metrics are computed as if those were all of that user's targets. "Degree" is the number of training clicks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from torch import Tensor

from graphllmrec.data.tables import Ints

DEGREE_EDGES = (0, 3, 10, 50)  # upper ends of the degree strata
DEGREES = ("0", "1-3", "4-10", "11-50", ">50")
POPULARITY = ("head", "tail")
ITEM_STRATA = ("item_degree", "item_popularity")
USER_STRATA = ("user_activity",)


def degree_strata(degree: Ints) -> pl.Series:
    """Stratum of every item by its training clicks (num_items,): 0, 1-3, 4-10, 11-50 or >50."""
    bins = np.searchsorted(DEGREE_EDGES, degree, side="left")
    return _labels(bins, DEGREES)


def popularity_strata(degree: Ints) -> pl.Series:
    """ "head" for the most clicked items that together hold just over half of all training clicks, "tail" for the rest.

    Items with as many clicks as the last head item are head as well, so that equal items share a stratum.
    """
    ranked = np.sort(degree)[::-1]
    half = np.searchsorted(np.cumsum(ranked), degree.sum() / 2, side="left")
    border = max(int(ranked[min(half, len(ranked) - 1)]), 1)
    return _labels((degree < border).astype(np.int64), POPULARITY)


def activity_strata(lengths: Ints, bins: int = 4) -> tuple[pl.Series, list[str]]:
    """Stratum of every evaluated user by history length (U,), and the labels in order.

    Quantile bins such as "1-3", "4-7", ">7". Equal lengths share a bin, so there may be fewer than `bins` of them.
    """
    quantiles = np.quantile(lengths, np.arange(1, bins) / bins, method="lower")
    edges = np.unique(quantiles[quantiles < lengths.max()])  # upper ends of all bins but the last
    if not len(edges):
        low, high = int(lengths.min()), int(lengths.max())
        labels = [f"{low}" if low == high else f"{low}-{high}"]
    else:
        lows = [int(lengths.min()), *(int(edge) + 1 for edge in edges[:-1])]
        labels = [f"{low}" if low == edge else f"{low}-{edge}" for low, edge in zip(lows, edges, strict=True)]
        labels.append(f">{edges[-1]}")
    return _labels(np.searchsorted(edges, lengths, side="left"), tuple(labels)), labels


def gate_summary(gamma: Tensor, degree: Tensor, contexts: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean and quartiles of γ (n,) by training clicks (strata of docs/guides/evaluation.md) and by context.

    {"clicks 1-3": {"items": n, "mean": x, "q25": x, "q50": x, "q75": x}, …, "cold/tail": {…}}; an item counts for a
    context as much as it belongs to it. Groups without items are left out.
    """
    strata = degree_strata(degree.long().numpy())
    groups = {f"clicks {name}": torch.from_numpy((strata == name).to_numpy().copy()).float() for name in DEGREES}
    order = gamma.argsort()
    found = {}
    for name, weight in (groups | dict(contexts)).items():
        total = float(weight.sum())
        if total < 1e-6:
            continue
        below = weight[order].double().cumsum(0) / total  # share of the group up to every item, by γ
        quartiles = [float(gamma[order[int((below < share - 1e-12).sum())]]) for share in (0.25, 0.5, 0.75)]
        row = dict(zip(("q25", "q50", "q75"), quartiles, strict=True))
        found[name] = {"items": total, "mean": float((gamma * weight).sum() / total), **row}
    return found


def _labels(index: Ints, names: tuple[str, ...]) -> pl.Series:
    return pl.Series(values=names, dtype=pl.String).gather(index)
