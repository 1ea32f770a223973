"""Item-kNN: items are alike that the same users click; a history scores the neighbours of its items.

Deshpande & Karypis 2004, "Item-based top-N recommendation algorithms" (TOIS 22), with the shrinkage of Bell & Koren
2007 in the form used by Ferrari Dacrema et al. 2019 (RecSys, arXiv:1907.06902) and the asymmetric norms of Aiolli 2013
("Efficient top-N recommendation for very large scale binary rated datasets", RecSys):

    S_ij = (x_i · x_j) / (|x_i|^2α |x_j|^2(1-α) + shrink),  i ≠ j      x_i (num_users,): clicks on i, 1 or their weight
    S keeps the `neighbours` largest values of every row i (ties: the lower item row)
    score(u, j) = Σ_{i in history of u} decay^(steps back of i) · S_ij

α = 1/2 is the cosine; α = 1 is the share of the users of i who clicked j, which favours popular j. `shrink` is a prior
against rare pairs, and so against rarely clicked items: with α = 1/2 and shrink = 0 they rank highest, the popular ones
lowest (docs/log.md).

Differences: the paper has no decay (decay 1 is the paper) and optionally scales each row of S to length 1. Memory: the
sparse products of one block of rows, then num_items × neighbours values.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
from pydantic import Field
from torch import Tensor

from graphllmrec.graph.bipartite import weighted_matrix
from graphllmrec.models.scoring import Decay, Sparse, empty_csr, load_weights, settle_decay, sparse_scores, weight_state
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config

_Norms: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float32]]"
_BLOCK = 2_000  # rows of X'X computed at a time: a popular row holds up to num_items values


class ItemKNNConfig(Config):
    """Settings of item-kNN."""

    neighbours: int = Field(200, ge=1, le=100_000, description="most similar items kept per item")
    shrink: float = Field(100.0, ge=0, le=1e6, description="added to the norms, so that rare pairs count less")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the history's item in the norm: 0.5 cosine, 1 conditional probability",
    )
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')


class ItemKNN:
    """Neighbours over shared users."""

    name: ClassVar[str] = "item-knn"
    config_class: ClassVar[type[Config]] = ItemKNNConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: ItemKNNConfig) -> None:
        self.config = config
        self.weights = empty_csr()  # S (num_items at fit, same)
        self.num_items = 0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Neighbours from the training clicks, decay from the validation part."""
        split = task.split
        clicks = weighted_matrix(split.train, split.num_users, split.num_items)  # X (num_users, num_items)
        self.weights = neighbours(clicks, self.config.neighbours, self.config.shrink, self.config.alpha)
        self.num_items = split.num_items
        settle_decay(self, task)

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        return sparse_scores(queries, self.weights, self.num_items, self.decay)

    def state(self) -> dict[str, Tensor]:
        """Neighbours, decay, size of the catalogue."""
        return weight_state(self)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        load_weights(self, state)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items without neighbours: score 0."""
        more = copy(self)
        more.num_items += len(text)
        return more


def neighbours(clicks: Sparse, keep: int, shrink: float, alpha: float = 0.5) -> Sparse:
    """S (num_items, num_items) from the columns of `clicks` (num_users, num_items), the `keep` largest per row."""
    columns = clicks.T.tocsr()  # (num_items, num_users)
    squares = np.asarray(columns.multiply(columns).sum(axis=1), dtype=np.float32)  # |x_i|²
    norms = squares**alpha, squares ** (1 - alpha)  # of the history's item, of the other one
    blocks = [
        _largest_per_row(_similarities(columns, clicks, norms, start, shrink), keep)
        for start in range(0, len(squares), _BLOCK)
    ]
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def _similarities(columns: Sparse, clicks: Sparse, norms: tuple[_Norms, _Norms], start: int, shrink: float) -> Sparse:
    """Rows start … start + _BLOCK of S before anything is dropped, diagonal left out."""
    shared = (columns[start : start + _BLOCK] @ clicks).tocoo()  # x_i · x_j
    i, j = shared.coords
    other = i + start != j
    i, j = i[other], j[other]
    values = shared.data[other] / (norms[0][i + start] * norms[1][j] + np.float32(shrink))
    return sp.csr_array((values, (i, j)), shape=shared.shape)


def _largest_per_row(matrix: Sparse, keep: int) -> Sparse:
    """The `keep` largest values of every row; equal values: the lower column first."""
    entries = matrix.tocoo()
    i, j = entries.coords
    order = np.lexsort((j, -entries.data, i))
    i, j, values = i[order], j[order], entries.data[order]
    counts = np.bincount(i, minlength=matrix.shape[0])
    rank = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)  # place within the row
    kept = rank < keep
    return sp.csr_array((values[kept], (i[kept], j[kept])), shape=matrix.shape)
