"""A vector for a user who was not there when a graph model was trained: one more node of the graph, folded in.

The node has the edges of its history and a layer-0 embedding of zero. With LightGCN's propagation (He et al. 2020,
arXiv:2002.02126, eqs. 3 and 4) its layer l + 1 is Σ_i i^(l) / sqrt(|N_u| |N_i|) over the items i of the history, so

    z_u = Σ_i f_i / sqrt(|N_u|)        f_i = Σ_{l < L} w_{l+1} i^(l) / sqrt(|N_i|)

f, the `fold_in` table, is all that has to be kept of the layers. The messages that the new node would send to the items
are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate
from graphllmrec.nn.histories import aggregate
from graphllmrec.protocol import Queries


@torch.no_grad()
def fold_in_table(graph: Bipartite, users: Tensor, items: Tensor, weights: Sequence[float]) -> Tensor:
    """f (num_items, dim) of the equation above.

    users (num_users, dim), items (num_items, dim): layer 0; weights (L + 1,): the w_l. Without layers (L = 0) f is the
    layer 0 of the items, as if a history were the embedding.
    """
    if len(weights) == 1:
        return items.detach().clone()
    below = propagate(graph, users, items, len(weights) - 2, weights[1:])[1]  # (num_items, dim) Σ_{l < L} w_{l+1} i^(l)
    return below / graph.item_degree.clamp_min(1).sqrt()[:, None]


def user_vectors(queries: Queries, users: Tensor, fold_in: Tensor) -> Tensor:
    """z_u (B, dim): rows of `users` (num_users, dim) for known users, Σ_i f_i / sqrt(|N_u|) for unknown ones."""
    histories = queries.histories
    share = np.where(queries.users < 0, 1 / np.sqrt(np.maximum(histories.lengths, 1)), 0)[histories.row_of_entry]
    vectors = aggregate(histories, fold_in, share.astype(np.float32))  # (B, dim)
    known = np.flatnonzero(queries.users >= 0)
    place, row = (torch.from_numpy(array).to(users.device) for array in (known, queries.users[known]))
    vectors[place] = users.index_select(0, row)
    return vectors


def longest_query(users: Tensor, fold_in: Tensor) -> Tensor:
    """Vectors (num_users + num_items, dim) of which the longest is as long as any query that `user_vectors` makes.

    A history of n items adds up to at most sqrt(n) times its longest f.
    """
    return torch.cat([users, len(fold_in) ** 0.5 * fold_in])
