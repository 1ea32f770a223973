"""RecMind's trainable tensors and its losses; models/fusion/recmind.py tells the equations.

An example is drawn by number, and everything random about it is a function of `at` = (seed, stage, epoch, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import combine, propagate, propagate_layers, sparse_product
from graphllmrec.grokking.gate_schedule import gate_shift, shifted
from graphllmrec.nn.align import Queue, alignment_loss
from graphllmrec.nn.dropout import dropout, dropout_mask, kept_items
from graphllmrec.nn.histories import Averages
from graphllmrec.nn.losses import (
    bpr_loss,
    grouped_softmax_loss,
    log_partition,
    sampled_softmax_loss,
    slk_loss,
    softmax_loss,
)
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.text.lora import AdaptedEncoder, require_texts
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.batches import NextClicks, UnclickedItems, uniform_items

if TYPE_CHECKING:
    from graphllmrec.models.fusion.recmind import RecMindConfig

SLK_CUTOFF, SLK_REFRESH, SLK_TEMPERATURE = 20, 20, 2.25  # K, epochs between new β_u, τ_w on the scale of a cosine
GATE_OPEN, GATE_FALL = 2.0, 4.0  # γ = σ(2 - 4 d̃) at the start: .88 for one click, .12 for the most clicked node


@dataclass(frozen=True)
class Words:
    """Whitened text of unit length, zero where there is none: what W_proj projects."""

    items: Tensor  # (num_items, dims)
    has_text: Tensor  # (num_items,) bool
    users: Tensor | None = None  # (num_users, dims) of texts by users; None: nobody wrote any
    user_has_text: Tensor | None = None  # (num_users,) bool


class Gate(nn.Module):
    """γ = σ(wᵀ[E ‖ z_L ‖ d̃] + b) of a node; 1 for a node without clicks, of which E says nothing.

    A share m of it may be handed over to one side (grokking/gate_schedule.py); none is unless diagnostics of the training say so.
    """

    moved: Tensor  # () m

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.by_graph = nn.Parameter(torch.zeros(dim))
        self.by_text = nn.Parameter(torch.zeros(dim))
        self.by_degree = nn.Parameter(torch.tensor(-GATE_FALL))
        self.bias = nn.Parameter(torch.tensor(GATE_OPEN))
        self.register_buffer("moved", torch.zeros(()))

    def forward(self, graph: Tensor, text: Tensor, degree: Tensor) -> Tensor:
        """γ (n, 1) from E (n, dim), z_L (n, dim) and d̃ (n,)."""
        raw = graph @ self.by_graph + text @ self.by_text + self.by_degree * degree + self.bias  # (n,)
        return torch.where(degree > 0, shifted(torch.sigmoid(raw), self.moved), 1.0)[:, None]


class Projection(nn.Module):
    """W_proj of z_L = W_proj x, with a residual network before it where it has hidden units; no text, no vector."""

    def __init__(self, dims: int, dim: int, hidden: int, seed: int) -> None:
        super().__init__()
        random = torch_rng(seed, "recmind/projection")
        self.matrix = nn.Parameter(torch.eye(dim, dims))  # the leading axes: untrained, z_L is the whitened text
        self.inner = nn.Parameter(torch.randn(hidden, dims, generator=random) / dims**0.5 * 2)
        self.outer = nn.Parameter(torch.zeros(dims, hidden))

    def forward(self, words: Tensor, keep: Tensor | None = None) -> Tensor:
        """z_L (n, dim) of unit rows (n, dims); keep (n, hidden): dropout of the hidden units."""
        if len(self.inner):
            hidden = F.gelu(words @ self.inner.T)  # (n, hidden)
            words = unit(words + (hidden if keep is None else hidden * keep) @ self.outer.T)
        return words @ self.matrix.T


@dataclass(frozen=True)
class Fused:
    """h of all nodes, and how it came about."""

    users: Tensor  # (num_users, dim)
    items: Tensor  # (num_items, dim)
    layers: list[tuple[Tensor, Tensor]]  # Ê^(0) … Ê^(L-1), E^(L) of users and items; empty where nothing is propagated
    gates: list[tuple[Tensor, Tensor]]  # γ of users and items, (n, 1) each, one per gated layer


class Net(nn.Module):
    """The trainable tensors of both views and of the gate."""

    users: Tensor  # (num_users, dim) E^(0); zero, and not trained, where histories ask
    user_degree: Tensor  # (num_users,) d̃
    item_degree: Tensor  # (num_items,) d̃
    log_clicks: Tensor  # (num_items,) log(1 + clicks)
    floor: Tensor  # (num_users,) β_u of SL@K

    def __init__(self, config: RecMindConfig, graph: Bipartite, words: Words, averages: Averages, seed: int) -> None:
        super().__init__()
        self.config, self.graph, self.words, self.averages = config, graph, words, averages
        (num_users, num_items), dim = graph.to_users.shape, config.dim
        start = torch_rng(seed, "recmind/start")
        scale = config.start / dim**0.5
        self.items = nn.Parameter(torch.randn(num_items, dim, generator=start) * scale)
        if config.query == "user":
            self.users = nn.Parameter(torch.randn(num_users, dim, generator=start) * scale)
        else:
            self.register_buffer("users", torch.zeros(num_users, dim), persistent=False)
            self.turn = nn.Parameter(torch.eye(dim))
        self.projection = Projection(words.items.shape[1], dim, config.hidden, seed)
        self.stand_in = nn.Parameter(torch.zeros(dim))  # z_L of an item without text: W_f e + this
        self.stand_in_turn = nn.Parameter(torch.zeros(dim, dim))  # W_f
        self.user_gate, self.item_gate = Gate(dim), Gate(dim)
        self.popularity = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(num_items), requires_grad=config.item_bias)
        self.user_queue, self.item_queue = Queue(config.queue, dim), Queue(config.queue, dim)
        for name, degree in (("user_degree", graph.user_degree), ("item_degree", graph.item_degree)):
            logs = degree.float().log1p()
            self.register_buffer(name, logs / logs.max().clamp_min(1e-9), persistent=False)
        self.register_buffer("log_clicks", graph.item_degree.float().log1p(), persistent=False)
        if config.loss == "slk":
            self.register_buffer("floor", torch.zeros(num_users))

    @property
    def prior(self) -> Tensor:
        """What is added to every score of an item (num_items,)."""
        return self.popularity * self.log_clicks + self.bias

    def language(self, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_L of users (num_users, dim) and items (num_items, dim); users are as fresh as the items they clicked."""
        words = self.words
        items = self.projection(words.items, keep)
        if not bool(words.has_text.all()):
            known = self.items * (self.item_degree > 0)[:, None]  # of a new item there is no e
            items = torch.where(words.has_text[:, None], items, known @ self.stand_in_turn.T + self.stand_in)
        users = sparse_product(self.averages.matrix, self.averages.transposed, items)
        if words.users is not None and words.user_has_text is not None:
            users = torch.where(words.user_has_text[:, None], self.projection(words.users), users)
        return users, items

    def graph_view(self) -> tuple[Tensor, Tensor]:
        """z_G of users and items: LightGCN of the embeddings alone."""
        return propagate(self.graph, self.users, self.items, self.config.num_layers)

    def fused(self, text: tuple[Tensor, Tensor]) -> Fused:
        """h of users and items from their z_L."""
        config = self.config
        if config.fusion == "text":
            return Fused(*text, [], [])
        if config.fusion == "graph":
            return Fused(*self.graph_view(), [], [])
        if config.fusion == "late":
            graph = self.graph_view()
            gates = self._gates(graph, text)
            users, items = _mixed(graph, text, gates)
            return Fused(users, items, [], [gates])
        kept: list[tuple[Tensor, Tensor]] = []

        def each(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
            if layer == config.num_layers:  # the gate stands before each propagation; none follows
                return users, items
            kept.append(self._gates((users, items), text))
            return _mixed((users, items), text, kept[-1])

        layers = propagate_layers(self.graph, self.users, self.items, config.num_layers, each)
        return Fused(*combine(layers), layers, kept)

    def _gates(self, graph: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return (
            self.user_gate(graph[0], text[0], self.user_degree),
            self.item_gate(graph[1], text[1], self.item_degree),
        )

    @torch.no_grad()
    def move_gates(self, priors: Mapping[str, float]) -> None:
        """Set m of both gates from the priors of "graph" and "text"."""
        for gate in (self.user_gate, self.item_gate):
            gate.moved.fill_(gate_shift(priors, "text", "graph"))

    def of_new(self, text: Tensor) -> Tensor:
        """h (n, dim) of items that nobody has clicked, from their z_L (n, dim): γ is 1 in every gated layer."""
        fusion, num_layers = self.config.fusion, self.config.num_layers
        return text * {"graph": 0.0, "intra": num_layers / (num_layers + 1)}.get(fusion, 1.0)

    def asking(self, query: Tensor) -> Tensor:
        """Queries (B, dim) as they meet `scored` items: a product of the two, plus the prior, is the score."""
        if self.config.query == "history":
            query = (unit(query) if self.config.cosine else query) @ self.turn
            return query / self.config.temperature if self.config.cosine else query
        return unit(query) / self.config.temperature if self.config.cosine else query

    def scored(self, items: Tensor) -> Tensor:
        """Item vectors (n, dim) of length 1 under the cosine."""
        return unit(items) if self.config.cosine else items


def _mixed(
    graph: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor], gates: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(1 - γ) E + γ z_L of users and items."""
    users, items = ((1 - gate) * g + gate * t for g, t, gate in zip(graph, text, gates, strict=True))
    return users, items


class Examples(Protocol):
    """What an example is, and what a batch of them loses."""

    def __len__(self) -> int:
        """How many there are."""

    def touched(self, rows: Ints) -> tuple[Ints, Ints]:
        """Distinct users and items of the examples `rows`."""

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        """Mean ranking loss; `items` (num_items, dim): h, with those that play cold in their place."""


def examples_of(net: Net, split: Split, decay: float) -> Examples:
    """The examples that the settings ask for."""
    if net.config.query == "history":
        return _NextClicks(net, split, decay)
    return _Clicks(net, split) if net.config.loss == "bpr" else _Users(net, split)


class _NextClicks:
    """One example per click that has a history: softmax of the clicked item, or BPR."""

    def __init__(self, net: Net, split: Split, decay: float) -> None:
        self.net, self.decay, self.num_items = net, decay, split.num_items
        known = split.train.histories(split.num_users)
        self.clicks = NextClicks(known, split.ordered, net.config.max_history)
        self.unclicked = UnclickedItems(known, split.num_items)

    def __len__(self) -> int:
        return len(self.clicks)

    def touched(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.unique(self.clicks.user[rows]), np.unique(self.clicks.target[rows])

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:  # noqa: ARG002 - no users ask
        net, config, target = self.net, self.net.config, self.clicks.target[rows]
        averages = Averages.of(self.clicks.histories(rows), self.num_items, self.decay)
        query = sparse_product(averages.matrix, averages.transposed, items)  # (B, dim)
        query = net.asking(dropout(query, config.dropout, at.torch_rng("dropout")))
        if config.loss == "bpr":
            return _pairs(net, query, items, target, self.unclicked.draw(self.clicks.user[rows], *at))
        return _softmax(net, query, items, target, at)


class _Clicks:
    """One example per click, asked by the user's own vector: BPR, as published."""

    def __init__(self, net: Net, split: Split) -> None:
        self.net, self.user, self.item = net, split.train.user, split.train.item
        self.unclicked = UnclickedItems(split.train.histories(split.num_users), split.num_items)

    def __len__(self) -> int:
        return len(self.item)

    def touched(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.unique(self.user[rows]), np.unique(self.item[rows])

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        user = self.user[rows]
        query = fused.users.index_select(0, torch.from_numpy(user))
        query = self.net.asking(dropout(query, self.net.config.dropout, at.torch_rng("dropout")))
        return _pairs(self.net, query, items, self.item[rows], self.unclicked.draw(user, *at))


class _Users:
    """One example per user, with all clicks: they share one partition function over all items."""

    def __init__(self, net: Net, split: Split) -> None:
        self.net, self.known = net, split.train.histories(split.num_users)
        self.active = np.flatnonzero(self.known.lengths)

    def __len__(self) -> int:
        return len(self.active)

    def touched(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.sort(self.active[rows]), np.unique(self.known.take(self.active[rows]).items)

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        net, config = self.net, self.net.config
        clicks = self.known.take(self.active[rows])
        user, item, row = (torch.from_numpy(part) for part in (self.active[rows], clicks.items, clicks.row_of_entry))
        if config.loss == "slk" and at[2] % SLK_REFRESH == 0 and at[3] == 0:
            self._refresh_floor(fused)
        query = net.asking(dropout(fused.users.index_select(0, user), config.dropout, at.torch_rng("dropout")))
        asking = torch.cat([query, torch.ones(len(query), 1)], dim=1)  # (B, dim + 1)
        asked = torch.cat([net.scored(items), net.prior[:, None]], dim=1)  # (num_items, dim + 1)
        partition = log_partition(asking, asked)
        positive = (asking.index_select(0, row) * asked.index_select(0, item)).sum(1)  # (clicks,)
        weight = torch.ones(len(item))
        if config.loss == "slk":
            scale = SLK_TEMPERATURE / config.temperature if config.cosine else SLK_TEMPERATURE
            return slk_loss(partition, positive, row, weight, net.floor.index_select(0, user), scale)
        return grouped_softmax_loss(partition, positive, row, weight)

    @torch.no_grad()
    def _refresh_floor(self, fused: Fused) -> None:
        """β_u of all users: their K-th largest score."""
        users, items = self.net.asking(fused.users), self.net.scored(fused.items)
        k = min(SLK_CUTOFF, len(items))
        for start in range(0, len(users), 256):
            scores = users[start : start + 256] @ items.T + self.net.prior
            self.net.floor[start : start + 256] = scores.topk(k, dim=1).values[:, -1]


class Losses:
    """The losses of both phases."""

    def __init__(self, net: Net, examples: Examples) -> None:
        self.net, self.config, self.examples = net, net.config, examples

    def warm_up(self, rows: Ints, at: At) -> Tensor:
        """Alignment alone."""
        return self._alignment(rows, self.net.language(self._keep(at)), at)

    def joint(self, rows: Ints, at: At) -> Tensor:
        """Ranking, plus λ times the alignment."""
        net, config = self.net, self.config
        text = net.language(self._keep(at))
        fused = net.fused(text)
        cold = ~kept_items(len(fused.items), config.cold_dropout, at)[:, None]
        loss = self.examples.loss(rows, fused, torch.where(cold, net.of_new(text[1]), fused.items), at)
        return loss + config.align * self._alignment(rows, text, at) if config.aligned else loss

    def _alignment(self, rows: Ints, text: tuple[Tensor, Tensor], at: At) -> Tensor:
        """Symmetric InfoNCE of z_G and z_L of users and items of the batch, which then join the queues."""
        net, config, total = self.net, self.config, torch.zeros(())
        random = at.rng("aligned")
        pairs = zip(self.examples.touched(rows), net.graph_view(), text, (net.user_queue, net.item_queue), strict=True)
        for nodes, graph_view, text_view, queue in pairs:
            if len(nodes) > config.align_size:
                nodes = random.choice(nodes, config.align_size, replace=False)
            ids = torch.from_numpy(nodes)
            views = graph_view.index_select(0, ids), text_view.index_select(0, ids)
            total = total + alignment_loss(*views, ids, queue, config.align_temperature, config.hardness)
            queue.push(*views, ids)
        return total / 2

    def _keep(self, at: At) -> Tensor | None:
        """Dropout of the projection's hidden units."""
        shape, share = (len(self.net.words.items), self.config.hidden), self.config.text_dropout
        if not share or not self.config.hidden:
            return None
        return dropout_mask(shape, share, at.torch_rng("text-dropout"))


class Adapting(nn.Module):
    """The network together with the adapters of the language model, and the vectors that were made last.

    In a step the texts of some of its items are encoded with gradients; of all others the table has the vectors of the
    last refresh. Table and flag are buffers: part of checkpoints, and of the weights that were validated.
    """

    table: Tensor  # (num_items, dims) x of all items, as Words.items
    stale: Tensor  # () bool: have the adapters moved since?

    def __init__(self, net: Net, encoder: AdaptedEncoder, whitening: Whitening, text: TextVectors) -> None:
        super().__init__()
        self.net, self.encoder, self.whitening, self.text = net, encoder, whitening, text
        self.register_buffer("table", net.words.items.clone())
        self.register_buffer("stale", torch.tensor(False))  # adapters start as no change

    @torch.no_grad()
    def refresh(self) -> None:
        """The network's texts as the adapters read them now."""
        if bool(self.stale):
            self.table.copy_(unit(self.whitening.apply(self.encoder.encode_all(self.text))))
            self.stale.fill_(False)
        self.net.words = replace(self.net.words, items=self.table)

    def read(self, items: Ints, at: At) -> None:
        """Encode the texts of some of these items (n,) with gradients; the others' are those of the table."""
        if not at[3]:
            self.refresh()
        items = items[self.text.present.numpy()[items]]
        limit = self.net.config.lora.texts_per_step
        if len(items) > limit:
            items = np.sort(at.rng("texts").choice(items, limit, replace=False))
        if not len(items):
            return
        vectors = self.encoder(require_texts(self.text, items.tolist()), at)  # (n, dim of the language model)
        some = TextVectors(vectors, torch.ones(len(items), dtype=torch.bool))
        table = self.table.index_copy(0, torch.from_numpy(items), unit(self.whitening.apply(some)))
        self.net.words = replace(self.net.words, items=table)
        self.stale.fill_(True)


def _pairs(net: Net, query: Tensor, items: Tensor, liked: Ints, other: Ints) -> Tensor:
    """BPR of clicked against unclicked items, one pair per query."""
    scores = []
    for rows in (torch.from_numpy(liked), torch.from_numpy(other)):
        scores.append((query * net.scored(items.index_select(0, rows))).sum(1) + net.prior.index_select(0, rows))
    return bpr_loss(*scores)


def _softmax(net: Net, query: Tensor, items: Tensor, target: Ints, at: At) -> Tensor:
    """Cross-entropy of the targets among all items, or among sampled ones."""
    negatives, num_items = net.config.negatives, len(items)
    if not negatives or negatives >= num_items:
        return softmax_loss(query @ net.scored(items).T + net.prior, torch.from_numpy(target))
    wanted, drawn = torch.from_numpy(target), torch.from_numpy(uniform_items(negatives, num_items, *at))
    liked, other = (net.scored(items.index_select(0, rows)) for rows in (wanted, drawn))
    positive = (query * liked).sum(1) + net.prior.index_select(0, wanted)
    others = query @ other.T + net.prior.index_select(0, drawn)  # (B, negatives)
    others = others.masked_fill(drawn[None, :] == wanted[:, None], -torch.inf)
    return sampled_softmax_loss(positive, others, num_items)
