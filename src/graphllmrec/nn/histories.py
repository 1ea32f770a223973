"""Histories as weights, which turn item vectors into query vectors.

    query = Σ_k decay^(steps back of k) v_k / Σ_k decay^(steps back of k)      over the items k of the history

`Averages` is this mean as a sparse matrix, for training; `aggregate` with `recency_shares` is the same, for serving.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphllmrec.data.tables import Histories
from graphllmrec.graph.bipartite import sparse_tensor


def recency_weights(histories: Histories, decay: float) -> NDArray[np.float32]:
    """Weight decay**steps_back of every history entry (nnz,): with decay 1 all weigh 1, with 0 the newest alone."""
    return np.power(np.float32(decay), histories.steps_back.astype(np.float32)).astype(np.float32)


def recency_shares(histories: Histories, decay: float) -> NDArray[np.float32]:
    """The weights (nnz,) of `recency_weights`, scaled to add up to 1 within every history."""
    weights = recency_weights(histories, decay)
    total = np.bincount(histories.row_of_entry, weights, len(histories))
    shares: NDArray[np.float32] = (weights / total[histories.row_of_entry]).astype(np.float32)
    return shares


def history_matrix(histories: Histories, num_items: int, decay: float = 1.0) -> sp.csr_array:
    """Histories as a sparse (B, num_items) float32 matrix of recency weights; repeats add up."""
    weights = recency_weights(histories, decay)
    shape = (len(histories), num_items)
    matrix = sp.csr_array((weights, histories.items, histories.indptr), shape=shape, copy=True)
    matrix.sum_duplicates()  # sorts its arrays in place: without the copy, the histories would lose their order
    return matrix


def aggregate(histories: Histories, vectors: Tensor, weights: NDArray[np.float32]) -> Tensor:
    """Weighted sum (B, dim) of the vectors (num_items, dim) of each history, weights (nnz,); zeros for an empty one."""
    arrays = (histories.items, histories.row_of_entry, weights)
    items, row, weight = (torch.from_numpy(array).to(vectors.device) for array in arrays)  # (nnz,)
    gathered = vectors.index_select(0, items) * weight[:, None]
    return vectors.new_zeros(len(histories), vectors.shape[1]).index_add_(0, row, gathered)  # (B, dim)


@dataclass(frozen=True)
class Averages:
    """Recency-weighted means of histories as a sparse matrix, and its transpose, which gradients go through."""

    matrix: Tensor  # (B, num_items) sparse CSR; each row adds up to 1, or is empty
    transposed: Tensor  # (num_items, B) sparse CSR

    @staticmethod
    def of(histories: Histories, num_items: int, decay: float) -> Averages:
        """The means of B histories over a catalogue of `num_items`; an empty history is an empty row."""
        matrix = history_matrix(histories, num_items, decay)
        total = np.asarray(matrix.sum(axis=1)).reshape(-1)
        matrix.data /= np.repeat(np.maximum(total, 1e-12), np.diff(matrix.indptr)).astype(np.float32)
        return Averages(sparse_tensor(matrix), sparse_tensor(sp.csr_array(matrix.T)))

    def to(self, device: torch.device) -> Averages:
        """The same on another device."""
        return Averages(self.matrix.to(device), self.transposed.to(device))
