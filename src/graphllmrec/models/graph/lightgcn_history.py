"""LightGCN for next-click prediction: a query is a history, and users have no embedding.

The layers are those of models/graph/lightgcn.py (He et al. 2020, arXiv:2002.02126, eqs. 3 and 4) with u^(0) = 0; z_i is
their mean. A history h with items k, oldest first, is the recency-weighted mean of its items, mapped by a learned W:

    q_h = (Σ_k decay^(steps back of k) z_k / Σ_k decay^(steps back of k)) W
    score(h, i) = q_h · z_i + b_i + c log(clicks of i over their mean)       or cos(q_h, z_i) / τ instead of the product
    loss = cross-entropy of the item clicked next, among all items or among `negatives` drawn ones

So any history can be queried, of a known user or not, and the order of clicks counts. W starts as the identity, b as 0.
In a step a share of the items (`cold_dropout`) has a zero vector, in histories and as targets; dropout acts on q_h.

Not from the paper: all but the layers. Saved: z_i with its bias, and `fold_in` = z_i W, so that serving is one sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate_items, sparse_product
from graphllmrec.nn.dropout import dropout, kept_items
from graphllmrec.nn.embeddings import Init, initial_embeddings
from graphllmrec.nn.examples import NextClicks, uniform_items
from graphllmrec.nn.histories import Averages, aggregate, recency_shares
from graphllmrec.nn.losses import drawn_softmax_loss, softmax_loss
from graphllmrec.nn.scoring import Scale, log_popularity, rows_below_all, with_bias, with_one
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.settings import Condition, Config
from graphllmrec.train.device import resolve_device, to_device
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class LightGCNHistoryConfig(MonitoredConfig):
    """Settings of LightGCN queried by histories."""

    epochs: int = Field(40, ge=0, le=100_000, description="passes over the next clicks at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="next clicks per step")
    embedding_dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L; 0 propagates nothing")
    init: Init = Field("random", description="layer 0 at the start: noise, or singular vectors of the graph")
    negatives: int = Field(0, ge=0, le=10_000_000, description="sampled negatives of the softmax; 0 takes all items")
    cosine: bool = Field(False, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    popularity: float = Field(0.0, ge=0, le=2, description="c: every item's exp(score) has a factor clicks^c")
    edge_dropout: float = Field(0.0, ge=0, lt=1, description="share of edges left out of a training step's graph")
    decay: float = Field(0.55, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of query dimensions dropped in training")
    cold_dropout: float = Field(0.3, ge=0, lt=1, description="share of items without a vector in a step (item dropout)")

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("temperature", self.cosine, "cosine = true")
        yield Condition("edge_dropout", self.num_layers >= 2, "num_layers of at least 2 (items are two layers apart)")


class Network(nn.Module):
    """The trainable tensors; called with the graph it returns z of the items."""

    log_clicks: Tensor  # (num_items,) log of clicks over their mean

    def __init__(self, config: LightGCNHistoryConfig, graph: Bipartite, seed: int) -> None:
        super().__init__()
        self.config = config
        items, _ = initial_embeddings(graph, config.embedding_dim, config.init, seed, with_users=False)
        self.items = nn.Parameter(items)  # (num_items, embedding_dim) layer 0
        self.query_map = nn.Parameter(torch.eye(config.embedding_dim))  # W
        self.bias = nn.Parameter(torch.zeros(len(items)))  # b
        self.register_buffer("log_clicks", log_popularity(graph.item_degree), persistent=False)

    @property
    def item_bias(self) -> Tensor:
        """All that is added to the scores of an item (num_items,)."""
        return self.bias + self.config.popularity * self.log_clicks

    def forward(self, graph: Bipartite) -> Tensor:
        """z (num_items, embedding_dim)."""
        return propagate_items(graph, self.items, self.config.num_layers)


class LightGCNHistory:
    """LightGCN whose queries are recency-weighted histories; a vector model."""

    name: ClassVar[str] = "lightgcn-history"
    config_class: ClassVar[type[Config]] = LightGCNHistoryConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: LightGCNHistoryConfig) -> None:
        self.config, self.scale = config, Scale(config.cosine, config.temperature)
        self.items = torch.empty(0, 0)  # (num_items, embedding_dim + 1) z_i and its bias
        self.fold_in = torch.empty(0, 0)  # (num_items, embedding_dim) z_i W
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train on `task`'s next clicks, early stopping on its validation part. Raises Interrupted."""
        split, device = task.split, resolve_device(self.config.device)
        self.decay = self.config.decay if split.ordered else 1.0
        graph = Bipartite.of(split.train, split.num_users, split.num_items).to(device)
        net = Network(self.config, graph, task.seed)
        clicks = NextClicks(split.train.histories(split.num_users), split.ordered, self.config.max_history)
        weight = split.train.relative_weight()

        def loss(rows: Ints, at: At) -> Tensor:
            click_weight = None if weight is None else to_device(weight[clicks.entry[rows]], device)
            return self._loss(net, graph, clicks, rows, at, click_weight)

        train_model(self, task, net, len(clicks), loss, lambda: self._export_vectors(net, graph), stage="graph")

    def _loss(
        self, net: Network, graph: Bipartite, clicks: NextClicks, rows: Ints, at: At, click_weight: Tensor | None
    ) -> Tensor:
        """Mean cross-entropy of the items clicked next, in the examples `rows` (B,), weighted by click (B,)."""
        config, target, device = self.config, clicks.target[rows], net.items.device
        averages = Averages.of(clicks.histories(rows), len(net.items), self.decay).to(device)
        items = net(graph.drop_edges(config.edge_dropout, *at) if config.edge_dropout else graph)  # (num_items, d)
        items = items * to_device(kept_items(len(items), config.cold_dropout, at), device)[:, None].float()
        query = sparse_product(averages.matrix, averages.transposed, items) @ net.query_map  # (B, d)
        query = self.scale.queries(dropout(query, config.dropout, at.torch_rng("dropout")))
        items = self.scale.items(items)
        if not config.negatives or config.negatives >= len(items):
            return softmax_loss(query @ items.T + net.item_bias, to_device(target, device), click_weight)
        drawn = uniform_items(config.negatives, len(items), *at)
        nodes = to_device(np.concatenate([target, drawn]), device)  # (B + negatives,)
        bias = net.item_bias.index_select(0, nodes)
        return drawn_softmax_loss(query, items.index_select(0, nodes), bias, nodes, len(items), click_weight)

    @torch.no_grad()
    def _export_vectors(self, net: Network, graph: Bipartite) -> None:
        """What is served, on the CPU, from the trained tensors."""
        items = net(graph)
        self.items = with_bias(self.scale.items(items), net.item_bias).cpu()
        self.fold_in = (items @ net.query_map).cpu()

    def item_vectors(self) -> Tensor:
        """z_i with the bias as last dimension (num_items, embedding_dim + 1)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """q_h with a last dimension of 1 (B, embedding_dim + 1)."""
        shares = recency_shares(queries.histories, self.decay)
        return with_one(self.scale.queries(aggregate(queries.histories, self.fold_in, shares)))

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors, and the decay of histories; the embeddings are not needed any more."""
        decay = torch.tensor(self.decay, dtype=torch.float64)
        return {"items": self.items, "fold_in": self.fold_in, "decay": decay}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.fold_in, self.decay = state["items"], state["fold_in"], float(state["decay"])

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items that score below all others: without a click they have no place in the graph."""
        longest = self.scale.queries(self.fold_in).norm(dim=1).max()  # a mean is no longer than its longest part
        more = copy(self)
        more.items = torch.cat([self.items, rows_below_all(self.items, longest, len(text))])
        more.fold_in = torch.cat([self.fold_in, torch.zeros(len(text), self.fold_in.shape[1])])
        return more
