"""Layer-0 embeddings of a user–item graph, how they begin, and the LightGCN layers over them that a step sees."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import combine, perturbed, propagate, propagate_layers
from graphllmrec.graph.svd import truncated_svd
from graphllmrec.nn.losses import contrast_loss
from graphllmrec.rng import At, torch_rng

Init = Literal["random", "spectral"]


class GraphEmbeddings(nn.Module):
    """Embeddings of users and items; called with the graph it returns the layer means z of both."""

    users: Tensor  # (num_users, dim) layer 0
    items: Tensor  # (num_items, dim) layer 0

    def __init__(
        self,
        graph: Bipartite,
        embedding_dim: int,
        num_layers: int,
        init: Init,
        seed: int,
        *,
        skip_layer_0: bool = False,
    ) -> None:
        super().__init__()
        self.graph = graph
        items, users = initial_embeddings(graph, embedding_dim, init, seed, with_users=True)
        self.items, self.users = nn.Parameter(items), nn.Parameter(users)
        used = num_layers if skip_layer_0 else num_layers + 1
        self.layer_weights = [0.0] * (num_layers + 1 - used) + [1 / used] * used  # (L + 1,) w_l of z

    @property
    def num_layers(self) -> int:
        """L: propagation layers; 0 is matrix factorisation."""
        return len(self.layer_weights) - 1

    def forward(self, graph: Bipartite | None = None) -> tuple[Tensor, Tensor]:
        """z of users (num_users, dim) and items (num_items, dim) over `graph`, by default the whole one."""
        return propagate(graph or self.graph, self.users, self.items, self.num_layers, self.layer_weights)

    def drop_edges(self, share: float, at: At) -> Bipartite:
        """The graph of one step, without a random `share` of its edges."""
        return self.graph.drop_edges(share, *at) if share else self.graph

    def contrasted(
        self, graph: Bipartite, noise: float, users: Tensor, items: Tensor, at: At
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z of all users and items from noisy layers, and the contrast () of layer 1 and z for the nodes of a batch.

        XSimGCL (Yu et al. 2022, arXiv:2209.02544, eqs. 5 and 6): noise of length `noise` is added to every layer but 0,
        and a node's layer 1 and its z are two vectors to be told from those of other nodes. users, items (n,): rows of
        the batch; repeats count once.
        """

        def add_noise(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
            if not layer:
                return users, items
            where = (at.epoch, at.step, layer)
            return (
                perturbed(users, noise, at.seed, f"{at.stage}/noise-users", *where),
                perturbed(items, noise, at.seed, f"{at.stage}/noise-items", *where),
            )

        layers = propagate_layers(graph, self.users, self.items, self.num_layers, add_noise)
        z = combine(layers, self.layer_weights)
        contrast = z[0].new_zeros(())
        for whole, first, rows in zip(z, layers[1], (users, items), strict=True):
            nodes = torch.unique(rows)
            contrast = contrast + contrast_loss(whole.index_select(0, nodes), first.index_select(0, nodes))
        return *z, contrast

    def l2(self, users: Tensor, items: Tensor) -> Tensor:
        """Σ |e|² / 2 () of the layer-0 embeddings of these rows (n,) of users and items; repeats count each time."""
        users, items = self.users.index_select(0, users), self.items.index_select(0, items)
        return (users.square().sum() + items.square().sum()) / 2


def initial_embeddings(
    graph: Bipartite, embedding_dim: int, init: Init, seed: int, *, with_users: bool
) -> tuple[Tensor, Tensor]:
    """Layer 0 at the start: items (num_items, embedding_dim) and users (num_users, embedding_dim), or (0, ·) of them.

    "random" is noise of size .1. "spectral" is U √S and V √S of the leading singular triplets of the normalised graph,
    scaled to size .05, plus noise of .002: nodes without clicks, whose singular vectors are zero, get a direction from
    the noise, and so do dimensions beyond the rank of the graph. The tables are on the CPU, wherever the graph is.
    """
    num_users, num_items = graph.to_users.shape
    random = torch_rng(seed, "lightgcn/start")
    items = torch.randn(num_items, embedding_dim, generator=random) * 0.1
    users = torch.randn(num_users if with_users else 0, embedding_dim, generator=random) * 0.1
    if init == "spectral":
        found = truncated_svd(graph.to_users, graph.to_items, embedding_dim, seed)
        for table, vectors in ((users, found.u), (items, found.v)):
            if not len(table):
                continue
            smooth = (vectors * found.s.sqrt()).cpu()
            table *= 0.02
            table[:, : smooth.shape[1]] += smooth * (0.05 / smooth.square().mean().sqrt().clamp_min(1e-12))
    return items, users
