"""AlphaRec (Sheng et al. 2024, "Language Representations Can be What Recommenders Need", arXiv:2407.05441).

    i^(0) = f(text of i)         u^(0) = f(mean text of the items of u)         f(x) = W2 leaky_relu(W1 x + b1) + b2
    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)
    z = mean of layers 0 … L,   score(u, i) = cos(z_u, z_i) / temperature
    loss = - log exp(s_ui) / (exp(s_ui) + Σ_{j drawn} exp(s_uj))        InfoNCE, 256 uniform negatives, temperature .15

No ID embeddings: the model learns one map f from text vectors to preferences. An item without clicks has layer 0 alone.

`query = "user"` is the paper. A user who was not in the training data is folded in: f of the history's mean text, and
the layers of a new node with this history.

`query = "history"` suits next-click prediction: users are no nodes of their own (u^(0) = 0), a query is the recency-
weighted mean of its history's item vectors, and the training examples are next clicks. Any history can be a query.

Shapes: text features (num_items, text_dim), z (num_items, embedding_dim), a query (B, embedding_dim).

Differences from the paper: text vectors are centred and rotated to their principal axes, but not whitened (f over-fits
the smallest axes once they are scaled up); one set of negatives per step, shared by its clicks; AdamW instead of Adam;
item dropout: in every step a share of the items has layer 0 alone, as a new item will.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate, propagate_items, sparse_product
from graphllmrec.nn.dropout import kept_items
from graphllmrec.nn.examples import NextClicks, uniform_items
from graphllmrec.nn.histories import Averages, aggregate, recency_weights
from graphllmrec.nn.losses import sampled_softmax_loss
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Condition, Config
from graphllmrec.text.whiten import Whitening, require_text
from graphllmrec.train.device import on_cpu, resolve_device, to_device
from graphllmrec.train.negatives import mask_targets
from graphllmrec.train.settings import HistoryConfig
from graphllmrec.train.validation import train_model


class AlphaRecConfig(HistoryConfig):
    """Settings of AlphaRec."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(300, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(1024, ge=1, le=1_000_000, description="clicks per step")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="AdamW step size")
    query: Literal["user", "history"] = Field(
        "history", description="what a query is: a node of the graph, or a history"
    )
    text_dim: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors that are kept")
    hidden: int = Field(256, ge=1, le=65_536, description="width of the hidden layer of f")
    embedding_dim: int = Field(64, ge=1, le=8_192, description="size of item and query vectors")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L")
    negatives: int = Field(256, ge=1, le=10_000_000, description="uniform negatives per step")
    temperature: float = Field(0.15, gt=0, le=100, description="what the cosine is divided by")

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("decay max_history", self.query == "history", 'query = "history"')


class AlphaRec:
    """Text vectors mapped and propagated over the user–item graph; a vector model."""

    name: ClassVar[str] = "alpharec"
    config_class: ClassVar[type[Config]] = AlphaRecConfig
    abilities = Abilities(needs_text=True, ranks_cold_items=True)

    def __init__(self, config: AlphaRecConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.net = _Net(config, 1, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, embedding_dim): unit z_i
        self.users = torch.empty(0, 0)  # (num_users, embedding_dim): z_u; empty for query = "history"
        self.fold_in = torch.empty(0, 0)  # (num_items, embedding_dim): what an item adds to the query of a history
        self.text = torch.empty(0, 0)  # (num_items, text_dim): for mean texts; empty for query = "history"
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train f, early stopping on validation. Raises TextError without text, Interrupted."""
        text, split, config = require_text(task, self.name), task.split, self.config
        device = resolve_device(config.device)
        self.decay = config.decay if split.ordered and config.query == "history" else 1.0
        self.whitening = Whitening.fit(text, config.text_dim, shrink=1.0)
        text_features = unit(self.whitening.apply(text)).to(device)  # (num_items, text_dim)
        net = _Net(config, text_features.shape[1], task.seed)
        nodes = _Nodes(config, text_features, split)
        loss = _Loss(config, net, nodes, split, self.decay)

        export = partial(self._export_vectors, net, nodes)
        train_model(self, task, net, len(loss), loss, export, inputs=(text_features,))

    @torch.no_grad()
    def _export_vectors(self, net: _Net, nodes: _Nodes) -> None:
        """The vectors to serve, and f, on the CPU."""
        users, items = nodes.vectors(net)
        self.net, self.users, self.items = on_cpu(net), users.cpu(), unit(items).cpu()
        if self.config.query == "history":
            self.fold_in, self.text = items.cpu(), nodes.text[:0].cpu()
        else:
            self.fold_in, self.text = nodes.below(net).cpu(), nodes.text.cpu()

    def item_vectors(self) -> Tensor:
        """Unit z_i (num_items, embedding_dim)."""
        return self.items

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """Unit vectors over the temperature (B, embedding_dim); zeros for an empty history of an unknown user."""
        histories = queries.histories
        weights = recency_weights(histories, self.decay)
        query = aggregate(histories, self.fold_in, weights)  # (B, embedding_dim)
        if self.config.query == "user":
            lengths = torch.from_numpy(histories.lengths)[:, None].clamp_min(1).float()
            layer_0 = self.net(aggregate(histories, self.text, weights) / lengths)
            query = layer_0 / (self.config.num_layers + 1) + query / lengths.sqrt()
            query = query * (torch.from_numpy(histories.lengths) > 0)[:, None]
            known = torch.from_numpy(np.flatnonzero(queries.users >= 0))
            query[known] = self.users.index_select(0, torch.from_numpy(queries.users)[known])
        return unit(query) / self.config.temperature

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors, f and the whitening."""
        assert self.whitening is not None, "state() before fit()"
        own = {"items": self.items, "users": self.users, "fold_in": self.fold_in, "text": self.text}
        own["decay"] = torch.tensor(self.decay, dtype=torch.float64)
        return own | prefixed("net", self.net.state_dict()) | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.users = state["items"], state["users"]
        self.fold_in, self.text = state["fold_in"], state["text"]
        self.decay = float(state["decay"])
        self.net = _Net(self.config, self.whitening.matrix.shape[1], seed=0)
        self.net.load_state_dict(under("net", state))
        self.net.eval()

    @torch.no_grad()
    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no place in the graph, layer 0 alone."""
        assert self.whitening is not None, "with_items() before fit()"
        features = unit(self.whitening.apply(text))
        added = self.net(features) * text.present[:, None] / (self.config.num_layers + 1)  # the mean of L + 1 layers
        more = copy(self)
        more.items = torch.cat([self.items, unit(added)])
        if self.config.query == "user" and not self.config.num_layers:
            added = torch.zeros_like(added)  # nothing below layer 0
        more.fold_in = torch.cat([self.fold_in, added])
        more.text = torch.cat([self.text, features]) if self.config.query == "user" else self.text
        return more


class _Net(nn.Module):
    """f: text features (n, text_dim) -> (n, embedding_dim)."""

    def __init__(self, config: AlphaRecConfig, text_dim: int, seed: int) -> None:
        super().__init__()
        random = torch_rng(seed, "alpharec/start")
        hidden, out = config.hidden, config.embedding_dim
        self.first = nn.Parameter(torch.randn(text_dim, hidden, generator=random) * (2 / text_dim) ** 0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.randn(hidden, out, generator=random) / hidden**0.5)
        self.second_bias = nn.Parameter(torch.zeros(out))

    def forward(self, text_features: Tensor) -> Tensor:
        """W2 leaky_relu(W1 x + b1) + b2."""
        return F.leaky_relu(text_features @ self.first + self.first_bias) @ self.second + self.second_bias


class _Nodes:
    """The graph, and the text features of its nodes that f is applied to."""

    def __init__(self, config: AlphaRecConfig, text: Tensor, split: Split) -> None:
        self.config, self.text, device = config, text, text.device
        self.present = (text.abs().sum(1) > 0)[:, None]  # (num_items, 1): layer 0 of items without text is 0
        self.graph = Bipartite.of(split.train, split.num_users, split.num_items).to(device)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, decay=1.0).to(device)
        self.user_text = sparse_product(means.matrix, means.transposed, text)  # (num_users, text_dim)

    def layer_0(self, net: _Net) -> tuple[Tensor, Tensor]:
        """Layer 0 of users and items; the user table is empty for query = "history"."""
        items = net(self.text) * self.present
        if self.config.query == "history":
            return items[:0], items
        return net(self.user_text) * (self.graph.user_degree > 0)[:, None], items

    def vectors(self, net: _Net, cold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z of users and items, layer 0 alone of items that are `cold` (num_items,); no users for query = "history"."""
        users, start = self.layer_0(net)
        if self.config.query == "history":
            items = propagate_items(self.graph, start, self.config.num_layers)
        else:
            users, items = propagate(self.graph, users, start, self.config.num_layers)
        if cold is not None:
            items = torch.where(cold[:, None], start / (self.config.num_layers + 1), items)
        return users, items

    def below(self, net: _Net) -> Tensor:
        """What layers 0 … L - 1 of an item add to a new user (num_items, embedding_dim), times sqrt(|N_u|)."""
        num_layers = self.config.num_layers
        users, items = self.layer_0(net)
        if not num_layers:
            return torch.zeros_like(items)
        weights = [1 / (num_layers + 1)] * num_layers
        lower = propagate(self.graph, users, items, num_layers - 1, weights)[1]
        return lower / self.graph.item_degree.clamp_min(1).sqrt()[:, None]


class _Loss:
    """One example per click: InfoNCE over cosines."""

    def __init__(self, config: AlphaRecConfig, net: _Net, nodes: _Nodes, split: Split, decay: float) -> None:
        self.config, self.net, self.nodes, self.decay = config, net, nodes, decay
        self.by_history = config.query == "history"
        self.clicks = NextClicks(split.train.histories(split.num_users), split.ordered, config.max_history)
        self.user, self.item = (
            (self.clicks.user, self.clicks.target) if self.by_history else (split.train.user, split.train.item)
        )

    def __len__(self) -> int:
        return len(self.item)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean over the clicks `rows` (B,)."""
        device = self.nodes.text.device
        cold = ~to_device(kept_items(len(self.nodes.text), self.config.cold_dropout, at), device)
        users, items = self.nodes.vectors(self.net, cold)
        if self.by_history:
            averages = Averages.of(self.clicks.histories(rows), len(items), self.decay).to(device)
            query = sparse_product(averages.matrix, averages.transposed, items)  # (B, embedding_dim)
        else:
            query = users.index_select(0, to_device(self.user[rows], device))
        query, items = unit(query) / self.config.temperature, unit(items)
        target = to_device(self.item[rows], device)
        wanted = self.config.negatives
        drawn = to_device(uniform_items(wanted, len(items), *at), device)
        positive = (query * items.index_select(0, target)).sum(1)  # (B,)
        others = query @ items.index_select(0, drawn).T  # (B, negatives)
        others = mask_targets(others, drawn, target)
        return sampled_softmax_loss(positive, others, wanted)  # of as many items as were drawn: no correction
