"""LightGCN (He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network", SIGIR, arXiv:2002.02126).

    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)      (eq. 3)
    z_u = Σ_l α_l u^(l)     z_i = Σ_l α_l i^(l)     α_l = 1 / (L + 1)     l = 0 … L                              (eq. 4)
    score(u, i) = z_u · z_i                                                                                      (eq. 5)
    loss = Σ_(u, i, j) -ln σ(score(u, i) - score(u, j)) + λ |E^(0)|²                                            (eq. 15)

N_u: the items that user u clicked in training, N_i: the users who clicked item i. E^(0), the embeddings u^(0)
(num_users, embedding_dim) and i^(0) (num_items, embedding_dim), is all that is trained; `num_layers` = 0 is matrix
factorisation with BPR. An example is a click (u, i) with one item j, drawn uniformly from those that u did not click.

As in the authors' code, and not in the paper's equation: a step divides by its number of examples, and its L2 is λ/2 of
the layer-0 embeddings of the u, i and j of the batch, each counted as often as it occurs.

A user who was not there in training is folded in: a new node with the edges of the history, u^(0) = 0 (nn/fold_in.py).
The paper ranks users of the training set only.

Differences from the paper: AdamW instead of Adam; with weight_decay = 0, the default, the two are the same. Embeddings
start from a normal distribution of standard deviation .1, as in the authors' code; the paper says Xavier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate
from graphllmrec.nn.examples import UnclickedItems
from graphllmrec.nn.fold_in import fold_in_table, longest_query, user_vectors
from graphllmrec.nn.losses import bpr_loss
from graphllmrec.nn.scoring import rows_below_all, with_bias, with_one
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Condition, Config
from graphllmrec.train.device import resolve_device, to_device
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class LightGCNConfig(MonitoredConfig):
    """Settings of LightGCN; defaults as in section 4.1.2 of the paper, the batch size that of the authors' code."""

    epochs: int = Field(1000, ge=0, le=100_000, description="passes over the clicks at most")
    batch_size: int = Field(2048, ge=1, le=1_000_000, description="clicks per step")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="AdamW step size")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW decoupled weight decay")
    validate_every: int = Field(10, ge=1, le=100_000, description="epochs between validations")
    patience: int = Field(5, ge=1, le=100_000, description="stop after so many validations without a better one")
    embedding_dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(3, ge=0, le=16, description="propagation layers L; 0 is matrix factorisation")
    l2: float = Field(1e-4, ge=0, le=10, description="λ: penalty on the layer-0 embeddings of the batch (eq. 15)")

    def conditions(self) -> Iterator[Condition]:
        """Pairs are compared number by number, and the layers are sparse products: both are in float32."""
        yield Condition("precision", False, "a loss with dense matrix products, which lightgcn-sampled has")


class Embeddings(nn.Module):
    """E^(0), all that is trained; called with the graph it returns z of users and items (eqs. 3 and 4)."""

    def __init__(self, num_users: int, num_items: int, config: LightGCNConfig, seed: int) -> None:
        super().__init__()
        self.num_layers, random = config.num_layers, torch_rng(seed, "lightgcn/start")
        self.items = nn.Parameter(torch.randn(num_items, config.embedding_dim, generator=random) * 0.1)
        self.users = nn.Parameter(torch.randn(num_users, config.embedding_dim, generator=random) * 0.1)

    def forward(self, graph: Bipartite) -> tuple[Tensor, Tensor]:
        """z_u (num_users, embedding_dim) and z_i (num_items, embedding_dim): means of layers 0 … L."""
        return propagate(graph, self.users, self.items, self.num_layers)


class LightGCN:
    """Light graph convolution over the user–item graph, trained with BPR; a vector model."""

    name: ClassVar[str] = "lightgcn"
    config_class: ClassVar[type[Config]] = LightGCNConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: LightGCNConfig) -> None:
        self.config = config
        self.items = torch.empty(0, 0)  # (num_items, embedding_dim + 1) z_i, and 0; below 0 for items added later
        self.users = torch.empty(0, 0)  # (num_users, embedding_dim) z_u
        self.fold_in = torch.empty(0, 0)  # (num_items, embedding_dim) what an item adds to z of an unknown user

    def fit(self, task: Task) -> None:
        """Train on `task`'s clicks, early stopping on its validation part. Raises Interrupted."""
        split, clicks, device = task.split, task.split.train, resolve_device(self.config.device)
        graph = Bipartite.of(clicks, split.num_users, split.num_items).to(device)
        net = Embeddings(split.num_users, split.num_items, self.config, task.seed)
        weight = clicks.relative_weight()
        unclicked = UnclickedItems(clicks.histories(split.num_users), split.num_items)

        def loss(rows: Ints, at: At) -> Tensor:
            user, clicked = clicks.user[rows], clicks.item[rows]  # (B,)
            other = unclicked.draw(user, *at)  # (B,)
            triple = to_device(user, device), to_device(clicked, device), to_device(other, device)
            return self._loss(net, graph, *triple, None if weight is None else to_device(weight[rows], device))

        train_model(self, task, net, len(clicks), loss, lambda: self._export_vectors(net, graph), stage="graph")

    def _loss(
        self, net: Embeddings, graph: Bipartite, user: Tensor, clicked: Tensor, other: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Eq. 15 of the pairs (user, clicked item, other item), (B,) each: a mean weighted by click."""
        z_users, z_items = net(graph)  # (num_users, d), (num_items, d)
        item = torch.cat([clicked, other])  # (2B,)
        z_user, z_item = z_users.index_select(0, user), z_items.index_select(0, item)  # (B, d), (2B, d)
        positive, negative = (z_user.repeat(2, 1) * z_item).sum(1).split(len(user))  # (B,), (B,)
        layer_0 = net.users.index_select(0, user), net.items.index_select(0, item)
        penalty = layer_0[0].square().sum() + layer_0[1].square().sum()
        return bpr_loss(positive, negative, weight) + self.config.l2 / 2 * penalty / len(user)

    @torch.no_grad()
    def _export_vectors(self, net: Embeddings, graph: Bipartite) -> None:
        """What is served, on the CPU, from the trained embeddings."""
        self.users, items = (vectors.cpu() for vectors in net(graph))
        self.items = with_bias(items, torch.zeros(len(items)))
        alpha = [1 / (self.config.num_layers + 1)] * (self.config.num_layers + 1)
        self.fold_in = fold_in_table(graph, net.users, net.items, alpha).cpu()

    def item_vectors(self) -> Tensor:
        """z_i, and a last dimension that is 0 but for added items (num_items, embedding_dim + 1)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """z_u of known users, else of the history folded in, and a last dimension of 1 (B, embedding_dim + 1)."""
        return with_one(user_vectors(queries, self.users, self.fold_in))

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items): eq. 5."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors; the embeddings they came from are not needed any more."""
        return {"items": self.items, "users": self.users, "fold_in": self.fold_in}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.users, self.fold_in = state["items"], state["users"], state["fold_in"]

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items that score below all others: without a click they have no place in the graph."""
        longest = longest_query(self.users, self.fold_in).norm(dim=1).max()
        more = copy(self)
        more.items = torch.cat([self.items, rows_below_all(self.items, longest, len(text))])
        more.fold_in = torch.cat([self.fold_in, torch.zeros(len(text), self.fold_in.shape[1])])
        return more
