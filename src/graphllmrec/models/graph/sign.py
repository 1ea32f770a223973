"""SIGN (Frasca et al. 2020, "SIGN: Scalable Inception Graph Neural Networks", arXiv:2004.11198) of item text.

Neighbourhood features are computed once, so training reads no graph: the cost of a step grows with its clicks only.

    h_u = mean of x_i over the items of u                     x_i: whitened text of length 1      (users, text_dim)
    n_i = mean of h_u over the clickers of i                                                      (items, text_dim)
    z_i = unit( W_s (x_i + e_i) + W_n n_i + W_2 gelu(W_1 n_i) )         e_i: embedding of a clicked item
    q   = unit( Σ_k decay^(steps back of k) z_k ) W_q / temperature
    score(h, i) = α_i q · z_i + β_i + p log(1 + d_i) + ω_i log(1 + s(h, i) / .01)

s: transitions (models/baselines/transitions.py), the items that followed the history's clicks; only where clicks have
an order. α, β and ω are mixed from one value per context of the item, cold or warm × tail or head, by its clicks d_i
(nn/gate.py).

A target's own click is left out of its features: the clicker is taken out of n_i and d_i in closed form,
(d n_i - h_u) / (d - 1), and the user's own steps out of s. So during training an item with one click is scored as cold,
in the proportion in which such items occur as targets, and the values per context are learned together with the
vectors. Item dropout: `cold_dropout` of the items have no neighbours and no embedding in a step.

Trained by softmax over the clicked item and uniformly drawn ones (nn/losses.py); a user with n clicks gives n - 1
targets in one pass. Without an order, the history of a click is all other clicks of its user.

Differences from the paper: two hops of a user-item graph as the only operator; leave-one-out; embeddings; queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.graph.bipartite import clicked_matrix
from graphllmrec.models.baselines.transitions import Followers
from graphllmrec.models.scoring import empty_csr, sparse_restore, sparse_scores, sparse_state
from graphllmrec.nn.dropout import dropout, kept_items
from graphllmrec.nn.examples import Places
from graphllmrec.nn.gate import ROUTED, head_degree, routed
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.losses import sampled_softmax_loss
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening, whiten_text
from graphllmrec.train.device import on_cpu, resolve_device, to_device
from graphllmrec.train.negatives import draw_negatives, mask_targets
from graphllmrec.train.settings import HistoryConfig
from graphllmrec.train.validation import train_model

_SOFT = 0.01  # transitions below this count in proportion, above it by their logarithm


class SIGNConfig(HistoryConfig):
    """Settings of SIGN."""

    epochs: int = Field(10, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(300, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="users per step, each with all clicks")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="AdamW step size")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="course of the step size")
    warmup: int = Field(50, ge=0, le=1_000_000_000, description="steps in which the step size rises from 0")
    text_dim: int = Field(200, ge=1, le=8_192, description="size of item vectors: axes of the text kept when whitening")
    hidden: int = Field(256, ge=1, le=65_536, description="width of the network over the neighbourhood")
    ids: bool = Field(True, description="clicked items have an embedding besides their text")
    transitions: bool = Field(True, description="transitions from the history's clicks are part of the score")
    leave_one_out: bool = Field(True, description="a target's own click is left out of its features")
    negatives: int = Field(1024, ge=1, le=10_000_000, description="uniform negatives per step; at most all items")
    cold_degree: float = Field(3.0, ge=0, le=1e6, description="clicks at which an item is half cold, half warm")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the query's values dropped in training")
    decay: float = Field(0.6, ge=0, le=1, description="history weight per step back; ignored without an order")


class SIGN:
    """Item vectors from text, neighbourhood and embedding, with transitions as one more term of the score."""

    name: ClassVar[str] = "sign"
    config_class: ClassVar[type[Config]] = SIGNConfig
    abilities = Abilities(uses_text=True, ranks_cold_items=True)  # without text: embeddings and transitions alone

    def __init__(self, config: SIGNConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None  # None: fitted without text
        self.net = _Net(config, 1, 0, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, text_dim) z_i
        self.degree = torch.empty(0)  # (num_items,) training clicks
        self.head_degree = 1.0
        self.followers = empty_csr()
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train on next clicks, early stopping on validation. Raises TextError, Interrupted."""
        split, config, device = task.split, self.config, resolve_device(self.config.device)
        self.decay = config.decay if split.ordered else 1.0
        self.whitening, text_features = whiten_text(task, config.text_dim, self.name, ids=config.ids)
        near = Neighbourhood.of(split, text_features)
        self.degree = near.degree
        self.head_degree = head_degree(near.degree.long().numpy())
        known = split.train.histories(split.num_users)
        followers = Followers.of(known, split.num_items) if split.ordered and config.transitions else None
        self.followers = followers.weights if followers is not None else empty_csr(split.num_items, split.num_items)
        text_features, near = text_features.to(device), near.to(device)
        net = _Net(config, text_features.shape[1], len(text_features), task.seed)
        contexts = _Contexts(config.cold_degree, self.head_degree)
        loss = _Loss(config, net, text_features, near, known, followers, contexts, self.decay, split.ordered)

        export = partial(self._export_vectors, net, text_features, near)
        train_model(self, task, net, len(loss), loss, export, inputs=(text_features,))

    @torch.no_grad()
    def _export_vectors(self, net: _Net, text_features: Tensor, near: Neighbourhood) -> None:
        """The vectors to serve, from complete neighbourhoods, and the network, on the CPU."""
        everything = torch.arange(len(text_features), device=text_features.device)
        items = net.vectors(text_features, everything, near.means(everything), near.degree > 0)
        self.net, self.items = on_cpu(net), items.cpu()

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """q (B, text_dim); zero for an empty history."""
        weights = recency_weights(queries.histories, self.decay)
        return self.net.query(aggregate(queries.histories, self.items, weights))

    @torch.no_grad()
    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        terms = self.net.terms(_Contexts(self.config.cold_degree, self.head_degree)(self.degree), self.degree)
        found = self.query_vectors(queries) @ self.items.T * terms.scale + terms.bias
        if not self.followers.nnz:
            return found
        return found + terms.following * _soft(sparse_scores(queries, self.followers, len(self.items), self.decay))

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no clicks, no neighbours, no embedding."""
        empty = torch.zeros(len(text), self.items.shape[1])
        text_features = empty if self.whitening is None else unit(self.whitening.apply(text))
        cold = torch.zeros(len(text), dtype=torch.bool)
        with torch.no_grad():
            rows = torch.zeros(len(text), dtype=torch.int64)  # any row: a cold item has no embedding
            new = self.net.vectors(text_features, rows, empty, cold)
        more = copy(self)
        more.items = torch.cat([self.items, new])
        more.degree = torch.cat([self.degree, torch.zeros(len(text))])
        return more

    def state(self) -> dict[str, Tensor]:
        """Served vectors, transitions, and the network and whitening that new items need; without embeddings."""
        own = {"items": self.items, "degree": self.degree, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        own["head_degree"] = torch.tensor(self.head_degree, dtype=torch.float64)
        kept = {name: value for name, value in self.net.state_dict().items() if name != "ids"}
        whitening = prefixed("whitening", self.whitening.state()) if self.whitening is not None else {}
        return own | prefixed("net", kept) | prefixed("followers", sparse_state(self.followers)) | whitening

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.degree, self.decay = state["items"], state["degree"], float(state["decay"])
        self.head_degree = float(state["head_degree"])
        self.followers = sparse_restore(under("followers", state))
        whitening = under("whitening", state)
        self.whitening = Whitening.restore(whitening) if whitening else None
        self.net = _Net(self.config, self.items.shape[1], 0, seed=0)
        embeddings = {} if self.net.ids is None else {"ids": self.net.ids}  # none: the vectors contain them
        self.net.load_state_dict(under("net", state) | embeddings)
        self.net.eval()


class Neighbourhood:
    """Mean text of what the clickers of every item clicked, as sums from which any one clicker can be taken out."""

    def __init__(self, users: Tensor, sums: Tensor, degree: Tensor) -> None:
        self.users = users  # (num_users, text_dim) h_u
        self.sums = sums  # (num_items, text_dim) Σ h_u over the clickers
        self.degree = degree  # (num_items,) clickers

    @staticmethod
    def of(split: Split, text_features: Tensor) -> Neighbourhood:
        """From the training clicks of `split` and text features (num_items, text_dim)."""
        clicked = clicked_matrix(split.train, split.num_users, split.num_items)  # (num_users, num_items) of 0 and 1
        count = np.maximum(np.asarray(clicked.sum(axis=1)).reshape(-1, 1), 1)
        users = (clicked @ text_features.numpy() / count).astype(np.float32)
        sums, degree = clicked.T @ users, np.asarray(clicked.sum(axis=0)).reshape(-1)
        return Neighbourhood(torch.from_numpy(users), torch.from_numpy(sums), torch.from_numpy(degree).float())

    def to(self, device: torch.device) -> Neighbourhood:
        """The same on another device."""
        return Neighbourhood(self.users.to(device), self.sums.to(device), self.degree.to(device))

    def means(self, items: Tensor, without: Tensor | None = None) -> Tensor:
        """n (n, text_dim) of these items, each without the clicker `without` (n,) where given; 0 without any."""
        sums, degree = self.sums.index_select(0, items), self.degree.index_select(0, items)
        if without is not None:
            sums, degree = sums - self.users.index_select(0, without), degree - 1
        return torch.where(degree[:, None] > 0, sums / degree.clamp_min(1)[:, None], 0.0)


class _Terms:
    """α, β + p log(1 + d) and ω of some items (n,)."""

    def __init__(self, scale: Tensor, bias: Tensor, following: Tensor) -> None:
        self.scale, self.bias, self.following = scale, bias, following


class _Contexts:
    """Soft membership (n, 4) in cold or warm × tail or head by clicks (n,)."""

    def __init__(self, cold_degree: float, head_degree: float) -> None:
        self.cold_degree, self.head_degree = cold_degree, head_degree

    def __call__(self, degree: Tensor) -> Tensor:
        return routed(degree, self.cold_degree, self.head_degree)


class _Net(nn.Module):
    """The trainable tensors."""

    def __init__(self, config: SIGNConfig, text_dim: int, num_items: int, seed: int) -> None:
        super().__init__()
        random, self.temperature = torch_rng(seed, "sign/start"), config.temperature
        self.own = nn.Parameter(torch.eye(text_dim))  # W_s
        self.near = nn.Parameter(torch.zeros(text_dim, text_dim))  # W_n
        self.inner = nn.Parameter(torch.randn(config.hidden, text_dim, generator=random) * 2 / text_dim**0.5)  # W_1
        self.outer = nn.Parameter(torch.zeros(text_dim, config.hidden))  # W_2
        self.query_map = nn.Parameter(torch.eye(text_dim))  # W_q
        self.log_scale = nn.Parameter(torch.zeros(len(ROUTED)))  # log α per context
        self.context_bias = nn.Parameter(torch.zeros(len(ROUTED)))  # β
        self.following = nn.Parameter(torch.full((len(ROUTED),), 0.3))  # ω
        self.popularity = nn.Parameter(torch.tensor(0.5))  # p
        init = torch.randn(num_items, text_dim, generator=random) * 0.1 / text_dim**0.5
        self.ids = nn.Parameter(init) if config.ids else None

    def vectors(self, text_features: Tensor, rows: Tensor, near: Tensor, warm: Tensor) -> Tensor:
        """z (n, text_dim) of item rows (n,) from x and n (n, text_dim) each; with embeddings where `warm` (n,)."""
        if self.ids is not None and len(self.ids):
            text_features = text_features + self.ids.index_select(0, rows) * warm[:, None]
        around = near @ self.near.T + F.gelu(near @ self.inner.T) @ self.outer.T
        return unit(text_features @ self.own.T + around)

    def query(self, history: Tensor) -> Tensor:
        """q (B, text_dim) from the weighted sums of the histories' vectors (B, text_dim)."""
        return unit(history) @ self.query_map / self.temperature

    def terms(self, contexts: Tensor, degree: Tensor) -> _Terms:
        """α, β + p log(1 + d), ω of items with these memberships (n, 4) and clicks (n,)."""
        bias = contexts @ self.context_bias + self.popularity * degree.log1p()
        return _Terms(contexts @ self.log_scale.exp(), bias, contexts @ self.following)


class _Loss:
    """The loss of a batch of users: every click of theirs after (without an order: beside) the others."""

    def __init__(
        self,
        config: SIGNConfig,
        net: _Net,
        text_features: Tensor,
        near: Neighbourhood,
        known: Histories,
        followers: Followers | None,
        contexts: _Contexts,
        decay: float,
        ordered: bool,
    ) -> None:
        self.config, self.net, self.text_features, self.near = config, net, text_features, near
        self.followers, self.contexts, self.decay, self.ordered = followers, contexts, decay, ordered
        self.known, self.active = known, np.flatnonzero(known.lengths > 1)

    def __len__(self) -> int:
        return len(self.active)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean cross-entropy of all targets of the users `rows`."""
        config, users, device = self.config, self.active[rows], self.text_features.device
        places = Places.of(self.known.take(users), self.ordered, config.max_history, at.rng("stretch"))
        owner = to_device(users[places.clicks.row_of_entry], device) if config.leave_one_out else None
        item = to_device(places.clicks.items, device)
        drawn = draw_negatives(config.negatives, len(self.text_features), at)
        warm = to_device(kept_items(len(self.text_features), config.cold_dropout, at), device)
        clicked, other = self._encode(item, owner, warm), self._encode(to_device(drawn, device), None, warm)
        target = to_device(places.target, device)  # entries of `clicks` that have a history
        history = places.weighted(clicked[0], self.decay).index_select(0, target)
        query = self.net.query(dropout(history, config.dropout, at.torch_rng("dropout")))  # (targets, text_dim)
        wanted = (clicked[0].index_select(0, target), clicked[1].index_select(0, target))
        positive, negative = self._scores(query, wanted, other, places, drawn.numpy())
        negative = mask_targets(negative, to_device(drawn, device), item.index_select(0, target))
        return sampled_softmax_loss(positive, negative, len(self.text_features))

    def _scores(
        self, query: Tensor, wanted: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], places: Places, drawn: Ints
    ) -> tuple[Tensor, Tensor]:
        """Scores of the targets (T,) and of the drawn items (T, N), from z and clicks of `wanted` and of `other`."""
        (vectors, degree), (others, degree_of_others) = wanted, other
        own = self.net.terms(self.contexts(degree), degree)
        rest = self.net.terms(self.contexts(degree_of_others), degree_of_others)
        positive = own.scale * (query * vectors).sum(1) + own.bias
        negative = query @ others.T * rest.scale + rest.bias
        if self.followers is not None:
            after = self.followers.score_targets(places, self.decay, self.config.leave_one_out)
            after_drawn = self.followers.score_items(places, self.decay, drawn)
            positive = positive + own.following * _soft(to_device(after, query.device))
            negative = negative + rest.following * _soft(to_device(after_drawn, query.device))
        return positive, negative

    def _encode(self, items: Tensor, without: Tensor | None, warm: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, text_dim) and clicks (n,) of items, each without one clicker where given; 0 clicks if not `warm`."""
        known = warm.index_select(0, items)
        degree = (self.near.degree.index_select(0, items) - int(without is not None)) * known
        near = self.near.means(items, without) * known[:, None]
        return self.net.vectors(self.text_features.index_select(0, items), items, near, degree > 0), degree


def _soft(transitions: Tensor) -> Tensor:
    return torch.log1p(transitions / _SOFT)
