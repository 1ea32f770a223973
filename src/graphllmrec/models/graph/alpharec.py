"""AlphaRec (Sheng et al. 2024, "Language Representations Can be What Recommenders Need", arXiv:2407.05441).

    i^(0) = f(text of i)         u^(0) = f(mean text of what u clicked)         f(x) = W2 leaky_relu(W1 x + b1) + b2
    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)
    z = mean of layers 0 … L,   score(u, i) = cos(z_u, z_i) / temperature
    loss = - log exp(s_ui) / (exp(s_ui) + Σ_{j drawn} exp(s_uj))        InfoNCE, 256 uniform negatives, temperature .15

No ID embeddings: what is learned is one map f from words to tastes. An item that nobody has clicked has layer 0 alone.

`query = "user"` is the paper to the letter. A person who was not there in training is folded in: f of the history's
mean text, and the layers of a new node with this history.

`query = "history"` suits next-click prediction: users are no nodes of their own (u^(0) = 0), a query is the recency-
weighted mean of its history's item vectors, and what is trained on are next clicks. Everybody with a history can ask.

Shapes: text (num_items, dims), z (num_items, dim), a query (B, dim).

Differences from the paper: text vectors are centred and turned to their principal axes, but not whitened (f over-fits
the smallest axes once they are blown up); one set of negatives per step, shared by its clicks; AdamW instead of Adam;
in every step a share of the items plays cold, its vector being layer 0 alone, as that of a new item will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.errors import TextError
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate, propagate_items, sparse_product
from graphllmrec.nn.dropout import kept_items
from graphllmrec.nn.histories import Averages, aggregate, recency_weights
from graphllmrec.nn.losses import sampled_softmax_loss
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.batches import NextClicks, uniform_items
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class AlphaRecConfig(MonitoredConfig):
    """Settings of AlphaRec."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(300, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(1024, ge=1, le=1_000_000, description="clicks per step")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="AdamW step size")
    query: Literal["user", "history"] = Field("history", description="who asks: a node of the graph, or a history")
    dims: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors that are kept")
    hidden: int = Field(256, ge=1, le=65_536, description="width of the hidden layer of f")
    dim: int = Field(64, ge=1, le=8_192, description="size of item and query vectors")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L")
    negatives: int = Field(256, ge=1, le=10_000_000, description="uniform negatives per step")
    temperature: float = Field(0.15, gt=0, le=100, description="what the cosine is divided by")
    decay: float = Field(0.7, ge=0, le=1, description='history weight per step back (query "history", with an order)')
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    cold_dropout: float = Field(0.2, ge=0, lt=1, description="items that play cold in a step: layer 0 alone")


class AlphaRec:
    """Text vectors mapped and propagated over the user–item graph; a vector model."""

    name: ClassVar[str] = "alpharec"
    config_class: ClassVar[type[Config]] = AlphaRecConfig
    abilities = Abilities(needs_text=True, ranks_cold_items=True)

    def __init__(self, config: AlphaRecConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.net = _Net(config, 1, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, dim): unit z_i
        self.users = torch.empty(0, 0)  # (num_users, dim): z_u; empty where histories ask
        self.fold = torch.empty(0, 0)  # (num_items, dim): what an item adds to the query of somebody's history
        self.text = torch.empty(0, 0)  # (num_items, dims): for the mean text of a history; empty where histories ask
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train f, early stopping on validation. Raises TextError without text, Interrupted."""
        if task.text is None:
            raise TextError("alpharec needs item text, and this data has none: add a title column to the items table")
        split, config = task.split, self.config
        if len(task.text) != split.num_items:
            raise TextError(f"{len(task.text):,} text vectors for {split.num_items:,} items")
        self.decay = config.decay if split.ordered and config.query == "history" else 1.0
        self.whitening = Whitening.fit(task.text, config.dims, shrink=1.0)
        text = unit(self.whitening.apply(task.text))  # (num_items, dims)
        self.net = net = _Net(config, text.shape[1], task.seed)
        nodes = _Nodes(config, text, split)
        loss = _Loss(config, net, nodes, split, self.decay, task.seed)

        train_model(self, task, net, len(loss), loss, lambda: self._export_vectors(nodes), inputs=(text,))

    @torch.no_grad()
    def _export_vectors(self, nodes: _Nodes) -> None:
        """The vectors to serve."""
        users, items = nodes.vectors(self.net)
        self.users, self.items = users, unit(items)
        if self.config.query == "history":
            self.fold, self.text = items, nodes.text[:0]
        else:
            self.fold, self.text = nodes.below(self.net), nodes.text

    def item_vectors(self) -> Tensor:
        """Unit z_i (num_items, dim)."""
        return self.items

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """Unit vectors over the temperature (B, dim); zeros for an empty history of somebody unknown."""
        histories = queries.histories
        weights = recency_weights(histories, self.decay)
        query = aggregate(histories, self.fold, weights)  # (B, dim)
        if self.config.query == "user":
            lengths = torch.from_numpy(histories.lengths)[:, None].clamp_min(1).float()
            words = self.net(aggregate(histories, self.text, weights) / lengths)
            query = words / (self.config.num_layers + 1) + query / lengths.sqrt()
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
        own = {"items": self.items, "users": self.users, "fold": self.fold, "text": self.text}
        own["decay"] = torch.tensor(self.decay, dtype=torch.float64)
        return own | prefixed("net", self.net.state_dict()) | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.users, self.fold, self.text = (state[key] for key in ("items", "users", "fold", "text"))
        self.decay = float(state["decay"])
        self.net = _Net(self.config, self.whitening.matrix.shape[1], seed=0)
        self.net.load_state_dict(under("net", state))
        self.net.eval()

    @torch.no_grad()
    def add_items(self, text: TextVectors) -> None:
        """Append items by their text: no place in the graph, layer 0 alone."""
        assert self.whitening is not None, "add_items() before fit()"
        words = unit(self.whitening.apply(text))
        start = self.net(words) * text.present[:, None] / (self.config.num_layers + 1)  # the mean of L + 1 layers
        self.items = torch.cat([self.items, unit(start)])
        if self.config.query == "user" and not self.config.num_layers:
            start = torch.zeros_like(start)  # nothing below layer 0
        self.fold = torch.cat([self.fold, start])
        self.text = torch.cat([self.text, words]) if self.config.query == "user" else self.text


class _Net(nn.Module):
    """f: words (n, dims) -> tastes (n, dim)."""

    def __init__(self, config: AlphaRecConfig, dims: int, seed: int) -> None:
        super().__init__()
        random = torch_rng(seed, "alpharec/start")
        self.first = nn.Parameter(torch.randn(dims, config.hidden, generator=random) * (2 / dims) ** 0.5)
        self.first_bias = nn.Parameter(torch.zeros(config.hidden))
        self.second = nn.Parameter(torch.randn(config.hidden, config.dim, generator=random) / config.hidden**0.5)
        self.second_bias = nn.Parameter(torch.zeros(config.dim))

    def forward(self, words: Tensor) -> Tensor:
        """W2 leaky_relu(W1 x + b1) + b2."""
        return F.leaky_relu(words @ self.first + self.first_bias) @ self.second + self.second_bias


class _Nodes:
    """The graph and the words of its nodes: what f is applied to, and propagated over."""

    def __init__(self, config: AlphaRecConfig, text: Tensor, split: Split) -> None:
        self.config, self.text = config, text
        self.present = (text.abs().sum(1) > 0)[:, None]  # (num_items, 1): items without text start from nothing
        self.graph = Bipartite.of(split.train, split.num_users, split.num_items)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, decay=1.0)
        self.user_text = sparse_product(means.matrix, means.transposed, text)  # (num_users, dims)

    def start(self, net: _Net) -> tuple[Tensor, Tensor]:
        """Layer 0 of users and items; of users an empty table where histories ask."""
        items = net(self.text) * self.present
        if self.config.query == "history":
            return items[:0], items
        return net(self.user_text) * (self.graph.user_degree > 0)[:, None], items

    def vectors(self, net: _Net, cold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z of users and items, layer 0 alone of items that are `cold` (num_items,); no users where histories ask."""
        users, start = self.start(net)
        if self.config.query == "history":
            items = propagate_items(self.graph, start, self.config.num_layers)
        else:
            users, items = propagate(self.graph, users, start, self.config.num_layers)
        if cold is not None:
            items = torch.where(cold[:, None], start / (self.config.num_layers + 1), items)
        return users, items

    def below(self, net: _Net) -> Tensor:
        """What an item's layers 0 … L - 1 send to a new user (num_items, dim), but for the 1 / sqrt(|N_u|)."""
        num_layers = self.config.num_layers
        users, items = self.start(net)
        if not num_layers:
            return torch.zeros_like(items)
        weights = [1 / (num_layers + 1)] * num_layers
        lower = propagate(self.graph, users, items, num_layers - 1, weights)[1]
        return lower / self.graph.item_degree.clamp_min(1).sqrt()[:, None]


class _Loss:
    """One example per click: InfoNCE over cosines."""

    def __init__(self, config: AlphaRecConfig, net: _Net, nodes: _Nodes, split: Split, decay: float, seed: int) -> None:
        self.config, self.net, self.nodes, self.decay, self.seed = config, net, nodes, decay, seed
        self.by_history = config.query == "history"
        self.clicks = NextClicks(split.train.histories(split.num_users), split.ordered, config.max_history)
        self.user, self.item = (
            (self.clicks.user, self.clicks.target) if self.by_history else (split.train.user, split.train.item)
        )

    def __len__(self) -> int:
        return len(self.item)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean over the clicks `rows` (B,)."""
        cold = ~kept_items(len(self.nodes.text), self.config.cold_dropout, at)
        users, items = self.nodes.vectors(self.net, cold)
        if self.by_history:
            averages = Averages.of(self.clicks.histories(rows), len(items), self.decay)
            query = sparse_product(averages.matrix, averages.transposed, items)  # (B, dim)
        else:
            query = users.index_select(0, torch.from_numpy(self.user[rows]))
        query, items = unit(query) / self.config.temperature, unit(items)
        target = torch.from_numpy(self.item[rows])
        wanted = self.config.negatives
        drawn = torch.from_numpy(uniform_items(wanted, len(items), *at))
        positive = (query * items.index_select(0, target)).sum(1)  # (B,)
        others = query @ items.index_select(0, drawn).T  # (B, negatives)
        others = others.masked_fill(drawn[None, :] == target[:, None], -torch.inf)
        return sampled_softmax_loss(positive, others, wanted)  # of as many items as were drawn: no correction
