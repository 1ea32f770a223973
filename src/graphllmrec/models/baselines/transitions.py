"""Transitions: what users clicked soon after an item. The simplest sequential model: a directed item–item graph.

    T_ij = Σ over training histories, over positions p < q ≤ p + window with h_p = i, h_q = j ≠ i, of 1 / (q − p)
    S_ij = T_ij / sqrt(Σ_k T_ik · Σ_k T_kj)
    score(u, j) = Σ_{i in history of u} decay^(steps back of i) · S_ij

The counting is that of sequential rules (Ludewig & Jannach 2018, "Evaluation of session-based recommendation
algorithms", UMUAI 28, arXiv:1803.09587: weight 1/distance within a window). Differences: they score from the last item
alone and do not discount popular followers; here the normalisation is symmetric, so that a popular item must follow
more often than its popularity explains, and the whole history counts, less with its steps back.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.errors import RecipeError
from graphllmrec.models.scoring import Decay, Sparse, empty_csr, load_weights, settle_decay, sparse_scores, weight_state
from graphllmrec.nn.examples import Places
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config

REACH = 10  # steps back that training takes into account: at a decay of .6 an item further away counts 1 %


class TransitionsConfig(Config):
    """Settings of transitions."""

    window: int = Field(3, ge=1, le=100, description="how many steps later an item still counts as following")
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')


class Transitions:
    """Directed item-to-item transitions."""

    name: ClassVar[str] = "transitions"
    config_class: ClassVar[type[Config]] = TransitionsConfig
    abilities = Abilities(needs_order=True)  # fit() refuses interactions without order

    def __init__(self, config: TransitionsConfig) -> None:
        self.config = config
        self.weights = empty_csr()  # S (num_items at fit, same)
        self.num_items = 0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Count the transitions of the training histories, decay from the validation part.

        Raises RecipeError when the interactions have no order.
        """
        split = task.split
        if not split.ordered:
            raise RecipeError([
                "model.name: transitions needs a timestamp or position column, this data has neither; use item-knn"
            ])  # fmt: skip
        histories = split.train.histories(split.num_users)
        self.weights = normalised(count_transitions(histories, split.num_items, self.config.window))
        self.num_items = split.num_items
        settle_decay(self, task)

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        return sparse_scores(queries, self.weights, self.num_items, self.decay)

    def state(self) -> dict[str, Tensor]:
        """Transition weights, decay, size of the catalogue."""
        return weight_state(self)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        load_weights(self, state)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items that nothing leads to: score 0."""
        more = copy(self)
        more.num_items += len(text)
        return more


def count_transitions(histories: Histories, num_items: int, window: int) -> Sparse:
    """T (num_items, num_items): weight 1/distance of item j following item i within `window` steps; no self-loops."""
    row, items = histories.row_of_entry, histories.items
    total = sp.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, min(window, max(len(items) - 1, 0)) + 1):
        before, after = items[:-distance], items[distance:]
        counts = (row[:-distance] == row[distance:]) & (before != after)  # same user, not a repeat
        weights = np.full(int(counts.sum()), 1.0 / distance)
        total = total + sp.csr_array((weights, (before[counts], after[counts])), shape=total.shape)
    return total


def normalised(counts: Sparse) -> Sparse:
    """S_ij = T_ij / sqrt(row sum of i · column sum of j) in float32; items without transitions keep empty rows."""
    out = sp.coo_array(counts)
    i, j = out.coords
    row_sum, column_sum = np.asarray(counts.sum(axis=1)), np.asarray(counts.sum(axis=0))
    values = (out.data / np.sqrt(row_sum[i] * column_sum[j])).astype(np.float32)
    return sp.csr_array((values, (i, j)), shape=counts.shape)


class Followers:
    """Transitions as a feature to train on: a user's own steps can be left out of the counts that score this user.

    Own steps are those within the clicks given, at most: counts are cut at 0. Histories reach REACH steps back.
    """

    def __init__(self, counts: Sparse, window: int) -> None:
        self.counts, self.window = counts, window  # T
        self.row_sum, self.column_sum = np.asarray(counts.sum(axis=1)), np.asarray(counts.sum(axis=0))
        self.weights = normalised(counts)  # S
        self._by_column = sp.csc_array(self.weights)

    @staticmethod
    def of(known: Histories, num_items: int, window: int = 3) -> Followers:
        """From the training histories."""
        return Followers(count_transitions(known, num_items, window), window)

    def score_targets(self, places: Places, decay: float, leave_one_out: bool) -> Tensor:
        """Score (T,) of every target after its history; with `leave_one_out` without the user's own steps."""
        items, target = places.clicks.items, places.target
        position = places.position[target]
        own = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.window + 1))]) * leave_one_out
        remaining = (places.clicks.lengths[places.clicks.row_of_entry] - places.position - 1)[target]
        into = self.column_sum[items[target]] - own[np.minimum(position, self.window)]
        scores = np.zeros(len(target))
        for back in range(1, min(REACH, int(position.max(initial=0))) + 1):
            far = np.flatnonzero(position >= back)  # targets with a click so far back
            before, after = items[target[far] - back], items[target[far]]
            counts = np.asarray(self.counts[before, after]).reshape(-1)
            if back <= self.window and leave_one_out:
                counts = counts - (before != after) / back
            out_of = self.row_sum[before] - own[np.minimum(remaining[far] + back, self.window)]
            known = counts > 1e-6
            size = np.sqrt(np.maximum(out_of[known], 1e-6) * np.maximum(into[far][known], 1e-6))
            scores[far[known]] += decay ** (back - 1) * np.minimum(counts[known] / size, 1.0)
        return torch.from_numpy(scores.astype(np.float32))

    def score_items(self, places: Places, decay: float, drawn: Ints) -> Tensor:
        """Score (T, N) of every drawn item (N,) after the history of every target."""
        items, target = places.clicks.items, places.target
        position, rows, columns, values = places.position[target], [], [], []
        for back in range(1, min(REACH, int(position.max(initial=0))) + 1):
            far = np.flatnonzero(position >= back)
            rows.append(far)
            columns.append(items[target[far] - back])
            values.append(np.full(len(far), decay ** (back - 1), dtype=np.float32))
        if not rows:
            return torch.zeros(len(target), len(drawn))
        shape = (len(target), self.weights.shape[0])
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return torch.from_numpy((sp.csr_array(entries, shape=shape) @ self._by_column[:, drawn]).toarray())
