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

What makes training fast (recipe lightgcn-fast), each a setting of its own:
- `loss="softmax"` of a user's embedding: all clicks of a user share one partition function over all items, so the exact
  full softmax costs one row per user instead of one per click (nn/losses.py, `log_partition`);
- `cosine`: the score is cos(z_u, z_i) / temperature;
- `popularity`: the score gets + c log(clicks of i), in training and in serving, so that angles need not hold it;
- `user_weight`: the clicks of a user with n of them weigh n^(p-1) each, because ranking metrics count users alike;
- `fanouts`: the layers are sums over sampled walks, unbiased (graph/neighbours.py), where propagating over the whole graph
  in every step takes too long;
- `start="spectral"`: layer 0 begins as the leading singular vectors of the normalised graph.

`loss="slk"` is SL@K, "directau" and "in-batch" are DirectAU and the in-batch softmax with popularity correction, and
`contrast` adds XSimGCL's noisy views; see nn/losses.py for each one's source.
Recorded differences from the paper: mean of layers with equal weight (the paper's own default), AdamW instead of Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate
from graphllmrec.models.graph.lightgcn_training import Net, examples_of
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class LightGCNConfig(MonitoredConfig):
    """Settings of LightGCN."""

    epochs: int = Field(40, ge=0, le=100_000, description="passes over the training data at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="examples per step: clicks, or users (loss per user)")
    dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L; 0 is matrix factorisation")
    query: Literal["user", "history"] = Field("history", description="who asks: a user's embedding, or a history")
    loss: Literal["bpr", "softmax", "slk", "directau", "in-batch"] = Field(
        "softmax", description="training loss; histories train with softmax"
    )
    negatives: int = Field(0, ge=0, le=10_000_000, description="sampled negatives of the softmax; 0 takes all items")
    cosine: bool = Field(False, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    popularity: float = Field(
        0.0, ge=0, le=2, description="c of the prior clicks^c that every item's score starts from"
    )
    user_weight: float = Field(
        1.0, ge=0, le=1, description="p: n clicks of a user weigh n^p; 1 click alike, 0 user alike"
    )
    start: Literal["random", "spectral"] = Field(
        "random", description="layer 0 at the start: noise, or singular vectors"
    )
    fanouts: tuple[Annotated[int, Field(ge=1, le=1_000)], ...] = Field(
        (), max_length=16, description="neighbours sampled per layer in training, for huge graphs; none: all of them"
    )
    edge_dropout: float = Field(0.0, ge=0, lt=1, description="share of edges left out of a training step's graph")
    contrast: float = Field(0.0, ge=0, le=100, description="weight of XSimGCL's contrast of noisy layers; 0 is off")
    noise: float = Field(0.2, ge=0, le=10, description="length of XSimGCL's noise per layer")
    uniformity: float = Field(1.0, ge=0, le=100, description="γ of DirectAU")
    decay: float = Field(0.55, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of query dimensions dropped in training")
    cold_dropout: float = Field(0.3, ge=0, lt=1, description="items that lose their vector in a step (cold start)")
    l2: float = Field(0.0, ge=0, le=10, description="penalty on the batch's layer-0 embeddings (eq. 15)")

    @model_validator(mode="after")
    def _histories_train_with_softmax(self) -> LightGCNConfig:
        if self.query == "history" and (self.loss != "softmax" or self.contrast):
            raise ValueError(
                f'loss {self.loss!r} and contrast need query = "user": a history trains with softmax alone'
            )
        if self.contrast and not self.num_layers:
            raise ValueError("contrast compares layers: it needs num_layers of at least 1")
        if self.fanouts and len(self.fanouts) != self.num_layers:
            raise ValueError(f"{len(self.fanouts)} fanouts for {self.num_layers} layers: give one per layer, or none")
        if self.fanouts and (self.query == "history" or self.by_user or self.contrast or self.edge_dropout):
            raise ValueError(
                'fanouts need query = "user", a loss of single clicks (bpr, directau, in-batch, or softmax with '
                "negatives), and neither contrast nor edge_dropout"
            )
        return self

    @property
    def by_user(self) -> bool:
        """An example is a user with all clicks, not a single click."""
        return self.query == "user" and (self.loss == "slk" or (self.loss == "softmax" and not self.negatives))


class LightGCN:
    """Light graph convolution over the user–item graph; a vector model."""

    name: ClassVar[str] = "lightgcn"
    config_class: ClassVar[type[Config]] = LightGCNConfig
    abilities = Abilities()

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
        net = Net(self.config, graph, task.seed)
        examples = examples_of(net, graph, split, self.decay)

        train_model(
            self, task, net, len(examples), examples.loss, lambda: self._export_vectors(net, graph), stage=stage
        )

    @torch.no_grad()
    def _export_vectors(self, net: Net, graph: Bipartite) -> None:
        """The vectors to serve from the trained embeddings."""
        users, items = net(graph)
        self.items = torch.cat([net.scored(items), net.prior[:, None]], dim=1)
        if self.config.query == "history":
            self.users, self.fold = torch.empty(0, self.config.dim), items @ net.turn
            return
        self.users = users
        # A new node's layer l + 1 is Σ_i i^(l) / sqrt(|N_u| |N_i|), so it needs the items' layers 0 … L - 1.
        weights = net.layer_weights
        if not self.config.num_layers:
            self.fold = items
            return
        below = propagate(graph, net.users, net.items, self.config.num_layers - 1, weights[1:])[1]
        self.fold = below / graph.item_degree.clamp_min(1).sqrt()[:, None]

    def item_vectors(self) -> Tensor:
        """z_i with the bias as last dimension (num_items, dim + 1)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, dim + 1)."""
        query = self._asking(self._folded(queries))
        return torch.cat([query, torch.ones(len(query), 1)], dim=1)

    def _folded(self, queries: Queries) -> Tensor:
        """What every query adds up to before the cosine takes its length away (B, dim)."""
        query = aggregate(queries.histories, self.fold, self._raw_weights(queries))  # (B, dim)
        if self.config.query == "user":
            known = torch.from_numpy(np.flatnonzero(queries.users >= 0))
            query[known] = self.users.index_select(0, torch.from_numpy(queries.users)[known])
        return query

    def _asking(self, query: Tensor) -> Tensor:
        return unit(query) / self.config.temperature if self.config.cosine else query

    def history_weights(self, queries: Queries) -> NDArray[np.float32]:
        """Weight (nnz,) with which the `fold` of every history entry enters its query; 0 for a known user's history."""
        weights = self._raw_weights(queries)
        if not self.config.cosine:
            return weights
        length = self._folded(queries).norm(dim=1).clamp_min(1e-12).numpy() * self.config.temperature
        scaled: NDArray[np.float32] = weights / length[queries.histories.row_of_entry]
        return scaled

    def _raw_weights(self, queries: Queries) -> NDArray[np.float32]:
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
        asking = self._asking(torch.cat([self.users, longest * self.fold])).norm(dim=1).max()
        reach = asking * self.items[:, :-1].norm(dim=1).max()
        new = torch.zeros(len(text), width)
        new[:, -1] = self.items[:, -1].min() - 2 * reach  # below z_u · z_i + b_i of any user and item
        self.items = torch.cat([self.items, new])
        self.fold = torch.cat([self.fold, torch.zeros(len(text), self.fold.shape[1])])
