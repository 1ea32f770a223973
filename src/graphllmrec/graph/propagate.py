"""Propagation over the user–item graph: sparse × dense products that differentiate without transposing anything.

torch's own autograd for sparse CSR @ dense builds the transpose in every backward pass, which costs several times the
product itself. Here whoever builds a matrix also hands over its transpose, once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphllmrec.graph.bipartite import Bipartite


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grads[0]


def sparse_product(matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
    """matrix (n, m) sparse CSR @ dense (m, d) -> (n, d); gradients reach `dense` only, through `transposed` (m, n)."""
    out: Tensor = _SparseProduct.apply(matrix, transposed, dense)  # type: ignore[no-untyped-call]
    return out


def propagate(graph: Bipartite, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """LightGCN's light convolution and layer mean (arXiv:2002.02126, eqs. 3, 4 and 6 with alpha = 1 / (L + 1)).

        u^(l+1) = A i^(l),   i^(l+1) = Aᵀ u^(l),   z = mean of layers 0 … num_layers

    users (num_users, d), items (num_items, d): the layer-0 embeddings. Returns the layer means, same shapes.
    """
    total_users, total_items = users, items
    for _ in range(num_layers):
        users, items = (
            sparse_product(graph.to_users, graph.to_items, items),
            sparse_product(graph.to_items, graph.to_users, users),
        )
        total_users, total_items = total_users + users, total_items + items
    return total_users / (num_layers + 1), total_items / (num_layers + 1)
