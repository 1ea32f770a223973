"""LightGCN trained with a softmax over all items, one row of scores per user instead of one per click.

Vectors z_u and z_i are those of models/graph/lightgcn.py (He et al. 2020, arXiv:2002.02126, eqs. 3 and 4), with

    s(u, i) = z_u · z_i + c log(clicks of i over their mean)                or cos(z_u, z_i) / τ instead of the product
    loss = Σ_(u, i) w_u (log Σ_j exp s(u, j) - s(u, i)) / Σ_(u, i) w_u + λ/2 |E^(0)|² per click        w_u = n_u^(p - 1)

over the users u of a batch and all their n_u clicks. All clicks of a user share one partition function, so the exact
softmax over all items costs one row per user (nn/losses.py, `log_partition`). `user_weight` = p: 1 weighs clicks alike,
0 weighs users alike, as ranking metrics do. `popularity` = c acts in training and in serving. `loss` = "slk" weighs
each click by how surely it is among the best 20 (SL@K; Yang et al. 2025, arXiv:2508.05673).

Options: layer 0 that starts as singular vectors of the graph (`init`), edges left out of each step (`edge_dropout`),
XSimGCL's contrast of noisy layers (`contrast`; Yu et al. 2022, arXiv:2209.02544), which leaves layer 0 out of z.
Unknown users are folded in (nn/fold_in.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.nn.embeddings import GraphEmbeddings, Init
from graphllmrec.nn.examples import UserClicks
from graphllmrec.nn.fold_in import fold_in_table, longest_query, user_vectors
from graphllmrec.nn.losses import (
    SLK_TEMPERATURE,
    click_scores,
    grouped_softmax_loss,
    slk_loss,
    slk_refresh_due,
    slk_thresholds,
)
from graphllmrec.nn.scoring import Scale, log_popularity, rows_below_all, with_bias, with_one
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.settings import Condition, Config
from graphllmrec.train.device import resolve_device, to_device
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class LightGCNSoftmaxConfig(MonitoredConfig):
    """Settings of LightGCN with softmax over all items."""

    epochs: int = Field(40, ge=0, le=100_000, description="passes over the users at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="users per step")
    embedding_dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L; 0 is matrix factorisation")
    init: Init = Field("random", description="layer 0 at the start: noise, or singular vectors of the graph")
    loss: Literal["softmax", "slk"] = Field("softmax", description="softmax over all items, or SL@K")
    cosine: bool = Field(False, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    popularity: float = Field(0.0, ge=0, le=2, description="c: every item's exp(score) has a factor clicks^c")
    user_weight: float = Field(1.0, ge=0, le=1, description="p: n clicks of a user weigh n^p together")
    l2: float = Field(0.0, ge=0, le=10, description="λ: penalty on the layer-0 embeddings of the batch")
    edge_dropout: float = Field(0.0, ge=0, lt=1, description="share of edges left out of a training step's graph")
    contrast: float = Field(0.0, ge=0, le=100, description="weight of XSimGCL's contrast of noisy layers; 0 is off")
    noise: float = Field(0.2, ge=0, le=10, description="length of XSimGCL's noise per layer")

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("temperature", self.cosine, "cosine = true")
        yield Condition("precision", self.contrast > 0, "contrast above 0; the softmax over all items is in float32")
        yield Condition("noise", self.contrast > 0, "contrast above 0")
        yield Condition("contrast edge_dropout", self.num_layers > 0, "num_layers of at least 1")


class LightGCNSoftmax:
    """LightGCN with softmax over all items; a vector model."""

    name: ClassVar[str] = "lightgcn-softmax"
    config_class: ClassVar[type[Config]] = LightGCNSoftmaxConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: LightGCNSoftmaxConfig) -> None:
        self.config, self.scale = config, Scale(config.cosine, config.temperature)
        self.items = torch.empty(0, 0)  # (num_items, embedding_dim + 1) z_i and its bias
        self.users = torch.empty(0, 0)  # (num_users, embedding_dim) z_u
        self.fold_in = torch.empty(0, 0)  # (num_items, embedding_dim) what an item adds to z of an unknown user

    def fit(self, task: Task) -> None:
        """Train on `task`'s users, early stopping on its validation part. Raises Interrupted."""
        split, config, device = task.split, self.config, resolve_device(self.config.device)
        graph = Bipartite.of(split.train, split.num_users, split.num_items).to(device)
        net = GraphEmbeddings(
            graph, config.embedding_dim, config.num_layers, config.init, task.seed, skip_layer_0=config.contrast > 0
        )
        if config.loss == "slk":  # a buffer, so that a resumed training has the same
            net.register_buffer("threshold", torch.zeros(split.num_users))  # β_u
        examples = UserClicks(split.train.histories(split.num_users), split.train.relative_weight())
        bias = config.popularity * log_popularity(graph.item_degree)  # (num_items,)

        def loss(rows: Ints, at: At) -> Tensor:
            return self._loss(net, bias, examples, rows, at)

        train_model(self, task, net, len(examples), loss, lambda: self._export_vectors(net, bias), stage="graph")

    def _loss(self, net: GraphEmbeddings, bias: Tensor, examples: UserClicks, rows: Ints, at: At) -> Tensor:
        """Mean loss of all clicks of the users `rows` (B,), plus L2 and contrast."""
        config, clicks, device = self.config, examples.clicks(rows), net.items.device
        user, item = to_device(examples.user[rows], device), to_device(clicks.items, device)  # (B,), (n,)
        row = to_device(clicks.row_of_entry, device)  # (n,) which of the B users clicked
        if config.loss == "slk" and slk_refresh_due(at.epoch, at.step):
            self._refresh_thresholds(net, bias)

        graph, contrast = net.drop_edges(config.edge_dropout, at), bias.new_zeros(())
        if config.contrast:
            users, items, contrast = net.contrasted(graph, config.noise, user, item, at)
        else:
            users, items = net(graph)  # (num_users, d), (num_items, d)
        query = self.scale.queries(users.index_select(0, user))  # (B, d)
        partition, positive = click_scores(query, self.scale.items(items), bias, row, item)  # (B,), (n,)
        weight = (clicks.lengths ** (config.user_weight - 1.0)).astype(np.float32)[clicks.row_of_entry]  # (n,)
        if (click_weight := examples.weights(rows)) is not None:
            weight = weight * click_weight
        if config.loss == "slk":
            tau = SLK_TEMPERATURE / config.temperature if config.cosine else SLK_TEMPERATURE
            threshold = net.get_buffer("threshold").index_select(0, user)  # (B,)
            value = slk_loss(partition, positive, row, to_device(weight, device), threshold, tau)
        else:
            value = grouped_softmax_loss(partition, positive, row, to_device(weight, device))
        penalty = config.l2 * net.l2(user, item) / len(item) if config.l2 else 0.0
        return value + penalty + config.contrast * contrast

    @torch.no_grad()
    def _refresh_thresholds(self, net: GraphEmbeddings, bias: Tensor) -> None:
        """β_u of all users, over the whole graph."""
        users, items = net()
        net.get_buffer("threshold").copy_(slk_thresholds(self.scale.queries(users), self.scale.items(items), bias))

    @torch.no_grad()
    def _export_vectors(self, net: GraphEmbeddings, bias: Tensor) -> None:
        """What is served, on the CPU, from the trained embeddings."""
        users, items = net()
        self.users, self.items = users.cpu(), with_bias(self.scale.items(items), bias).cpu()
        self.fold_in = fold_in_table(net.graph, net.users, net.items, net.layer_weights).cpu()

    def item_vectors(self) -> Tensor:
        """z_i, of length 1 under the cosine, with the bias as last dimension (num_items, embedding_dim + 1)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """z_u of known users, else of the history folded in, and a last dimension of 1 (B, embedding_dim + 1)."""
        return with_one(self.scale.queries(user_vectors(queries, self.users, self.fold_in)))

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors; the embeddings they came from are not needed any more."""
        return {"items": self.items, "users": self.users, "fold_in": self.fold_in}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.users, self.fold_in = state["items"], state["users"], state["fold_in"]

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items that score below all others: without a click they have no place in the graph."""
        longest = self.scale.queries(longest_query(self.users, self.fold_in)).norm(dim=1).max()
        more = copy(self)
        more.items = torch.cat([self.items, rows_below_all(self.items, longest, len(text))])
        more.fold_in = torch.cat([self.fold_in, torch.zeros(len(text), self.fold_in.shape[1])])
        return more
