"""The user–item graph as two normalised sparse matrices, one for each direction messages travel.

LightGCN (He et al. 2020, arXiv:2002.02126, eq. 3) normalises every edge (u, i) by 1 / sqrt(|N_u| |N_i|). The adjacency
of the bipartite graph has two non-zero blocks, A and Aᵀ; both are kept, so that nothing is ever transposed again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from graphllmrec.data.tables import Interactions
from graphllmrec.rng import torch_rng


@dataclass(frozen=True)
class Bipartite:
    """Normalised adjacency blocks as sparse CSR float32 tensors, and node degrees."""

    to_users: Tensor  # (num_users, num_items) sparse CSR; entry 1 / sqrt(|N_u| |N_i|)
    to_items: Tensor  # (num_items, num_users) sparse CSR, its transpose
    user_degree: Tensor  # (num_users,) int64
    item_degree: Tensor  # (num_items,) int64

    @staticmethod
    def of(train: Interactions, num_users: int, num_items: int) -> Bipartite:
        """The graph of the training interactions; a repeated pair is one edge."""
        adjacency = clicked_matrix(train, num_users, num_items)
        user_degree = np.diff(adjacency.indptr)
        item_degree = np.bincount(adjacency.indices, minlength=num_items)
        by_user = np.repeat(1 / np.sqrt(np.maximum(user_degree, 1)), user_degree)
        adjacency.data = (by_user / np.sqrt(np.maximum(item_degree, 1))[adjacency.indices]).astype(np.float32)
        return Bipartite(
            sparse_tensor(adjacency),
            sparse_tensor(sp.csr_array(adjacency.T)),
            torch.from_numpy(user_degree.astype(np.int64)),
            torch.from_numpy(item_degree.astype(np.int64)),
        )

    def to(self, device: torch.device | str) -> Bipartite:
        """The same graph on another device; itself if it is there already."""
        if self.to_users.device == torch.device(device):
            return self
        return Bipartite(
            self.to_users.to(device), self.to_items.to(device), self.user_degree.to(device), self.item_degree.to(device)
        )

    def drop_edges(self, share: float, seed: int, purpose: str, epoch: int, step: int = 0) -> Bipartite:
        """The graph without a random `share` of its edges, in both directions; the others weigh 1 / (1 - share) more.

        So the products stay what they were in expectation, and the blocks transposes of each other. The mask is a
        function of (seed, purpose, epoch, step), on every device. Normalisation and degrees remain those of the whole
        graph, as in the dropout of LightGCN's authors; SGL (Wu et al. 2021, arXiv:2010.10783), which normalises what is
        left anew once per epoch, is `Bipartite.of` the interactions that are left. Raises ValueError unless
        0 <= share < 1.
        """
        if not 0 <= share < 1:
            raise ValueError(f"the share of dropped edges must be at least 0 and below 1, not {share}")
        generator = torch_rng(seed, f"{purpose}/edges", epoch, step)
        keep = torch.rand(self.to_users.values().numel(), generator=generator) >= share
        weight = (keep / (1 - share)).to(self.to_users.device)
        return Bipartite(
            _reweighted(self.to_users, weight),
            _reweighted(self.to_items, weight.index_select(0, self._edge_of_entry)),
            self.user_degree,
            self.item_degree,
        )

    @cached_property
    def _edge_of_entry(self) -> Tensor:
        """For every entry of `to_items`, where the same edge stands in `to_users` (num_edges,) int64."""
        return torch.argsort(self.to_users.col_indices(), stable=True)  # rows ascend among equal columns


def clicked_matrix(train: Interactions, num_users: int, num_items: int) -> sp.csr_array:
    """Who clicked what: (num_users, num_items) float32 of ones, sorted; a repeated pair is one entry."""
    ones = np.ones(len(train), dtype=np.float32)
    matrix = sp.csr_array(sp.coo_array((ones, (train.user, train.item)), shape=(num_users, num_items)))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def weighted_matrix(train: Interactions, num_users: int, num_items: int) -> sp.csr_array:
    """`clicked_matrix` with the relative weight of each click (mean 1) in place of its 1, where there are weights.

    Expects distinct (user, item) pairs.
    """
    matrix, weight = clicked_matrix(train, num_users, num_items), train.relative_weight()
    if weight is None:
        return matrix
    weighted = sp.csr_array(sp.coo_array((weight, (train.user, train.item)), shape=matrix.shape))
    weighted.sum_duplicates()
    return weighted


def _reweighted(matrix: Tensor, weight: Tensor) -> Tensor:
    """The CSR matrix with every entry multiplied by its `weight` (nnz,); the index arrays are shared."""
    crow, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values() * weight
    return torch.sparse_csr_tensor(crow, columns, values, size=matrix.shape, check_invariants=False)


def sparse_tensor(matrix: sp.csr_array) -> Tensor:
    """A SciPy CSR matrix as a torch sparse CSR tensor of float32 values.

    Indices are int32 wherever they can be: products are faster than with int64, and the matrix is a third smaller.
    """
    matrix.sort_indices()
    kind = np.int32 if max(matrix.nnz, *matrix.shape) < 2**31 else np.int64
    with warnings.catch_warnings():  # torch says once per process that CSR is in beta; what is used of it is tested
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(kind)),
            torch.from_numpy(matrix.indices.astype(kind)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
            check_invariants=False,
        )
