"""LightGCN (He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network", arXiv:2002.02126).

    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)      (eq. 3)
    z = mean of layers 0 … L                                                                                  (eq. 4)
    score(u, i) = z_u · z_i                                                                                   (eq. 5)

`query="user"`, `loss="bpr"` is the paper to the letter: an embedding per user and item, BPR with one uniform unclicked
item per click, L2 on the layer-0 embeddings of the batch (eq. 15). A user who was not there in training is folded in:
the layers of a new node with this history and a layer-0 embedding of zero.

`query="history"` is the inductive reading that suits next-click prediction: users have no embedding of their own
(u^(0) = 0), a query is the recency-weighted mean of its history's item vectors, turned by a learned map W, and items
have a bias. Everybody with a history can ask, and order counts:

    score(h, i) = (Σ_k decay^(steps back of k) z_k / Σ_k decay^…) W · z_i + b_i

`loss="softmax"` is the cross-entropy of the clicked item among all items, or among `negatives` sampled ones.
Recorded differences from the paper: mean of layers with equal weight (the paper's own default), AdamW instead of Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate, sparse_product
from graphllmrec.models.base import Config, Queries, Task, TextVectors, aggregate, recency_weights
from graphllmrec.models.item_to_item import VALIDATION_USERS, tuning_users
from graphllmrec.rng import torch_rng
from graphllmrec.train.batches import Averages, NextClicks, UnclickedItems, uniform_items
from graphllmrec.train.loop import Stage, TrainedConfig, train
from graphllmrec.train.losses import bpr_loss, sampled_softmax_loss, softmax_loss


class LightGCNConfig(TrainedConfig):
    """Settings of LightGCN."""

    epochs: int = Field(40, ge=0, le=100_000, description="passes over the training data at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="examples per step")
    dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L; 0 is matrix factorisation")
    query: Literal["user", "history"] = Field("history", description="who asks: a user's embedding, or a history")
    loss: Literal["bpr", "softmax"] = Field("softmax", description="training loss")
    negatives: int = Field(0, ge=0, le=10_000_000, description="sampled negatives of the softmax; 0 takes all items")
    decay: float = Field(0.55, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of query dimensions dropped in training")
    cold_share: float = Field(0.3, ge=0, lt=1, description="items that lose their vector in a step (cold start)")
    l2: float = Field(0.0, ge=0, le=10, description="penalty on the batch's layer-0 embeddings (eq. 15)")


class LightGCN:
    """Light graph convolution over the user–item graph; a vector model."""

    name: ClassVar[str] = "lightgcn"
    config_class: ClassVar[type[Config]] = LightGCNConfig
    needs_text: ClassVar[bool] = False
    ranks_cold_items: ClassVar[bool] = False

    def __init__(self, config: LightGCNConfig) -> None:
        self.config = config
        self.items = torch.empty(0, 0)  # (num_items, dim + 1): z_i and the bias
        self.users = torch.empty(0, 0)  # (num_users, dim): z_u; empty where histories ask
        self.fold = torch.empty(0, 0)  # (num_items, dim): what an item adds to the query of somebody's history
        self.decay = 1.0

    def fit(self, task: Task, stage: str = "graph") -> None:
        """Train on `task`'s clicks, early stopping on its validation part. Raises Interrupted."""
        split = task.split
        self.decay = self.config.decay if split.ordered else 1.0
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        net = _Net(self.config, split.num_users, split.num_items, task.seed)
        examples = _UserExamples(self.config, split) if self.config.query == "user" else None
        clicks = NextClicks(split.train.histories(split.num_users), split.ordered, self.config.max_history)

        def loss(epoch: int, step: int, rows: Ints) -> Tensor:
            if examples is not None:
                return examples.loss(net, graph, rows, (task.seed, stage, epoch, step))
            histories = clicks.histories(rows)
            averages = Averages.of(histories, split.num_items, self.decay)
            _, items = net(graph)
            at = (task.seed, stage, epoch, step)
            items = items * _kept(len(items), self.config.cold_share, at)
            query = sparse_product(averages.matrix, averages.transposed, items) @ net.turn  # (B, dim)
            query = _dropout(query, self.config.dropout, at)
            return _softmax(self.config.negatives, query, items, net.bias, clicks.target[rows], at)

        def validate() -> float:
            from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

            self._take_over(net, graph)
            return validation_metric(self, split, users=tuning_users(split, task.seed, VALIDATION_USERS))

        num_examples = len(clicks) if examples is None else len(split.train)
        train(Stage(stage, net, num_examples, loss, validate if len(split.valid) else None, self.config), task)
        self._take_over(net, graph)

    @torch.no_grad()
    def _take_over(self, net: _Net, graph: Bipartite) -> None:
        """The vectors to serve from the trained embeddings."""
        users, items = net(graph)
        self.items = torch.cat([items, net.bias[:, None]], dim=1).detach()
        if self.config.query == "history":
            self.users, self.fold = torch.empty(0, self.config.dim), (items @ net.turn).detach()
            return
        self.users = users.detach()
        # A new node's layer l + 1 is Σ_i i^(l) / sqrt(|N_u| |N_i|), so it needs the sum of the items' layers 0 … L - 1.
        below = propagate(graph, net.users, net.items, self.config.num_layers - 1)[1] if self.config.num_layers else 0
        scale = self.config.num_layers / (self.config.num_layers + 1) / graph.item_degree.clamp_min(1).sqrt()
        self.fold = (below * scale[:, None]).detach() if self.config.num_layers else items.detach()

    def item_vectors(self) -> Tensor:
        """z_i with the bias as last dimension (num_items, dim + 1)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, dim + 1)."""
        query = aggregate(queries.histories, self.fold, self.history_weights(queries))  # (B, dim)
        if self.config.query == "user":
            known = torch.from_numpy(np.flatnonzero(queries.users >= 0))
            query[known] = self.users.index_select(0, torch.from_numpy(queries.users)[known])
        return torch.cat([query, torch.ones(len(query), 1)], dim=1)

    def history_weights(self, queries: Queries) -> NDArray[np.float32]:
        """Weight (nnz,) with which the `fold` of every history entry enters its query; 0 for a known user's history."""
        histories = queries.histories
        if self.config.query == "user":
            own = np.where(queries.users < 0, 1 / np.sqrt(np.maximum(histories.lengths, 1)), 0)
            return own[histories.row_of_entry].astype(np.float32)
        weights = recency_weights(histories, self.decay)
        total = np.bincount(histories.row_of_entry, weights, len(histories))
        return (weights / total[histories.row_of_entry]).astype(np.float32)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors; the embeddings they came from are not needed any more."""
        decay = torch.tensor(self.decay, dtype=torch.float64)
        return {"items": self.items, "users": self.users, "fold": self.fold, "decay": decay}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.items, self.users, self.fold = state["items"], state["users"], state["fold"]
        self.decay = float(state["decay"])

    def add_items(self, text: TextVectors) -> None:
        """Append items below all others: no click, no place in the graph."""
        num_items, width = self.items.shape
        longest = num_items**0.5 if self.config.query == "user" else 1.0  # a folded-in query: n clicks / sqrt(n)
        asking = torch.cat([self.users, longest * self.fold]).norm(dim=1).max()
        reach = asking * self.items[:, :-1].norm(dim=1).max()
        new = torch.zeros(len(text), width)
        new[:, -1] = self.items[:, -1].min() - 2 * reach  # below z_u · z_i + b_i of any user and item
        self.items = torch.cat([self.items, new])
        self.fold = torch.cat([self.fold, torch.zeros(len(text), self.fold.shape[1])])


class _Net(nn.Module):
    """The trainable tensors; called with the graph it returns the layer means (num_users, dim), (num_items, dim)."""

    def __init__(self, config: LightGCNConfig, num_users: int, num_items: int, seed: int) -> None:
        super().__init__()
        self.num_layers = config.num_layers
        start = torch_rng(seed, "lightgcn/start")
        self.items = nn.Parameter(torch.randn(num_items, config.dim, generator=start) * 0.1)
        if config.query == "user":
            self.users = nn.Parameter(torch.randn(num_users, config.dim, generator=start) * 0.1)
            self.register_buffer("bias", torch.zeros(num_items))
        else:
            self.register_buffer("users", torch.zeros(num_users, config.dim), persistent=False)
            self.turn = nn.Parameter(torch.eye(config.dim))
            self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, graph: Bipartite) -> tuple[Tensor, Tensor]:
        """Layer means of users and items."""
        return propagate(graph, self.users, self.items, self.num_layers)


class _UserExamples:
    """The published training: one example per click, asked by the user's own embedding."""

    def __init__(self, config: LightGCNConfig, split: Split) -> None:
        self.config, self.user, self.item = config, split.train.user, split.train.item
        self.num_items = split.num_items
        self.unclicked = UnclickedItems(split.train.histories(split.num_users), split.num_items)

    def loss(self, net: _Net, graph: Bipartite, rows: Ints, at: tuple[int, str, int, int]) -> Tensor:
        users, items = net(graph)
        user, item = torch.from_numpy(self.user[rows]), torch.from_numpy(self.item[rows])
        query = users.index_select(0, user)  # (B, dim)
        touched = [net.users.index_select(0, user), net.items.index_select(0, item)]
        if self.config.loss == "bpr":
            other = torch.from_numpy(self.unclicked.draw(self.user[rows], *at))
            positive = (query * items.index_select(0, item)).sum(1)
            value = bpr_loss(positive, (query * items.index_select(0, other)).sum(1))
            touched.append(net.items.index_select(0, other))
        else:
            value = _softmax(self.config.negatives, query, items, net.bias, self.item[rows], at)
        if self.config.l2:
            value = value + self.config.l2 * sum(t.square().sum() for t in touched) / (2 * len(rows))
        return value


def _softmax(
    negatives: int, query: Tensor, items: Tensor, bias: Tensor, targets: Ints, at: tuple[int, str, int, int]
) -> Tensor:
    """Softmax over all items, or over `negatives` drawn for the whole batch."""
    target = torch.from_numpy(targets)
    if not negatives or negatives >= len(items):
        return softmax_loss(query @ items.T + bias, target)
    drawn = torch.from_numpy(uniform_items(negatives, len(items), *at))
    positive = (query * items.index_select(0, target)).sum(1) + bias.index_select(0, target)
    others = query @ items.index_select(0, drawn).T + bias.index_select(0, drawn)  # (B, negatives)
    others = others.masked_fill(drawn[None, :] == target[:, None], -torch.inf)
    return sampled_softmax_loss(positive, others, len(items))


def _dropout(values: Tensor, share: float, at: tuple[int, str, int, int]) -> Tensor:
    """Dropout whose mask is a function of (seed, stage, epoch, step)."""
    if not share:
        return values
    seed, stage, epoch, step = at
    keep = torch.rand(values.shape, generator=torch_rng(seed, f"{stage}/dropout", epoch, step)) >= share
    return values * keep / (1 - share)


def _kept(num_items: int, cold_share: float, at: tuple[int, str, int, int]) -> Tensor:
    """1 for items that keep their graph part in this step, 0 for those that play a cold item (num_items, 1)."""
    seed, stage, epoch, step = at
    return (torch.rand(num_items, 1, generator=torch_rng(seed, f"{stage}/cold", epoch, step)) >= cold_share).float()
