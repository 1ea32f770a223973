"""RecMind's losses: the ranking loss of a batch of examples, and the alignment of graph and text vectors.

What an example is depends on `query` and `loss`; everything random about it is a function of `at`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.graph.propagate import sparse_product
from graphllmrec.models.fusion.recmind.network import Fused, Network, Pair, unclicked_items
from graphllmrec.nn.align import alignment_loss
from graphllmrec.nn.dropout import dropout, dropout_mask, kept_items
from graphllmrec.nn.examples import NextClicks, UnclickedItems, UserClicks, uniform_items
from graphllmrec.nn.histories import Averages
from graphllmrec.nn.losses import (
    SLK_TEMPERATURE,
    bpr_loss,
    click_scores,
    drawn_softmax_loss,
    grouped_softmax_loss,
    slk_loss,
    slk_refresh_due,
    slk_thresholds,
    softmax_loss,
)
from graphllmrec.rng import At
from graphllmrec.train.device import to_device


class Losses:
    """The losses of both phases."""

    def __init__(self, net: Network, examples: Examples) -> None:
        self.net, self.config, self.examples = net, net.config, examples

    def warm_up(self, rows: Ints, at: At) -> Tensor:
        """Phase 1: alignment alone."""
        return self._alignment(rows, self.net.text_branch(self._hidden_mask(at)), at)

    def joint(self, rows: Ints, at: At) -> Tensor:
        """Phase 2: ranking, plus λ times the alignment."""
        net, config = self.net, self.config
        text = net.text_branch(self._hidden_mask(at))
        fused = net.fuse(text)
        dropped = ~to_device(kept_items(len(fused.items), config.cold_dropout, at), net.device)[
            :, None
        ]  # (num_items, 1)
        items = torch.where(dropped, unclicked_items(text[1], config), fused.items)
        loss = self.examples.loss(rows, fused, items, at)
        return loss + config.align * self._alignment(rows, text, at) if config.aligned else loss

    def _alignment(self, rows: Ints, text: Pair, at: At) -> Tensor:
        """Symmetric InfoNCE of z_G and z_L of users and items of the batch, which then join the queues."""
        net, config, total = self.net, self.config, text[1].new_zeros(())
        random = at.rng("aligned")
        pairs = zip(self.examples.nodes(rows), net.graph_branch(), text, (net.user_queue, net.item_queue), strict=True)
        for nodes, graph_vectors, text_vectors, queue in pairs:
            if len(nodes) > config.align_size:
                nodes = random.choice(nodes, config.align_size, replace=False)
            ids = to_device(nodes, net.device)
            both = graph_vectors.index_select(0, ids), text_vectors.index_select(0, ids)
            total = total + alignment_loss(*both, ids, queue, config.align_temperature, config.hardness)
            queue.push(*both, ids)
        return total / 2

    def _hidden_mask(self, at: At) -> Tensor | None:
        """Dropout (num_items, hidden) of the projection's hidden units."""
        shape, share = (len(self.net.features.items), self.config.hidden), self.config.text_dropout
        if not share or not self.config.hidden:
            return None
        return to_device(dropout_mask(shape, share, at.torch_rng("text-dropout")), self.net.device)


class Examples(Protocol):
    """What an example is, and the ranking loss of a batch of them."""

    def __len__(self) -> int:
        """How many there are."""

    def nodes(self, rows: Ints) -> tuple[Ints, Ints]:
        """Distinct users and items of the examples `rows`, ascending."""

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        """Mean ranking loss (); `items` (num_items, embedding_dim) is h after item dropout."""


def build_examples(net: Network, split: Split, decay: float) -> Examples:
    """The examples that the settings ask for."""
    if net.config.query == "history":
        return _NextClickExamples(net, split, decay)
    return _ClickExamples(net, split) if net.config.loss == "bpr" else _UserExamples(net, split)


class _NextClickExamples:
    """One example per click that has a history: softmax of the clicked item, or BPR."""

    def __init__(self, net: Network, split: Split, decay: float) -> None:
        self.net, self.decay, self.num_items = net, decay, split.num_items
        known = split.train.histories(split.num_users)
        self.clicks = NextClicks(known, split.ordered, net.config.max_history)
        self.unclicked = UnclickedItems(known, split.num_items)

    def __len__(self) -> int:
        return len(self.clicks)

    def nodes(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.unique(self.clicks.user[rows]), np.unique(self.clicks.target[rows])

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:  # noqa: ARG002 - h of users plays no part
        net, config, target = self.net, self.net.config, self.clicks.target[rows]
        averages = Averages.of(self.clicks.histories(rows), self.num_items, self.decay).to(net.device)
        query = sparse_product(averages.matrix, averages.transposed, items)  # (B, d)
        query = net.query_vectors(dropout(query, config.dropout, at.torch_rng("dropout")))
        if config.loss == "bpr":
            return _pairwise(net, query, items, target, self.unclicked.draw(self.clicks.user[rows], *at))
        return _softmax(net, query, items, target, at)


class _ClickExamples:
    """One example per click, queried by the user's vector: BPR, as published."""

    def __init__(self, net: Network, split: Split) -> None:
        self.net, self.user, self.item = net, split.train.user, split.train.item
        self.unclicked = UnclickedItems(split.train.histories(split.num_users), split.num_items)

    def __len__(self) -> int:
        return len(self.item)

    def nodes(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.unique(self.user[rows]), np.unique(self.item[rows])

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        user = self.user[rows]
        query = fused.users.index_select(0, to_device(user, self.net.device))  # (B, d)
        query = self.net.query_vectors(dropout(query, self.net.config.dropout, at.torch_rng("dropout")))
        return _pairwise(self.net, query, items, self.item[rows], self.unclicked.draw(user, *at))


class _UserExamples:
    """One example per user, with all clicks, which share one partition function over all items: softmax, or SL@K."""

    def __init__(self, net: Network, split: Split) -> None:
        self.net, self.clicks = net, UserClicks(split.train.histories(split.num_users))

    def __len__(self) -> int:
        return len(self.clicks)

    def nodes(self, rows: Ints) -> tuple[Ints, Ints]:
        return np.sort(self.clicks.user[rows]), np.unique(self.clicks.clicks(rows).items)

    def loss(self, rows: Ints, fused: Fused, items: Tensor, at: At) -> Tensor:
        net, config, clicks = self.net, self.net.config, self.clicks.clicks(rows)
        arrays = (self.clicks.user[rows], clicks.items, clicks.row_of_entry)
        user, item, row = (to_device(array, net.device) for array in arrays)  # (B,), (n,), (n,)
        if config.loss == "slk" and slk_refresh_due(at.epoch, at.step):
            with torch.no_grad():
                queries, catalogue = net.query_vectors(fused.users), net.item_vectors(fused.items)
                net.threshold.copy_(slk_thresholds(queries, catalogue, net.item_bias))
        query = fused.users.index_select(0, user)  # (B, d)
        query = net.query_vectors(dropout(query, config.dropout, at.torch_rng("dropout")))
        partition, positive = click_scores(query, net.item_vectors(items), net.item_bias, row, item)  # (B,), (n,)
        weight = positive.new_ones(len(item))
        if config.loss == "slk":
            tau = SLK_TEMPERATURE / config.temperature if config.cosine else SLK_TEMPERATURE
            return slk_loss(partition, positive, row, weight, net.threshold.index_select(0, user), tau)
        return grouped_softmax_loss(partition, positive, row, weight)


def _pairwise(net: Network, query: Tensor, items: Tensor, clicked: Ints, other: Ints) -> Tensor:
    """BPR of clicked against unclicked items (B,), one pair per query (B, d)."""
    scores = []
    for rows in (to_device(clicked, net.device), to_device(other, net.device)):
        vectors = net.item_vectors(items.index_select(0, rows))  # (B, d)
        scores.append((query * vectors).sum(1) + net.item_bias.index_select(0, rows))
    return bpr_loss(*scores)


def _softmax(net: Network, query: Tensor, items: Tensor, target: Ints, at: At) -> Tensor:
    """Cross-entropy of the targets (B,) among all items, or among drawn ones."""
    negatives, num_items = net.config.negatives, len(items)
    if not negatives or negatives >= num_items:
        return softmax_loss(query @ net.item_vectors(items).T + net.item_bias, to_device(target, net.device))
    drawn = uniform_items(negatives, num_items, *at)
    rows = to_device(target, net.device), to_device(drawn, net.device)  # (B,), (negatives,)
    vectors = torch.cat([net.item_vectors(items.index_select(0, part)) for part in rows])  # (B + negatives, d)
    bias = torch.cat([net.item_bias.index_select(0, part) for part in rows])  # (B + negatives,)
    return drawn_softmax_loss(query, vectors, bias, torch.cat(rows), num_items)
