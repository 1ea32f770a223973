"""Explanations of a score and similar items: by the model itself where it can, else from its scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import (
    BranchModel,
    ComparingModel,
    ExplainingModel,
    Model,
    Queries,
    RowExplanation,
    VectorModel,
)

MAX_HISTORY = 512  # newest entries that are scored; each costs one row of scores


@torch.no_grad()
def explain_item(model: Model, query: Queries, item: int) -> RowExplanation:
    """Explanation of the score of item row `item` for one query.

    From the model's own `explain(query, item)` where it has one. Otherwise the shares are those of its branches
    (rescaled by size where they do not add up to the score), or the whole score under "clicks" or "text". Where the
    explanation has no history, each history item is listed with the score of `item` for a history of that item alone:
    the model's own similarity.
    """
    found = model.explain(query, item) if isinstance(model, ExplainingModel) else _by_branch(model, query, item)
    return found if found.history is not None else replace(found, history=_nearest(model, query.histories.items, item))


@torch.no_grad()
def similarities(model: Model, item: int, clicks: Ints | None = None) -> Tensor:
    """Similarity (num_items,) of every item to item row `item`; -inf for those that the model cannot compare with it.

    From the model's own `similar_scores(item)` where it has that, else the cosine of item vectors, else the scores for
    a history of that item alone. Not to be compared are items without a vector, items whose score is the one that they
    get without any history, and, for a model that ranks no cold items, those of no training `clicks` (num_items,).
    """
    found = _similarities(model, item)
    if clicks is None or model.abilities.ranks_cold_items:
        return found
    known = torch.from_numpy(clicks > 0)
    return found.masked_fill(~(known & known[item]), -torch.inf)


def _similarities(model: Model, item: int) -> Tensor:
    if isinstance(model, ComparingModel):
        return model.similar_scores(item)
    if isinstance(model, VectorModel):
        vectors = unit(model.item_vectors())  # (num_items, dim)
        known = vectors.any(1) & vectors[item].any()  # an item without text or clicks may have the zero vector
        return (vectors @ vectors[item]).masked_fill(~known, -torch.inf)
    scores = model.scores(Queries.anonymous(Histories.from_lists([[item], []])))  # (2, num_items)
    return scores[0].masked_fill(scores[0] == scores[1], -torch.inf)


def _by_branch(model: Model, query: Queries, item: int) -> RowExplanation:
    score = float(model.scores(query)[0, item])
    if not isinstance(model, BranchModel):
        return RowExplanation(score, {"text" if model.abilities.needs_text else "clicks": score})
    names = {"graph": "clicks"}
    parts = {names.get(name, name): float(model.branch_scores(query, name)[0, item]) for name in model.branches}
    if not np.isclose(sum(parts.values()), score, rtol=1e-3, atol=1e-5):  # on scales of their own: only sizes count
        total = sum(abs(part) for part in parts.values()) or 1.0
        parts = {name: score * abs(part) / total for name, part in parts.items()}
    return RowExplanation(score, parts)


def _nearest(model: Model, history: Ints, item: int) -> list[tuple[int, float]]:
    """(item row, similarity) of the newest history items, most similar first; empty when all are alike."""
    known = list(dict.fromkeys(history[::-1].tolist()))[:MAX_HISTORY]
    found: list[tuple[int, float]] = []
    for start in range(0, len(known), 64):
        block = known[start : start + 64]
        scores = model.scores(Queries.anonymous(Histories.from_lists([[row] for row in block])))[:, item]  # (<= 64,)
        found.extend(zip(block, scores.tolist(), strict=True))
    if len({score for _, score in found}) == 1 < len(found):  # the history has no influence, as in popularity
        return []
    return sorted((entry for entry in found if np.isfinite(entry[1])), key=lambda entry: -entry[1])
