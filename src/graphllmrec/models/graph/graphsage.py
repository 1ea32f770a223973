"""GraphSAGE (Hamilton et al. 2017, "Inductive Representation Learning on Large Graphs", arXiv:1706.02216).

    h_N(v) = AGG({h_w : w in N(v)})        h_v = σ(W · [h_v ; h_N(v)])        two hops (algorithm 1, K = 2)

on the user–item graph, where only items have features and users are what they clicked:

    x_i = text_i + e_i                            text_i: whitened and unit length; e_i: embedding of a clicked item
    h_u = relu(W_u AGG({x_i : i in N(u)}))        (num_users, hidden)
    z_i = unit(W_s x_i + W_i AGG({h_u : u in N(i)}))                                      (num_items, text_dim)
    q   = unit(Σ_k decay^(steps back of k) z_k)                           a query is its history, as is every user
    score(q, i) = q W_q · z_i / temperature + p log(1 + |N(i)|)

AGG is the mean, or the element-wise maximum of relu(W_p h + b) (section 3.3, "pooling"; 0 without neighbours). A step
draws `users_per_item` clickers of each item in it and `items_per_user` items of each of these (graph/neighbours.py):
its cost does not grow with the graph, unless items have embeddings. Served vectors use complete neighbourhoods.

Inductive: a new item is encoded by its text and, where it has some, its clickers (`encode`), without retraining. Item
dropout: in every step a share of the items has no clicks and no embedding. Without item text, x_i = e_i.

Differences from the paper: the sampled softmax of next clicks instead of random walks and their noise-contrastive loss;
W_s starts as identity and W_i at zero, so that the untrained model is text-kNN; the user of an example is left out of
the neighbourhoods of its items, because they would reveal the target; a popularity term.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.graph.neighbours import Neighbourhoods, draws, sample
from graphllmrec.nn.dropout import dropout, kept_items
from graphllmrec.nn.examples import NextClicks
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.losses import in_batch_softmax_loss, sampled_softmax_loss
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Condition, Config
from graphllmrec.text.whiten import Whitening, whiten_text
from graphllmrec.train.device import on_cpu, resolve_device, to_device
from graphllmrec.train.negatives import draw_negatives, mask_targets
from graphllmrec.train.settings import HistoryConfig
from graphllmrec.train.validation import train_model


class GraphSAGEConfig(HistoryConfig):
    """Settings of GraphSAGE."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="examples per step")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="AdamW step size")
    aggregator: Literal["mean", "max"] = Field("mean", description="how neighbours become one vector")
    text_dim: int = Field(200, ge=1, le=8_192, description="size of item vectors: axes of the text kept when whitening")
    hidden: int = Field(128, ge=1, le=65_536, description="size of user vectors")
    users_per_item: int = Field(10, ge=1, le=1_000, description="clickers sampled per item")
    items_per_user: int = Field(10, ge=1, le=1_000, description="items sampled per clicker")
    ids: bool = Field(True, description="clicked items have an embedding besides their text")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of the query's values dropped in training")
    loss: Literal["softmax", "in-batch"] = Field("softmax", description="negatives: uniform, or the batch's targets")
    negatives: int = Field(
        1024, ge=1, le=10_000_000, description="uniform negatives per step (loss softmax); at most all items"
    )

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("negatives", self.loss == "softmax", 'loss = "softmax"')


class GraphSAGE:
    """Inductive item vectors from text and sampled neighbourhoods; a vector model."""

    name: ClassVar[str] = "graphsage"
    config_class: ClassVar[type[Config]] = GraphSAGEConfig
    abilities = Abilities(uses_text=True, ranks_cold_items=True)  # without text it is a graph model of item embeddings

    def __init__(self, config: GraphSAGEConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None  # None: fitted without text
        self.net = _Net(config, 1, 0, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, text_dim + 1): z_i and the popularity term
        self.users = torch.empty(0, 0)  # (num_users, hidden): h_u, for new items with clicks
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train on next clicks, early stopping on validation. Raises TextError, Interrupted."""
        split, config, device = task.split, self.config, resolve_device(self.config.device)
        self.decay = config.decay if split.ordered else 1.0
        self.whitening, text_features = whiten_text(task, config.text_dim, self.name, ids=config.ids)
        text_features = text_features.to(device)
        graph = Neighbourhoods.of(split.train, split.num_users, split.num_items).to(device)
        net = _Net(config, text_features.shape[1], len(text_features), task.seed)
        clicks = NextClicks(split.train.histories(split.num_users), split.ordered, config.max_history)
        loss = _Loss(config, net, graph, text_features, clicks, self.decay)

        export = partial(self._export_vectors, net, graph, text_features)
        train_model(self, task, net, len(clicks), loss, export, inputs=(text_features,))

    @torch.no_grad()
    def _export_vectors(self, net: _Net, graph: Neighbourhoods, text_features: Tensor) -> None:
        """The vectors to serve, from complete neighbourhoods, and the network, on the CPU."""
        degree = graph.of_items.degree
        features = net.features(text_features, degree > 0)
        users = net.encode_users(features, graph.of_users.nodes.long(), graph.of_users.indptr)
        vectors = net.encode_items(features, users, graph.of_items.nodes.long(), graph.of_items.indptr)
        self.net, self.users = on_cpu(net), users.cpu()
        self.items = self._with_popularity(vectors.cpu(), degree.cpu())

    def _with_popularity(self, vectors: Tensor, degree: Tensor) -> Tensor:
        return torch.cat([vectors, self.net.popularity * degree.float().log1p()[:, None]], dim=1).detach()

    @torch.no_grad()
    def encode(self, text: TextVectors, clicked_by: Histories | None = None) -> Tensor:
        """Vectors (n, text_dim + 1) of new items by their text and, where known, the rows of their clickers."""
        if self.whitening is None:
            features = torch.zeros(len(text), self.items.shape[1] - 1)
        else:
            features = unit(self.whitening.apply(text))
        if clicked_by is None:
            clicked_by = Histories.from_lists([[]] * len(text))
        vectors = self.net.encode_items(
            features, self.users, torch.from_numpy(clicked_by.items), torch.from_numpy(clicked_by.indptr)
        )
        return self._with_popularity(vectors, torch.from_numpy(clicked_by.lengths))

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no clicks, no embedding."""
        more = copy(self)
        more.items = torch.cat([self.items, self.encode(text)])
        return more

    def item_vectors(self) -> Tensor:
        """z_i and the popularity term (num_items, text_dim + 1)."""
        return self.items

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, text_dim + 1)."""
        weights = recency_weights(queries.histories, self.decay)
        query = self.net.query(aggregate(queries.histories, self.items[:, :-1], weights))  # (B, text_dim)
        return torch.cat([query, torch.ones(len(query), 1)], dim=1)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Served vectors, and the network and whitening that new items need; without embeddings."""
        own = {"items": self.items, "users": self.users, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        kept = {name: value for name, value in self.net.state_dict().items() if name != "ids"}
        whitening = prefixed("whitening", self.whitening.state()) if self.whitening is not None else {}
        return own | prefixed("net", kept) | whitening

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.users, self.decay = state["items"], state["users"], float(state["decay"])
        whitening = under("whitening", state)
        self.whitening = Whitening.restore(whitening) if whitening else None
        self.net = _Net(self.config, self.items.shape[1] - 1, 0, seed=0)
        embeddings = {} if self.net.ids is None else {"ids": self.net.ids}  # none: the vectors contain them
        self.net.load_state_dict(under("net", state) | embeddings)
        self.net.eval()


class _Net(nn.Module):
    """The trainable tensors, and the two hops over any ragged neighbourhoods, sampled or complete."""

    def __init__(self, config: GraphSAGEConfig, text_dim: int, num_items: int, seed: int) -> None:
        super().__init__()
        random = torch_rng(seed, "graphsage/start")

        def weights(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=random) / columns**0.5)

        hidden, self.temperature = config.hidden, config.temperature
        self.pool = config.aggregator == "max"
        if self.pool:
            self.pool_items, self.pool_items_bias = weights(hidden, text_dim), nn.Parameter(torch.zeros(hidden))
            self.pool_users, self.pool_users_bias = weights(hidden, hidden), nn.Parameter(torch.zeros(hidden))
        self.into_users = weights(hidden, hidden if self.pool else text_dim)  # W_u
        self.into_items = nn.Parameter(torch.zeros(text_dim, hidden))  # W_i
        self.own = nn.Parameter(torch.eye(text_dim))  # W_s
        self.query_map = nn.Parameter(torch.eye(text_dim))  # W_q
        self.popularity = nn.Parameter(torch.zeros(1), requires_grad=config.loss == "softmax")  # p
        self.ids: nn.Parameter | None = None
        if config.ids:
            self.ids = nn.Parameter(torch.randn(num_items, text_dim, generator=random) * 0.1 / text_dim**0.5)

    def features(self, text_features: Tensor, warm: Tensor) -> Tensor:
        """x (num_items, text_dim) from text features of that shape, with e for the `warm` items (num_items,) only."""
        return text_features if self.ids is None else text_features + self.ids * warm[:, None]

    def encode_users(self, features: Tensor, nodes: Tensor, offsets: Tensor) -> Tensor:
        """h (n, hidden) of users whose items are the ragged list `nodes` (m,), `offsets` (n + 1,)."""
        if self.pool:
            pool = (self.pool_items, self.pool_items_bias)
            return F.relu(_neighbourhood(features, nodes, offsets, pool) @ self.into_users.T)
        if features.requires_grad and len(nodes) > len(features):  # the same mean; the table's gradient is narrower
            return F.relu(_neighbourhood(features @ self.into_users.T, nodes, offsets))
        return F.relu(_neighbourhood(features, nodes, offsets) @ self.into_users.T)

    def encode_items(self, features: Tensor, users: Tensor, nodes: Tensor, offsets: Tensor) -> Tensor:
        """z (n, text_dim) of items with features x (n, text_dim) and a ragged list of clickers, rows of `users`."""
        pool = (self.pool_users, self.pool_users_bias) if self.pool else None
        return unit(features @ self.own.T + _neighbourhood(users, nodes, offsets, pool) @ self.into_items.T)

    def query(self, history: Tensor) -> Tensor:
        """q W_q / temperature (B, text_dim) from the weighted sums of the histories' vectors (B, text_dim)."""
        return unit(history) @ self.query_map / self.temperature


def _neighbourhood(table: Tensor, nodes: Tensor, offsets: Tensor, pool: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """AGG (n, d) of the rows `nodes` (m,) of a table (k, d): mean, or with `pool` = (W, b) max of relu(W h + b)."""
    if pool is None:
        return F.embedding_bag(nodes, table, offsets, mode="mean", include_last_offset=True)
    if len(nodes) < len(table):  # pool what is needed only
        rows, nodes = torch.unique(nodes, return_inverse=True)
        table = table.index_select(0, rows)
    table = F.relu(table @ pool[0].T + pool[1])
    return F.embedding_bag(nodes, table, offsets, mode="max", include_last_offset=True)


class _Loss:
    """The loss of a batch of next clicks, over neighbourhoods that are sampled for it."""

    def __init__(
        self,
        config: GraphSAGEConfig,
        net: _Net,
        graph: Neighbourhoods,
        text_features: Tensor,
        clicks: NextClicks,
        decay: float,
    ) -> None:
        self.config, self.net, self.graph, self.text_features = config, net, graph, text_features
        self.clicks, self.decay, self.device = clicks, decay, text_features.device
        self.warm = graph.of_items.degree > 0

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Cross-entropy of the targets of the examples `rows`."""
        histories, num_items = self.clicks.histories(rows), len(self.text_features)
        target, user = (to_device(part[rows], self.device) for part in (self.clicks.target, self.clicks.user))
        in_batch = self.config.loss == "in-batch"  # the other targets are the negatives: none are drawn
        drawn = target[:0] if in_batch else to_device(draw_negatives(self.config.negatives, num_items, at), self.device)
        past, owner = (to_device(part, self.device) for part in (histories.items, histories.row_of_entry))
        roots = torch.cat([past, target, drawn])
        avoid = torch.cat([user.index_select(0, owner), user, torch.full_like(drawn, -1)])
        history, wanted, others = torch.split(self._encode(roots, avoid, at), [len(past), len(target), len(drawn)])

        weighted = history * to_device(recency_weights(histories, self.decay), self.device)[:, None]
        sums = weighted.new_zeros(len(rows), weighted.shape[1]).index_add(0, owner, weighted)
        query = dropout(self.net.query(sums), self.config.dropout, at.torch_rng("dropout"))  # (B, text_dim)
        if in_batch:
            return in_batch_softmax_loss(query @ wanted.T, target)
        positive = (query * wanted).sum(1) + self._popularity(target)
        negative = query @ others.T + self._popularity(drawn)  # (B, negatives)
        return sampled_softmax_loss(positive, mask_targets(negative, drawn, target), num_items)

    def _popularity(self, items: Tensor) -> Tensor:
        return self.net.popularity * self.graph.of_items.degree_of(items).float().log1p()

    def _encode(self, roots: Tensor, avoid: Tensor, at: At) -> Tensor:
        """Vectors (n, text_dim) of items from sampled clickers, never `avoid` (n,), and sampled items of these."""
        config, random = self.config, draws(*at)
        warm = self.warm & to_device(kept_items(len(self.warm), config.cold_dropout, at), self.device)
        known = warm.index_select(0, roots)  # dropped items have no neighbours
        features = self.net.features(self.text_features, warm)
        clickers = sample(self.graph.of_items, roots[known], config.users_per_item, random, avoid[known])
        found, place = torch.unique(clickers.nodes, return_inverse=True)  # a sort of the short hop saves the long one
        items = sample(self.graph.of_users, found, config.items_per_user, random)
        users = self.net.encode_users(features, items.nodes, items.offsets)  # one row per user found
        counts = torch.zeros_like(roots).masked_scatter(known, clickers.counts)
        offsets = F.pad(counts.cumsum(0), (1, 0))
        return self.net.encode_items(features.index_select(0, roots), users, place, offsets)
