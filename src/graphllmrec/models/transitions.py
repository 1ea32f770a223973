"""Transitions: what people went on to click soon after. The simplest sequential model: a directed item–item graph.

    T_ij = Σ over training histories, over positions p < q ≤ p + window with h_p = i, h_q = j ≠ i, of 1 / (q − p)
    S_ij = T_ij / sqrt(Σ_k T_ik · Σ_k T_kj)
    score(u, j) = Σ_{i in history of u} decay^(steps back of i) · S_ij

The counting is that of sequential rules (Ludewig & Jannach 2018, "Evaluation of session-based recommendation
algorithms", UMUAI 28, arXiv:1803.09587: weight 1/distance within a window). Differences: they score from the last item
alone and do not discount popular followers; here the normalisation is symmetric, so that a popular item must follow
more often than its popularity explains, and the whole history speaks, fading with its steps back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Histories
from graphllmrec.errors import RecipeError
from graphllmrec.models.base import Config, Queries, Task, TextVectors
from graphllmrec.models.item_to_item import Decay, Sparse, settle_decay, sparse_restore, sparse_scores, sparse_state


class TransitionsConfig(Config):
    """Settings of transitions."""

    window: int = Field(3, ge=1, le=100, description="how many steps later an item still counts as following")
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')


class Transitions:
    """Directed item-to-item transitions."""

    name: ClassVar[str] = "transitions"
    config_class: ClassVar[type[Config]] = TransitionsConfig
    needs_text: ClassVar[bool] = False
    needs_order: ClassVar[bool] = True  # fit() refuses interactions without order
    ranks_cold_items: ClassVar[bool] = False

    def __init__(self, config: TransitionsConfig) -> None:
        self.config = config
        self.weights: Sparse = sp.csr_array(np.zeros((0, 0), dtype=np.float32))  # S (num_items at fit, same)
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
        sizes = {"decay": torch.tensor(self.decay, dtype=torch.float64), "num_items": torch.tensor(self.num_items)}
        return sparse_state(self.weights) | sizes

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.weights, self.num_items = sparse_restore(state), int(state["num_items"])
        self.decay = float(state["decay"])

    def add_items(self, text: TextVectors) -> None:
        """Append items that nothing leads to: score 0."""
        self.num_items += len(text)


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
