"""What makes a score of two vectors: their product, or their cosine over a temperature, plus a bias of the item.

    score(q, i) = q · z_i + b_i          or          cos(q, z_i) / τ + b_i

Both are one dot product once q and z_i have been scaled: that is what `Scale` does. b_i is the last dimension of the
item vectors that are served; queries have a 1 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphllmrec.nn.vectors import unit


@dataclass(frozen=True)
class Scale:
    """How queries and items are scaled so that their product is the score."""

    cosine: bool
    temperature: float  # τ; without cosine it has no part

    def queries(self, vectors: Tensor) -> Tensor:
        """Query vectors (n, dim): q / (τ |q|) under the cosine, else as they are."""
        return unit(vectors) / self.temperature if self.cosine else vectors

    def items(self, vectors: Tensor) -> Tensor:
        """Item vectors (n, dim): z / |z| under the cosine, else as they are."""
        return unit(vectors) if self.cosine else vectors


def with_bias(items: Tensor, bias: Tensor) -> Tensor:
    """Item vectors (num_items, dim) with their bias (num_items,) as last dimension (num_items, dim + 1)."""
    return torch.cat([items, bias[:, None]], dim=1)


def with_one(queries: Tensor) -> Tensor:
    """Queries (B, dim) with a last dimension of 1 (B, dim + 1), which meets the bias of the items."""
    return torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1)


def log_popularity(item_degree: Tensor) -> Tensor:
    """log of the clicks of each item over their mean (num_items,); an item without clicks counts as one with a click.

    c times this, added to a score, is a factor clicks^c on exp(score), so that vectors need not hold the popularity.
    """
    clicks = item_degree.clamp_min(1).float()
    return (clicks / clicks.mean()).log()


def rows_below_all(items: Tensor, longest_query: Tensor, count: int) -> Tensor:
    """Rows (count, dim + 1) of new items that score below all `items` (num_items, dim + 1) for every query.

    For every query of at most `longest_query` () in length, without its 1: the vectors are zero, the bias is lower than
    the score of any item can be.
    """
    reach = longest_query * items[:, :-1].norm(dim=1).max()
    new = items.new_zeros(count, items.shape[1])
    new[:, -1] = items[:, -1].min() - 2 * reach
    return new
