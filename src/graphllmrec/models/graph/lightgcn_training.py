"""LightGCN's trainable tensors, and what it is trained on: clicks of histories, clicks of users, or users.

models/graph/lightgcn.py tells the equations. An example is drawn by number, and everything random about it is a function of
`at` = (seed, stage, epoch, step).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.neighbours import Neighbourhoods, draws, propagate_sampled
from graphllmrec.graph.propagate import combine, perturbed, propagate, propagate_items, propagate_layers, sparse_product
from graphllmrec.graph.svd import truncated_svd
from graphllmrec.nn.dropout import dropout, kept_items
from graphllmrec.nn.histories import Averages
from graphllmrec.nn.losses import (
    bpr_loss,
    contrast_loss,
    direct_au_loss,
    grouped_softmax_loss,
    in_batch_softmax_loss,
    log_partition,
    sampled_softmax_loss,
    slk_loss,
    softmax_loss,
)
from graphllmrec.nn.vectors import unit
from graphllmrec.rng import At, torch_rng
from graphllmrec.train.batches import NextClicks, UnclickedItems, uniform_items

if TYPE_CHECKING:
    from graphllmrec.models.graph.lightgcn import LightGCNConfig

SLK_CUTOFF, SLK_REFRESH, SLK_TEMPERATURE = 20, 20, 2.25  # K, epochs between new β_u, τ_w on the scale of a cosine


class Examples(Protocol):
    """What an example is, and what a batch of them loses."""

    def __len__(self) -> int:
        """How many there are."""

    def loss(self, rows: Ints, at: At) -> Tensor:
        """Mean loss of the examples with these numbers (B,): a scalar."""


def examples_of(net: Net, graph: Bipartite, split: Split, decay: float) -> Examples:
    """The examples that the settings ask for."""
    if net.config.query == "history":
        return _HistoryClicks(net, graph, split, decay)
    return _Users(net, graph, split, decay) if net.config.by_user else _UserClicks(net, graph, split, decay)


class Net(nn.Module):
    """The trainable tensors; called with the graph it returns the layer means (num_users, dim), (num_items, dim)."""

    users: Tensor  # (num_users, dim) layer 0; where histories ask there is none
    items: Tensor  # (num_items, dim) layer 0
    bias: Tensor  # (num_items,) learned where histories ask, else zero
    turn: Tensor  # (dim, dim) W, where histories ask
    log_clicks: Tensor  # (num_items,) log of clicks over their mean
    floor: Tensor  # (num_users,) β_u of SL@K

    def __init__(self, config: LightGCNConfig, graph: Bipartite, seed: int) -> None:
        super().__init__()
        self.config = config
        (num_users, num_items), start = graph.to_users.shape, torch_rng(seed, "lightgcn/start")
        items = torch.randn(num_items, config.dim, generator=start) * 0.1
        users = torch.randn(num_users, config.dim, generator=start) * 0.1 if config.query == "user" else None
        if config.start == "spectral":
            users, items = _spectral_start(graph, users, items, seed)
        self.items = nn.Parameter(items)
        clicks = graph.item_degree.clamp_min(1).float()
        self.register_buffer("log_clicks", (clicks / clicks.mean()).log(), persistent=False)
        if users is not None:
            self.users = nn.Parameter(users)
            self.register_buffer("bias", torch.zeros(num_items))
            if config.loss == "slk":
                self.register_buffer("floor", torch.zeros(num_users))  # β_u
        else:
            self.turn = nn.Parameter(torch.eye(config.dim))
            self.bias = nn.Parameter(torch.zeros(num_items))

    @property
    def layer_weights(self) -> list[float]:
        """Shares (L + 1) of the layers in z: the mean; XSimGCL leaves layer 0 out."""
        num_layers = self.config.num_layers
        return (
            [0.0] + [1 / num_layers] * num_layers if self.config.contrast else [1 / (num_layers + 1)] * (num_layers + 1)
        )

    @property
    def prior(self) -> Tensor:
        """What is added to every score of an item (num_items,)."""
        return self.bias + self.config.popularity * self.log_clicks

    def forward(self, graph: Bipartite) -> tuple[Tensor, Tensor]:
        """z of users and items; of users an empty table where histories ask."""
        if self.config.query == "history":
            return self.items[:0], propagate_items(graph, self.items, self.config.num_layers)
        return propagate(graph, self.users, self.items, self.config.num_layers, self.layer_weights)

    def asking(self, query: Tensor) -> Tensor:
        """Queries (B, dim) as they meet `scored` items: a product of the two, plus the prior, is the score."""
        return unit(query) / self.config.temperature if self.config.cosine else query

    def scored(self, items: Tensor) -> Tensor:
        """Item vectors (n, dim) of length 1 under the cosine."""
        return unit(items) if self.config.cosine else items


def _spectral_start(graph: Bipartite, users: Tensor | None, items: Tensor, seed: int) -> tuple[Tensor | None, Tensor]:
    """Layer 0 from the leading singular vectors: U √S and V √S on the scale of .05, a trace of noise on top.

    The noise keeps nodes without clicks, whose singular vectors are zero, from having no direction at all; dimensions
    beyond the rank of the graph stay noise.
    """
    found = truncated_svd(graph.to_users, graph.to_items, items.shape[1], seed)
    tables = [table for table in (users, items) if table is not None]
    for table, vectors in zip(tables, (found.u, found.v)[-len(tables) :], strict=True):
        smooth = vectors * found.s.sqrt()
        table *= 0.02  # noise of .002
        table[:, : smooth.shape[1]] += smooth * (0.05 / smooth.square().mean().sqrt().clamp_min(1e-12))
    return users, items


class _Examples:
    """What the kinds of examples share."""

    def __init__(self, net: Net, graph: Bipartite, split: Split, decay: float) -> None:
        self.net, self.config, self.graph, self.decay = net, net.config, graph, decay
        self.num_items = split.num_items
        self.known = split.train.histories(split.num_users)

    def dropped(self, at: At) -> Bipartite:
        """The graph of this step."""
        seed, stage, epoch, step = at
        share = self.config.edge_dropout
        return self.graph.drop_edges(share, seed, stage, epoch, step) if share else self.graph

    def l2(self, *touched: Tensor) -> Tensor:
        """λ/2 · Σ |e|² of the batch's layer-0 embeddings; the caller divides by the size of the batch (eq. 15)."""
        return self.config.l2 / 2 * torch.stack([vectors.square().sum() for vectors in touched]).sum()

    def user_vectors(self, users: Tensor, items: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor | float]:
        """z of all users and all items, and XSimGCL's contrast of the layers of this batch's `users` and `items`."""
        net, config, graph = self.net, self.config, self.dropped(at)
        if not config.contrast:
            return *net(graph), 0.0
        seed, stage, epoch, step = at

        def noisy(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
            if not layer:
                return users, items
            where = (epoch, step, layer)
            return (
                perturbed(users, config.noise, seed, f"{stage}/noise-users", *where),
                perturbed(items, config.noise, seed, f"{stage}/noise-items", *where),
            )

        layers = propagate_layers(graph, net.users, net.items, config.num_layers, noisy)
        z = combine(layers, net.layer_weights)
        contrast = torch.zeros(())
        for whole, layer, touched in zip(z, layers[1], (users, items), strict=True):
            nodes = torch.unique(touched)
            contrast = contrast + contrast_loss(whole.index_select(0, nodes), layer.index_select(0, nodes))
        return *z, config.contrast * contrast


class _HistoryClicks(_Examples):
    """One example per click that has a history: the softmax of the clicked item."""

    def __init__(self, net: Net, graph: Bipartite, split: Split, decay: float) -> None:
        super().__init__(net, graph, split, decay)
        self.clicks = NextClicks(self.known, split.ordered, self.config.max_history)

    def __len__(self) -> int:
        return len(self.clicks)

    def loss(self, rows: Ints, at: At) -> Tensor:
        """Mean cross-entropy of the clicked items."""
        net, config = self.net, self.config
        averages = Averages.of(self.clicks.histories(rows), self.num_items, self.decay)
        _, items = net(self.dropped(at))
        items = items * kept_items(self.num_items, config.cold_dropout, at)[:, None].float()
        query = sparse_product(averages.matrix, averages.transposed, items) @ net.turn  # (B, dim)
        query = net.asking(dropout(query, config.dropout, at.torch_rng("dropout")))
        return _softmax(config.negatives, query, net.scored(items), net.prior, self.clicks.target[rows], at)


class _UserClicks(_Examples):
    """One example per click, asked by the user's own embedding: the published training, and what compares pairs."""

    def __init__(self, net: Net, graph: Bipartite, split: Split, decay: float) -> None:
        super().__init__(net, graph, split, decay)
        self.user, self.item = split.train.user, split.train.item
        self.unclicked = UnclickedItems(self.known, split.num_items)
        whole = not self.config.fanouts
        self.sampled = None if whole else Neighbourhoods.of(split.train, split.num_users, split.num_items)

    def __len__(self) -> int:
        return len(self.item)

    def loss(self, rows: Ints, at: At) -> Tensor:
        """Mean loss of the clicks, plus L2 and contrast."""
        net, config = self.net, self.config
        user, item = torch.from_numpy(self.user[rows]), torch.from_numpy(self.item[rows])
        nodes = torch.cat([item, self._others(self.user[rows], at)])  # (B + others,) items whose vectors are needed
        users, items, contrast = self._vectors(user, nodes, at)
        query, items, prior = net.asking(users), net.scored(items), net.prior.index_select(0, nodes)
        clicked = len(item)
        if config.loss == "bpr":
            scores = (query.repeat(2, 1) * items).sum(1) + prior
            value = bpr_loss(scores[:clicked], scores[clicked:])
        elif config.loss == "softmax":
            value = _sampled_softmax(query, items, prior, nodes, self.num_items)
        elif config.loss == "directau":
            value = direct_au_loss(unit(users), unit(items), config.uniformity)
        else:
            scores = query @ items.T + prior  # (B, B)
            value = in_batch_softmax_loss(scores, item, net.log_clicks.index_select(0, item))
        touched = nodes if config.loss == "bpr" else item
        size = self.l2(net.users.index_select(0, user), net.items.index_select(0, touched)) if config.l2 else 0.0
        return value + size / len(rows) + contrast

    def _others(self, users: Ints, at: At) -> Tensor:
        """The items that the clicked ones are compared with, besides each other."""
        if self.config.loss == "bpr":
            return torch.from_numpy(self.unclicked.draw(users, *at))
        return torch.from_numpy(
            uniform_items(self.config.negatives if self.config.loss == "softmax" else 0, self.num_items, *at)
        )

    def _vectors(self, user: Tensor, nodes: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor | float]:
        """z of these users and items, and the contrast: propagated over the whole graph, or over sampled walks."""
        if self.sampled is None:
            users, items, contrast = self.user_vectors(user, nodes[: len(user)], at)
            return users.index_select(0, user), items.index_select(0, nodes), contrast
        tables, fanouts, random = (self.net.users, self.net.items), self.config.fanouts, draws(*at)
        return (
            propagate_sampled(self.sampled, *tables, user, "users", fanouts, random),
            propagate_sampled(self.sampled, *tables, nodes, "items", fanouts, random),
            0.0,
        )


class _Users(_Examples):
    """One example per user, with all clicks: they share one partition function over all items."""

    def __init__(self, net: Net, graph: Bipartite, split: Split, decay: float) -> None:
        super().__init__(net, graph, split, decay)
        self.active = np.flatnonzero(self.known.lengths)

    def __len__(self) -> int:
        return len(self.active)

    def loss(self, rows: Ints, at: At) -> Tensor:
        """Mean loss of the users' clicks, weighted by `user_weight`, plus L2 and contrast."""
        net, config = self.net, self.config
        clicks = self.known.take(self.active[rows])
        user, item, row = (torch.from_numpy(part) for part in (self.active[rows], clicks.items, clicks.row_of_entry))
        if config.loss == "slk" and at[2] % SLK_REFRESH == 0 and at[3] == 0:
            self._refresh_floor()
        users, items, contrast = self.user_vectors(user, item, at)
        query, items = net.asking(users.index_select(0, user)), net.scored(items)
        asking = torch.cat([query, torch.ones(len(query), 1)], dim=1)  # (B, dim + 1)
        asked = torch.cat([items, net.prior[:, None]], dim=1)  # (num_items, dim + 1)
        partition = log_partition(asking, asked)
        positive = (asking.index_select(0, row) * asked.index_select(0, item)).sum(1)  # (clicks,)
        weight = torch.from_numpy((clicks.lengths ** (config.user_weight - 1.0))[clicks.row_of_entry]).float()
        if config.loss == "slk":
            scale = SLK_TEMPERATURE / config.temperature if config.cosine else SLK_TEMPERATURE
            value = slk_loss(partition, positive, row, weight, net.floor.index_select(0, user), scale)
        else:
            value = grouped_softmax_loss(partition, positive, row, weight)
        size = self.l2(net.users.index_select(0, user), net.items.index_select(0, item)) if config.l2 else 0.0
        return value + size / len(item) + contrast

    @torch.no_grad()
    def _refresh_floor(self) -> None:
        """β_u of all users: their K-th largest score."""
        users, items = self.net(self.graph)
        users, items = self.net.asking(users), self.net.scored(items)
        k = min(SLK_CUTOFF, len(items))
        for start in range(0, len(users), 256):
            scores = users[start : start + 256] @ items.T + self.net.prior
            self.net.floor[start : start + 256] = scores.topk(k, dim=1).values[:, -1]


def _softmax(negatives: int, query: Tensor, items: Tensor, prior: Tensor, target: Ints, at: At) -> Tensor:
    """Cross-entropy of the targets among all items, or among sampled ones."""
    if not negatives or negatives >= len(items):
        return softmax_loss(query @ items.T + prior, torch.from_numpy(target))
    nodes = torch.from_numpy(np.concatenate([target, uniform_items(negatives, len(items), *at)]))
    return _sampled_softmax(query, items.index_select(0, nodes), prior.index_select(0, nodes), nodes, len(items))


def _sampled_softmax(query: Tensor, items: Tensor, prior: Tensor, nodes: Tensor, num_items: int) -> Tensor:
    """Cross-entropy of B targets, the first of `nodes` (B + N,), among N drawn ones; `items`: vectors of `nodes`."""
    size = len(query)
    positive = (query * items[:size]).sum(1) + prior[:size]
    others = query @ items[size:].T + prior[size:]  # (B, N)
    others = others.masked_fill(nodes[None, size:] == nodes[:size, None], -torch.inf)
    return sampled_softmax_loss(positive, others, num_items)
