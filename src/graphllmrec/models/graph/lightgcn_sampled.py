"""LightGCN trained on single clicks against a few other items: pairs, drawn items, or the other clicks of the batch.

Vectors z_u and z_i are those of models/graph/lightgcn.py (He et al. 2020, arXiv:2002.02126, eqs. 3 and 4). With
s(u, i) = z_u · z_i + c log(clicks of i over their mean), or cos(z_u, z_i) / τ instead of the product, the loss of a
click (u, i) is

    "bpr"       -ln σ(s(u, i) - s(u, j)), j an item that u did not click, as in the paper
    "softmax"   cross-entropy of i among `negatives` items drawn uniformly for the batch, corrected for the draw
    "in-batch"  cross-entropy of i among the items clicked in the batch, corrected for their popularity
    "directau"  |z_u - z_i|² of unit vectors, plus γ times their uniformity (DirectAU)

plus λ/2 of the squared layer-0 embeddings of the batch; nn/losses.py has the source of each. Only these users and items
take part in a step, so the layers may be sums over sampled walks (`fanouts`, one per layer): unbiased, at a cost that
does not depend on the size of the graph (graph/neighbours.py). `init`, `edge_dropout` and `contrast` are those of
models/graph/lightgcn_softmax.py. Unknown users are folded in (nn/fold_in.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.neighbours import Neighbourhoods, draws, propagate_sampled
from graphllmrec.nn.embeddings import GraphEmbeddings, Init
from graphllmrec.nn.examples import UnclickedItems, uniform_items
from graphllmrec.nn.fold_in import fold_in_table, longest_query, user_vectors
from graphllmrec.nn.losses import bpr_loss, direct_au_loss, drawn_softmax_loss, in_batch_softmax_loss
from graphllmrec.nn.scoring import Scale, log_popularity, rows_below_all, with_bias, with_one
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.settings import Condition, Config
from graphllmrec.train.device import resolve_device, to_device
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model


class LightGCNSampledConfig(MonitoredConfig):
    """Settings of LightGCN on single clicks."""

    epochs: int = Field(40, ge=0, le=100_000, description="passes over the clicks at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="clicks per step")
    embedding_dim: int = Field(64, ge=1, le=8_192, description="size of the embeddings")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L; 0 is matrix factorisation")
    init: Init = Field("random", description="layer 0 at the start: noise, or singular vectors of the graph")
    loss: Literal["bpr", "softmax", "in-batch", "directau"] = Field("bpr", description="what a click is compared with")
    negatives: int = Field(0, ge=0, le=10_000_000, description="items drawn for a batch by the softmax")
    uniformity: float = Field(1.0, ge=0, le=100, description="γ of DirectAU")
    cosine: bool = Field(False, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    popularity: float = Field(0.0, ge=0, le=2, description="c: every item's exp(score) has a factor clicks^c")
    l2: float = Field(0.0, ge=0, le=10, description="λ: penalty on the layer-0 embeddings of the batch")
    fanouts: tuple[Annotated[int, Field(ge=1, le=1_000)], ...] = Field(
        (), max_length=16, description="neighbours sampled per layer in training, for huge graphs; none: all of them"
    )
    edge_dropout: float = Field(0.0, ge=0, lt=1, description="share of edges left out of a training step's graph")
    contrast: float = Field(0.0, ge=0, le=100, description="weight of XSimGCL's contrast of noisy layers; 0 is off")
    noise: float = Field(0.2, ge=0, le=10, description="length of XSimGCL's noise per layer")

    @model_validator(mode="after")
    def _fits_together(self) -> LightGCNSampledConfig:
        if bool(self.negatives) != (self.loss == "softmax"):
            raise ValueError(
                'negatives belong to loss = "softmax", which needs at least 1; over all items: model "lightgcn-softmax"'
            )
        if self.fanouts and len(self.fanouts) != self.num_layers:
            raise ValueError(f"{len(self.fanouts)} fanouts for {self.num_layers} layers: give one per layer, or none")
        if self.fanouts and (self.contrast or self.edge_dropout):
            raise ValueError("fanouts sample the graph: they go with neither contrast nor edge_dropout")
        return self

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("uniformity", self.loss == "directau", 'loss = "directau"')
        yield Condition("temperature", self.cosine, "cosine = true")
        products = self.loss in ("softmax", "in-batch", "directau") or self.contrast > 0
        yield Condition("precision", products, "a loss with dense matrix products (softmax, in-batch), or contrast")
        yield Condition("noise", self.contrast > 0, "contrast above 0")
        yield Condition("contrast edge_dropout", self.num_layers > 0, "num_layers of at least 1")


class LightGCNSampled:
    """LightGCN on single clicks and what is drawn for them; a vector model."""

    name: ClassVar[str] = "lightgcn-sampled"
    config_class: ClassVar[type[Config]] = LightGCNSampledConfig
    abilities = Abilities(uses_weights=True)  # but for DirectAU

    def __init__(self, config: LightGCNSampledConfig) -> None:
        self.config, self.scale = config, Scale(config.cosine, config.temperature)
        self.abilities = Abilities(uses_weights=config.loss != "directau")
        self.items = torch.empty(0, 0)  # (num_items, embedding_dim + 1) z_i and its bias
        self.users = torch.empty(0, 0)  # (num_users, embedding_dim) z_u
        self.fold_in = torch.empty(0, 0)  # (num_items, embedding_dim) what an item adds to z of an unknown user

    def fit(self, task: Task) -> None:
        """Train on `task`'s clicks, early stopping on its validation part. Raises Interrupted."""
        training, num_clicks = _Training(self.config, self.scale, task.split, task.seed), len(task.split.train)
        train_model(
            self, task, training.net, num_clicks, training.loss, lambda: self._export_vectors(training), stage="graph"
        )

    @torch.no_grad()
    def _export_vectors(self, training: _Training) -> None:
        """What is served, on the CPU, from the trained embeddings."""
        net = training.net
        users, items = net()
        self.users, self.items = users.cpu(), with_bias(self.scale.items(items), training.bias).cpu()
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


class _Training:
    """The embeddings, and the loss of a batch of clicks."""

    def __init__(self, config: LightGCNSampledConfig, scale: Scale, split: Split, seed: int) -> None:
        self.config, self.scale, self.num_items = config, scale, split.num_items
        self.device = resolve_device(config.device)
        graph = Bipartite.of(split.train, split.num_users, split.num_items).to(self.device)
        self.net = GraphEmbeddings(
            graph, config.embedding_dim, config.num_layers, config.init, seed, skip_layer_0=config.contrast > 0
        )
        self.log_clicks = log_popularity(graph.item_degree)  # (num_items,)
        self.bias = config.popularity * self.log_clicks  # (num_items,)
        self.user, self.item = split.train.user, split.train.item
        self.weight = split.train.relative_weight()
        self.unclicked = UnclickedItems(split.train.histories(split.num_users), split.num_items)
        self.neighbours = None
        if config.fanouts:
            self.neighbours = Neighbourhoods.of(split.train, split.num_users, split.num_items).to(self.device)

    def loss(self, rows: Ints, at: At) -> Tensor:
        """Mean loss of the clicks `rows` (B,), plus L2 and contrast."""
        config, scale = self.config, self.scale
        user, item = (to_device(side[rows], self.device) for side in (self.user, self.item))  # (B,)
        nodes = torch.cat([item, to_device(self._drawn(self.user[rows], at), self.device)])  # (B + drawn,)
        users, items, contrast = self._vectors(user, nodes, at)  # (B, d), (B + drawn, d)
        weight = None if self.weight is None else to_device(self.weight[rows], self.device)  # (B,)
        query, items, bias = scale.queries(users), scale.items(items), self.bias.index_select(0, nodes)
        if config.loss == "bpr":
            scores = (query.repeat(2, 1) * items).sum(1) + bias  # (2B,)
            value = bpr_loss(scores[: len(item)], scores[len(item) :], weight)
        elif config.loss == "softmax":
            value = drawn_softmax_loss(query, items, bias, nodes, self.num_items, weight)
        elif config.loss == "in-batch":
            scores = query @ items.T + bias  # (B, B)
            value = in_batch_softmax_loss(scores, item, self.log_clicks.index_select(0, item), weight)
        else:
            value = direct_au_loss(unit(users), unit(items), config.uniformity)
        penalised = nodes if config.loss == "bpr" else item
        penalty = config.l2 * self.net.l2(user, penalised) / len(rows) if config.l2 else 0.0
        return value + penalty + config.contrast * contrast

    def _drawn(self, users: Ints, at: At) -> Ints:
        """The items that a batch compares its clicked items with, besides each other."""
        if self.config.loss == "bpr":
            return self.unclicked.draw(users, *at)  # (B,)
        return uniform_items(self.config.negatives, self.num_items, *at)  # (negatives,)

    def _vectors(self, user: Tensor, nodes: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """z of these users and items, and the contrast (): propagated over the whole graph, or over sampled walks."""
        config, net, contrast = self.config, self.net, self.bias.new_zeros(())
        if self.neighbours is not None:
            walks, tables, random = self.neighbours, (net.users, net.items), draws(*at)
            z_user = propagate_sampled(walks, *tables, user, "users", config.fanouts, random)
            return z_user, propagate_sampled(walks, *tables, nodes, "items", config.fanouts, random), contrast
        graph = net.drop_edges(config.edge_dropout, at)
        if config.contrast:
            users, items, contrast = net.contrasted(graph, config.noise, user, nodes[: len(user)], at)
        else:
            users, items = net(graph)
        return users.index_select(0, user), items.index_select(0, nodes), contrast
