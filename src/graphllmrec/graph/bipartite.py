"""The user–item graph as two normalised sparse matrices, one for each direction messages travel.

LightGCN (He et al. 2020, arXiv:2002.02126, eq. 3) normalises every edge (u, i) by 1 / sqrt(|N_u| |N_i|). The adjacency
of the bipartite graph has two non-zero blocks, A and Aᵀ; both are kept, so that nothing is ever transposed again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from graphllmrec.data.tables import Interactions


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
        ones = np.ones(len(train), dtype=np.float32)
        adjacency = sp.csr_array(sp.coo_array((ones, (train.user, train.item)), shape=(num_users, num_items)))
        adjacency.sum_duplicates()
        adjacency.data[:] = 1.0
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


def sparse_tensor(matrix: sp.csr_array) -> Tensor:
    """A SciPy CSR matrix as a torch sparse CSR tensor (float32 values, int64 indices)."""
    matrix.sort_indices()
    with warnings.catch_warnings():  # torch says once per process that CSR is in beta; what is used of it is tested
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
            check_invariants=False,
        )
