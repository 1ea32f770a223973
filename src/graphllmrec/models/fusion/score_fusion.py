"""Tune the sum of several models on validation users: the weight of each, and its recency decay.

Every model is scored once per decay, its scores are z-scored per user, and of each user only the items that any of the
models ranks highly are kept. A trial of other weights or decays is then a weighted sum of small arrays and a
comparison with the target. The error is small: an item that is left out has KEPT better ones in each model alone, at
any decay, and in their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.evaluation.metrics import TUNING_CUTOFF, gains, ideal_gains
from graphllmrec.evaluation.rank import rank_of_target
from graphllmrec.protocol import Queries

KEPT = 100  # best items kept per user and model
_FAR = -1e4  # z-score of a masked item; finite, because 0 · -inf is NaN
_PAIRS = 64  # pairs of user and target ranked at a time: fits the cache, and one thread
_BLOCK = 20_000_000  # scores held at a time while collecting: 80 MB
_GRID = 5  # the search starts from all weights that are multiples of 1 / _GRID
_STEPS = (0.1, 0.05, 0.02)  # weight moved between two models, from coarse to fine


def zscores(scores: Tensor) -> Tensor:
    """Each row (B, num_items) shifted to mean 0 and scaled to standard deviation 1; a constant row becomes 0."""
    if not len(scores):
        return scores
    mean = scores.mean(1, keepdim=True)  # (B, 1)
    centred = scores - mean
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / scores.shape[1] ** 0.5  # quicker than std_mean
    varies = std > 1e-6 * mean.abs()  # more than the rounding of a constant row
    return centred.mul_(torch.where(varies, 1 / std, 0.0))


@dataclass(frozen=True)
class Variant:
    """One model at one recency decay; None leaves the model as it is."""

    model: Any
    decay: float | None

    def apply(self) -> None:
        """Set the model to this decay."""
        if self.decay is not None:
            self.model.decay = self.decay

    def zscores(self, queries: Queries) -> Tensor:
        """z-scored scores (B, num_items)."""
        self.apply()
        return zscores(self.model.scores(queries))


@dataclass(frozen=True)
class ScoreTable:
    """The z-scores of V variants for U users: their C candidates, and their P targets."""

    candidates: Tensor  # (V, U, C)
    targets: Tensor  # (V, P)
    row: Tensor  # (P,) row of the user that a target belongs to
    rivals: Tensor  # (P, C) bool: the candidate is not the target itself
    ideal: Tensor  # (P,) DCG@20 of the best possible list of the target's user

    def ndcg(self, chosen: Sequence[int], weights: Tensor) -> float:
        """Mean NDCG@20 over users of Σ_e weights[e] · z[chosen[e]]; equal scores count against the target."""
        parts = [(variant, float(weight)) for variant, weight in zip(chosen, weights, strict=True) if weight > 0]
        ranks = []
        for start in range(0, len(self.row), _PAIRS):
            pairs = slice(start, start + _PAIRS)
            lead = torch.zeros(self.rivals[pairs].shape)  # of the candidate over the target
            for variant, weight in parts:
                scores = self.candidates[variant].index_select(0, self.row[pairs])  # (p, C)
                lead.add_(scores.sub_(self.targets[variant, pairs, None]), alpha=weight)
            ranks.append(rank_of_target(lead, 0.0, self.rivals[pairs]))
        gain = gains(torch.cat(ranks), TUNING_CUTOFF) / self.ideal  # (P,)
        return float(gain.sum(dtype=torch.float64)) / self.candidates.shape[1]


def build_score_table(
    variants: Sequence[Variant], groups: Sequence[Sequence[int]], split: Split, users: Ints
) -> ScoreTable:
    """Score `variants` for the validation queries of `users` (U,), each with at least one validation target."""
    known, targets = split.known("valid"), split.targets("valid").take(users)
    size = max(1, _BLOCK // (max(len(variants), 1) * split.num_items))
    candidates, values, found = [], [], []
    for start in range(0, len(users), size):
        rows = np.arange(start, min(start + size, len(users)))
        queries, wanted = Queries.of(known, users[rows]), targets.take(rows)
        scores = torch.stack([variant.zscores(queries) for variant in variants])  # (V, b, num_items)
        found.append(scores[:, torch.from_numpy(wanted.row_of_entry), torch.from_numpy(wanted.items)])  # (V, p)
        seen = queries.histories
        scores[:, torch.from_numpy(seen.row_of_entry), torch.from_numpy(seen.items)] = _FAR
        items = _candidates(scores, groups)  # (b, C)
        candidates.append(items)
        values.append(scores.gather(2, items.expand(len(variants), -1, -1)))
    row = torch.from_numpy(targets.row_of_entry)  # (P,)
    rivals = torch.cat(candidates).index_select(0, row) != torch.from_numpy(targets.items)[:, None]
    ideal = ideal_gains(torch.from_numpy(targets.lengths), TUNING_CUTOFF)  # (U,)
    return ScoreTable(torch.cat(values, 1), torch.cat(found, 1), row, rivals, ideal[row])


def _candidates(scores: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Distinct items (b, C) of every row of scores (V, b, num_items): the best of each model, and of all together.

    Each model has places of its own, because z-scores of different models differ in range: a sparse one goes up to 100.
    """
    num_items = scores.shape[2]
    best = [reduce(torch.maximum, [scores[variant] for variant in group]) for group in groups]  # (b, num_items) each
    chosen = torch.zeros(scores.shape[1:])
    for values in (*best, scores.mean(0)):
        chosen.scatter_(1, values.topk(min(KEPT, num_items), dim=1, sorted=False).indices, 1.0)
    return chosen.topk(min(KEPT * (len(groups) + 1), num_items), dim=1, sorted=False).indices


@dataclass(frozen=True)
class FusionWeights:
    """The outcome of `search`."""

    chosen: list[int]  # (E,) variant per model
    weights: Tensor  # (E,) float32, positive, sum 1
    ndcg: float
    alone: list[float]  # (V,) NDCG@20 of every variant by itself
    trials: int


def search(table: ScoreTable, groups: Sequence[Sequence[int]]) -> FusionWeights:
    """The best variant and weight per model by hill climbing; `groups[e]` lists the variants of model e.

    Deterministic: it starts from the best point of a coarse grid over all weights, tries moves in a fixed order and
    takes those that improve. So on these users the outcome is never below the equal sum or any single model.
    """
    one = torch.ones(1)
    alone = {variant: table.ndcg([variant], one) for group in groups for variant in group}
    chosen = [max(group, key=lambda variant: alone[variant]) for group in groups]
    climb = _Climb(table, groups, chosen, torch.full((len(groups),), 1 / len(groups)))
    for shares in product(range(_GRID + 1), repeat=len(groups)):
        if sum(shares) == _GRID:
            climb.attempt(chosen, torch.tensor(shares) / _GRID)
    for step in _STEPS:
        while climb.move_weights(step) | climb.move_decays():
            pass
    return FusionWeights(climb.chosen, climb.weights, climb.ndcg, list(alone.values()), climb.trials)


class _Climb:
    """The best weights so far, and the moves away from them."""

    def __init__(self, table: ScoreTable, groups: Sequence[Sequence[int]], chosen: list[int], weights: Tensor) -> None:
        self.table, self.groups, self.trials = table, groups, 0
        self.chosen, self.weights, self.ndcg = chosen, weights, -1.0
        self.attempt(chosen, weights)

    def attempt(self, chosen: list[int], weights: Tensor) -> bool:
        """Move there if the NDCG is better."""
        value = self.table.ndcg(chosen, weights)
        self.trials += 1
        if value <= self.ndcg:
            return False
        self.chosen, self.weights, self.ndcg = chosen, weights, value
        return True

    def move_weights(self, step: float) -> bool:
        """Shift up to `step` of weight from one model to another, for every ordered pair."""
        improved = False
        for giver in range(len(self.groups)):
            for taker in range(len(self.groups)):
                amount = min(step, float(self.weights[giver]))
                if giver == taker or amount < 1e-6:
                    continue
                weights = self.weights.clone()
                weights[giver] -= amount
                weights[taker] += amount
                improved |= self.attempt(self.chosen, weights.clamp_min(0))
        return improved

    def move_decays(self) -> bool:
        """Exchange the variant of one model for each of its others."""
        improved = False
        for place, group in enumerate(self.groups):
            for variant in group:
                if variant != self.chosen[place]:
                    improved |= self.attempt([*self.chosen[:place], variant, *self.chosen[place + 1 :]], self.weights)
        return improved
