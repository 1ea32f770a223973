"""AlphaFuse (Hu et al. 2025, "AlphaFuse: Learn ID Embeddings for Sequential Recommendation in Null Space of Language
Embeddings", SIGIR, arXiv:2504.19218), with a self-attentive encoder (SASRec, Kang & McAuley 2018, arXiv:1808.09781).

    x_i = Uᵀ (text_i - mean)                U: principal axes of the text vectors, from an SVD, largest variance first
    t_i = x_i[:text_dim] / sqrt(variance)   the semantic axes: standardised, frozen, here also of length 1
    e_i = [t_i ; id_i]                      the axes of little variance are cut off; ID embeddings are learned there

Text and ID embeddings share no axis, so training cannot change the text part, and no network has to map one to the
other. An item without clicks has id = 0: its vector is known as soon as its text is.

    m_n = Σ_{k<=n} decay^(n-k) e_k / Σ decay^(n-k)                               recency-weighted mean of a history
    h   = e;  per layer  h += Attention(LN h),  h += W2 gelu(W1 LN h)            causal; "attention" only
    attention logit of step n to step k:  q_n · k_k / sqrt(head size) + distance[n - k]
    q_n = unit((m_n + LN(h_n) / sqrt(width)) W)                                  encoder "mean": unit(m_n W)
    score = q_n · e_i / temperature + p log(1 + clicks of i)

Shapes: e (num_items, width) with width = text_dim + id_dim; a history of n clicks gives n queries (n, width), each
trained on the click that follows; the last one is served.

Differences from the paper. Loss: softmax over all items, or over items drawn uniformly and corrected for it, instead of
InfoNCE or binary cross-entropy with drawn negatives. Encoder: biases by distance, which start as the recency weights,
instead of embeddings of positions; the recency-weighted mean is added to the attention, whose outputs start at zero:
the untrained model is a text-kNN that favours the last click. A popularity term. Item dropout: in every step a share of
the items has no ID part, neither in a history nor as a target; the paper gives every item one. Without an order, every
step draws one, and nothing decays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import copy
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.nn.dropout import dropout_mask, kept_items
from graphllmrec.nn.examples import uniform_items
from graphllmrec.nn.losses import log_partition, sampled_softmax_loss
from graphllmrec.nn.scoring import with_one
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


class AlphaFuseConfig(HistoryConfig):
    """Settings of AlphaFuse."""

    epochs: int = Field(20, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(300, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="users per step, each with all clicks")
    learning_rate: float = Field(3e-3, gt=0, le=10, description="AdamW step size")
    text_dim: int = Field(128, ge=1, le=8_192, description="semantic axes: text axes kept when whitening, frozen")
    id_dim: int = Field(64, ge=1, le=8_192, description="axes that hold the ID embeddings of clicked items")
    max_history: int = Field(50, ge=1, le=10_000, description="newest clicks that the encoder reads")
    encoder: Literal["attention", "mean"] = Field("attention", description="how a history becomes a query")
    num_layers: int = Field(1, ge=1, le=16, description="layers of the attention encoder")
    num_heads: int = Field(2, ge=1, le=64, description="heads of a layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the encoder's values dropped in training")
    negatives: int = Field(1024, ge=0, le=10_000_000, description="sampled negatives of the softmax; 0 takes all items")

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("num_layers num_heads", self.encoder == "attention", 'encoder = "attention"')


class AlphaFuse:
    """Frozen text axes, learned ID axes, and an encoder of histories; a vector model."""

    name: ClassVar[str] = "alphafuse"
    config_class: ClassVar[type[Config]] = AlphaFuseConfig
    abilities = Abilities(needs_text=True, ranks_cold_items=True)

    def __init__(self, config: AlphaFuseConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.net = _Net(config, 1, 1.0, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, width + 1): e_i and the popularity term
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train on next clicks, early stopping on validation. Raises TextError without text, Interrupted."""
        text, split, device = require_text(task, self.name), task.split, resolve_device(self.config.device)
        self.decay = self.config.decay if split.ordered else 1.0
        self.whitening = Whitening.fit(text, self.config.text_dim)
        text_features = unit(self.whitening.apply(text)).to(device)  # (num_items, text_dim)
        net = _Net(self.config, text_features.shape[1], self.decay, task.seed)
        table = _Table(text_features, to_device(split.item_degree(), device), self.config, task.seed)
        training = nn.ModuleDict({"net": net, "table": table})
        loss = _Loss(self.config, net, table, split.train.histories(split.num_users), split.ordered)

        export = partial(self._export_vectors, net, table)
        train_model(self, task, training, len(loss), loss, export, inputs=(text_features,))

    @torch.no_grad()
    def _export_vectors(self, net: _Net, table: _Table) -> None:
        """The item vectors and the encoder to serve, on the CPU."""
        self.net, self.items = on_cpu(net), table().detach().cpu()

    def item_vectors(self) -> Tensor:
        """e_i and the popularity term (num_items, width + 1)."""
        return self.items

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, width + 1); zeros before it for an empty history."""
        histories = queries.histories.newest(self.config.max_history)
        steps = self.net(histories, self.items[:, :-1])  # (nnz, width)
        with_clicks = torch.from_numpy(np.flatnonzero(histories.lengths))
        last = torch.from_numpy(histories.indptr[1:]).index_select(0, with_clicks) - 1
        query = torch.zeros(len(histories), self.items.shape[1])
        query[with_clicks, :-1] = steps.index_select(0, last)
        query[:, -1] = 1.0
        return query

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Item vectors, encoder, whitening."""
        assert self.whitening is not None, "state() before fit()"
        own = {"items": self.items, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        return own | prefixed("net", self.net.state_dict()) | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.decay = state["items"], float(state["decay"])
        self.net = _Net(self.config, self.whitening.matrix.shape[1], self.decay, seed=0)
        self.net.load_state_dict(under("net", state))
        self.net.eval()

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no ID part, no popularity."""
        assert self.whitening is not None, "with_items() before fit()"
        features = unit(self.whitening.apply(text))
        more = copy(self)
        more.items = torch.cat([self.items, F.pad(features, (0, self.items.shape[1] - features.shape[1]))])
        return more


class _Table(nn.Module):
    """Item vectors: frozen text beside ID embeddings, and the popularity term."""

    text: Tensor
    log_clicks: Tensor

    def __init__(self, text: Tensor, clicks: Tensor, config: AlphaFuseConfig, seed: int) -> None:
        super().__init__()
        init = torch.randn(len(text), config.id_dim, generator=torch_rng(seed, "alphafuse/ids"))
        self.ids = nn.Parameter(init * 0.1 / config.id_dim**0.5)
        self.popularity = nn.Parameter(torch.zeros(1))  # p
        self.register_buffer("text", text, persistent=False)  # (num_items, text_dim)
        self.register_buffer("log_clicks", clicks.float().log1p(), persistent=False)  # (num_items,)

    def forward(self, keep: Tensor | None = None) -> Tensor:
        """[e_i ; p log(1 + clicks)] (num_items, width + 1); items not kept (num_items,) look unclicked."""
        warm = self.log_clicks > 0 if keep is None else (self.log_clicks > 0) & keep
        item_bias = self.popularity * self.log_clicks * warm
        return torch.cat([self.text, self.ids * warm[:, None], item_bias[:, None]], dim=1)


class _Net(nn.Module):
    """The encoder: histories and item vectors in, a query after every click out."""

    def __init__(self, config: AlphaFuseConfig, text_dim: int, decay: float, seed: int) -> None:
        super().__init__()
        self.config, self.decay, width = config, decay, text_dim + config.id_dim
        random = torch_rng(seed, "alphafuse/start")
        self.query_map = nn.Parameter(torch.eye(width))  # W
        depth = config.num_layers if config.encoder == "attention" else 0
        self.layers = nn.ModuleList(_Layer(width, config, decay, random) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if depth else None

    def forward(self, histories: Histories, items: Tensor, random: torch.Generator | None = None) -> Tensor:
        """q / temperature (nnz, width) after every click of the histories; `random` draws dropout in training."""
        grid, share = _Grid(histories, items.device), self.config.dropout
        vectors = items.index_select(0, to_device(histories.items, items.device))  # (nnz, width)
        query = grid.recency_mean(vectors, self.decay)
        if self.norm is None:
            query = _drop(query, share, random)
        else:
            width = vectors.shape[1]
            hidden = _drop(vectors * width**0.5, share, random)  # unit vectors on the scale of a layer norm
            for layer in self.layers:
                hidden = layer(hidden, grid, random)
            query = query + self.norm(hidden) / width**0.5
        return unit(query @ self.query_map) / self.config.temperature


class _Layer(nn.Module):
    """Causal self-attention by content and distance, then a feed-forward network; both residual, norms first."""

    def __init__(self, width: int, config: AlphaFuseConfig, decay: float, random: torch.Generator) -> None:
        super().__init__()

        def weights(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=random) * (scale / rows**0.5))

        self.heads, self.share = config.num_heads, config.dropout
        self.size = max(width // self.heads, 1)
        inner = self.heads * self.size
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = weights(width, 3 * inner), weights(inner, width, 0.0)
        self.first, self.second = weights(width, width), weights(width, width, 0.0)
        back = torch.arange(config.max_history) * math.log(max(decay, 1e-3))
        self.distance = nn.Parameter(back.repeat(self.heads, 1))  # (heads, max_history)

    def forward(self, hidden: Tensor, grid: _Grid, random: torch.Generator | None) -> Tensor:
        """hidden (nnz, width) -> the same shape."""
        parts = (self.before_attention(hidden) @ self.into).chunk(3, dim=1)
        query, key, value = (self._by_head(grid.padded(part)) for part in parts)  # (B, heads, longest, size)
        bias = self.distance[:, grid.back.clamp_min(0)].masked_fill(grid.back < 0, -torch.inf)
        logits = query @ key.transpose(2, 3) / self.size**0.5 + bias  # (B, heads, longest, longest)
        mixed = _drop(logits.softmax(3), self.share, random) @ value  # (B, heads, longest, size)
        found = grid.flat(mixed.transpose(1, 2).flatten(2)) @ self.out
        hidden = hidden + _drop(found, self.share, random)
        forward = F.gelu(self.before_forward(hidden) @ self.first) @ self.second
        return hidden + _drop(forward, self.share, random)

    def _by_head(self, padded: Tensor) -> Tensor:
        return padded.view(*padded.shape[:2], self.heads, self.size).transpose(1, 2)


class _Grid:
    """Histories as rows of a padded table, oldest first, for the operations between steps only: most rows are short."""

    def __init__(self, histories: Histories, device: torch.device) -> None:
        self.shape = (len(histories), int(histories.lengths.max(initial=1)))
        steps = np.arange(len(histories.items), dtype=np.int64) - histories.indptr[:-1][histories.row_of_entry]
        self.place = to_device(histories.row_of_entry * self.shape[1] + steps, device)  # (nnz,)
        step = torch.arange(self.shape[1], device=device)
        self.back = step[:, None] - step[None, :]  # (longest, longest) steps back from row to column; < 0: the future

    def padded(self, flat: Tensor) -> Tensor:
        """(nnz, d) -> (B, longest, d), zero behind the end of a history."""
        rows, longest = self.shape
        table = flat.new_zeros(rows * longest, flat.shape[1]).index_copy(0, self.place, flat)
        return table.view(rows, longest, flat.shape[1])

    def flat(self, padded: Tensor) -> Tensor:
        """(B, longest, d) -> (nnz, d): the entries of `padded` without its zeros."""
        return padded.flatten(0, 1).index_select(0, self.place)

    def recency_mean(self, flat: Tensor, decay: float) -> Tensor:
        """m (nnz, d): after every step, the weighted mean of the vectors (nnz, d) up to there."""
        weights = torch.where(self.back >= 0, torch.tensor(decay, device=flat.device).pow(self.back.clamp_min(0)), 0.0)
        return self.flat((weights / weights.sum(1, keepdim=True)) @ self.padded(flat))


class _Loss:
    """One example per user with two clicks or more: every click but the first is a target of what came before it."""

    def __init__(self, config: AlphaFuseConfig, net: _Net, table: _Table, known: Histories, ordered: bool) -> None:
        self.config, self.net, self.table, self.known, self.ordered = config, net, table, known, ordered
        self.active = np.flatnonzero(known.lengths > 1)

    def __len__(self) -> int:
        return len(self.active)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean cross-entropy of the users' clicks, each after its history."""
        histories, clicked = self.examples(rows, at)
        device, keep = self.table.text.device, kept_items(len(self.table.text), self.config.cold_dropout, at)
        items = self.table(to_device(keep, device))  # (num_items, width + 1)
        target = to_device(clicked, device)  # (clicks,)
        query = self.net(histories, items[:, :-1], at.torch_rng("dropout"))
        query = with_one(query)  # (clicks, width + 1)
        positive = (query * items.index_select(0, target)).sum(1)
        wanted, num_items = self.config.negatives, len(items)
        if not wanted or wanted >= num_items:
            every: Tensor = log_partition(query, items) - positive  # (clicks,)
            return every.mean()
        drawn = to_device(uniform_items(wanted, num_items, *at), device)
        others = query @ items.index_select(0, drawn).T  # (clicks, negatives)
        return sampled_softmax_loss(positive, mask_targets(others, drawn, target), num_items)

    def examples(self, rows: Ints, at: At) -> tuple[Histories, Ints]:
        """The users' newest clicks without the last (B rows), and the click after each (nnz,)."""
        clicks = self.known.take(self.active[rows])
        if not self.ordered:
            drawn = at.rng("order").random(len(clicks.items))
            clicks = Histories(clicks.indptr, clicks.items[np.lexsort((drawn, clicks.row_of_entry))])
        clicks = clicks.newest(self.config.max_history + 1)
        newest = clicks.steps_back == 0
        oldest = np.zeros(len(clicks.items), dtype=np.bool_)
        oldest[clicks.indptr[:-1]] = True
        before = Histories(clicks.indptr - np.arange(len(clicks) + 1), clicks.items[~newest])
        return before, clicks.items[~oldest]


def _drop(values: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Dropout by a mask of 0 and 1 / (1 - share); unchanged where nothing is drawn."""
    if not share or random is None:
        return values
    return values * dropout_mask(values.shape, share, random).to(values.device)
