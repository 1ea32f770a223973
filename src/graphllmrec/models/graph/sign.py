"""SIGN (Frasca et al. 2020, "SIGN: Scalable Inception Graph Neural Networks", arXiv:2004.11198) of item text.

Neighbourhood features are made once and no graph is touched while training; a step costs what its clicks cost.

    h_u = mean of x_i over the items of u                     x_i: whitened text of length 1          (users, dims)
    n_i = mean of h_u over the clickers of i                  what people who click i read about       (items, dims)
    z_i = unit( W_s (x_i + e_i) + W_n n_i + W_2 gelu(W_1 n_i) )         e_i: embedding of a clicked item
    q   = unit( Σ_k decay^(steps back of k) z_k ) W_q / temperature
    score(h, i) = α_i q · z_i + β_i + p log(1 + d_i) + ω_i log(1 + s(h, i) / .01)

s: transitions (models/baselines/transitions.py), what followed the history's clicks; only where clicks have an order. α, β and ω
are mixed from one value per context of the item, cold or warm × tail or head, by its clicks d_i (nn/gate.py).

Everything that a click tells about itself is left out when that click is the target: the clicker is taken out of n_i
and d_i in closed form, (d n_i - h_u) / (d - 1), and the user's own steps out of s. So items clicked once play items
nobody has clicked, in the proportion in which such items are clicked next, and a context's values can be learned
together with the vectors. `cold_dropout` of the items play cold besides, without neighbours and embedding.

Trained by softmax over the clicked item and uniformly drawn ones (nn/losses.py); a user with n clicks gives n - 1
targets in one pass. Without an order, the history of a click is all other clicks of its user.

Differences from the paper: two hops of a user-item graph as the only operator; leave-one-out; embeddings; queries.
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
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.graph.bipartite import clicked_matrix
from graphllmrec.models.baselines.transitions import Followers, no_transitions
from graphllmrec.models.scoring import sparse_restore, sparse_scores, sparse_state
from graphllmrec.nn.dropout import dropout, kept_items
from graphllmrec.nn.gate import ROUTED, head_degree_of, routed
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.losses import sampled_softmax_loss
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import At, torch_rng
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening, words_of
from graphllmrec.train.batches import Places, uniform_items
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import train_model

_SOFT = 0.01  # transitions below this count in proportion, above by their logarithm


class SIGNConfig(MonitoredConfig):
    """Settings of SIGN."""

    epochs: int = Field(10, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(300, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="users per step, each with all clicks")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="AdamW step size")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="course of the step size")
    warmup: int = Field(50, ge=0, le=1_000_000_000, description="steps in which the step size rises from 0")
    dims: int = Field(200, ge=1, le=8_192, description="size of item vectors: axes of the text kept when whitening")
    hidden: int = Field(256, ge=1, le=65_536, description="width of the network over the neighbourhood")
    ids: bool = Field(True, description="clicked items have an embedding besides their text")
    transitions: bool = Field(True, description="what followed the history's clicks is part of the score")
    leave_one_out: bool = Field(True, description="a target's own click is taken out of all that is known of it")
    negatives: int = Field(1024, ge=1, le=10_000_000, description="uniform negatives per step; at most all items")
    temperature: float = Field(0.1, gt=0, le=100, description="what the cosine is divided by")
    cold_dropout: float = Field(0.2, ge=0, lt=1, description="items that play cold in a step")
    cold_degree: float = Field(3.0, ge=0, le=1e6, description="clicks at which an item is half cold, half warm")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the query's values dropped in training")
    decay: float = Field(0.6, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=10_000, description="clicks a training history keeps: others in every epoch")


class SIGN:
    """Item vectors from text, neighbourhood and embedding, with transitions as one more term of the score."""

    name: ClassVar[str] = "sign"
    config_class: ClassVar[type[Config]] = SIGNConfig
    abilities = Abilities(
        uses_text=True, ranks_cold_items=True
    )  # without text it is a model of embeddings and transitions

    def __init__(self, config: SIGNConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None  # None: fitted without text
        self.net = _Net(config, 1, 0, seed=0)
        self.items = torch.empty(0, 0)  # (num_items, dims) z_i
        self.degree = torch.empty(0)  # (num_items,) training clicks
        self.head_degree = 1.0
        self.followers = no_transitions(0)
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Train on next clicks, early stopping on validation. Raises TextError, Interrupted."""
        split, config = task.split, self.config
        self.decay = config.decay if split.ordered else 1.0
        self.whitening, words = words_of(task, config.dims, self.name, ids=config.ids)
        near = Neighbourhood.of(split, words)
        self.degree = near.degree
        self.head_degree = head_degree_of(near.degree.long().numpy())
        known = split.train.histories(split.num_users)
        followers = Followers.of(known, split.num_items) if split.ordered and config.transitions else None
        self.followers = followers.weights if followers is not None else no_transitions(split.num_items)
        self.net = net = _Net(config, words.shape[1], len(words), task.seed)
        contexts = _Contexts(config.cold_degree, self.head_degree)
        loss = _Loss(config, net, words, near, known, followers, contexts, self.decay, task.seed, split.ordered)

        train_model(self, task, net, len(loss), loss, lambda: self._export_vectors(words, near), inputs=(words,))

    @torch.no_grad()
    def _export_vectors(self, words: Tensor, near: Neighbourhood) -> None:
        """The vectors to serve, from complete neighbourhoods."""
        everything = torch.arange(len(words))
        self.items = self.net.vectors(words, everything, near.means(everything), self.degree > 0).detach()

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """q (B, dims); zero for an empty history."""
        weights = recency_weights(queries.histories, self.decay)
        return self.net.query(aggregate(queries.histories, self.items, weights))

    @torch.no_grad()
    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        terms = self.net.terms(_Contexts(self.config.cold_degree, self.head_degree)(self.degree), self.degree)
        found = self.query_vectors(queries) @ self.items.T * terms.scale + terms.prior
        if not self.followers.nnz:
            return found
        return found + terms.following * _soft(sparse_scores(queries, self.followers, len(self.items), self.decay))

    def add_items(self, text: TextVectors) -> None:
        """Append items by their text: no clicks, no neighbours, no embedding."""
        dims = self.items.shape[1]
        words = torch.zeros(len(text), dims) if self.whitening is None else unit(self.whitening.apply(text))
        cold = torch.zeros(len(text), dtype=torch.bool)
        with torch.no_grad():
            rows = torch.zeros(len(text), dtype=torch.int64)  # whichever: a cold item has no embedding
            new = self.net.vectors(words, rows, torch.zeros(len(text), dims), cold)
        self.items = torch.cat([self.items, new])
        self.degree = torch.cat([self.degree, torch.zeros(len(text))])

    def state(self) -> dict[str, Tensor]:
        """Served vectors, transitions, and the network and whitening that new items need; embeddings are not."""
        own = {"items": self.items, "degree": self.degree, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        own["head_degree"] = torch.tensor(self.head_degree, dtype=torch.float64)
        kept = {name: value for name, value in self.net.state_dict().items() if name != "ids"}
        whitening = prefixed("whitening", self.whitening.state()) if self.whitening is not None else {}
        return own | prefixed("net", kept) | prefixed("followers", sparse_state(self.followers)) | whitening

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.items, self.degree, self.decay = state["items"], state["degree"], float(state["decay"])
        self.head_degree = float(state["head_degree"])
        self.followers = sparse_restore(under("followers", state))
        whitening = under("whitening", state)
        self.whitening = Whitening.restore(whitening) if whitening else None
        self.net = _Net(self.config, self.items.shape[1], 0, seed=0)
        embeddings = {} if self.net.ids is None else {"ids": self.net.ids}  # none: what they led to is in the vectors
        self.net.load_state_dict(under("net", state) | embeddings)
        self.net.eval()


class Neighbourhood:
    """What the clickers of every item read about: sums from which any one clicker can be taken out."""

    def __init__(self, users: Tensor, sums: Tensor, degree: Tensor) -> None:
        self.users = users  # (num_users, dims) h_u
        self.sums = sums  # (num_items, dims) Σ h_u over the clickers
        self.degree = degree  # (num_items,) clickers

    @staticmethod
    def of(split: Split, words: Tensor) -> Neighbourhood:
        """From the training clicks of `split` and item features (num_items, dims)."""
        clicked = clicked_matrix(split.train, split.num_users, split.num_items)  # (num_users, num_items) of 0 and 1
        count = np.maximum(np.asarray(clicked.sum(axis=1)).reshape(-1, 1), 1)
        users = (clicked @ words.numpy() / count).astype(np.float32)
        sums, degree = clicked.T @ users, np.asarray(clicked.sum(axis=0)).reshape(-1)
        return Neighbourhood(torch.from_numpy(users), torch.from_numpy(sums), torch.from_numpy(degree).float())

    def means(self, items: Tensor, without: Tensor | None = None) -> Tensor:
        """n (n, dims) of these items, each without one of its clickers `without` (n,) where given; 0 for nobody."""
        sums, degree = self.sums.index_select(0, items), self.degree.index_select(0, items)
        if without is not None:
            sums, degree = sums - self.users.index_select(0, without), degree - 1
        return torch.where(degree[:, None] > 0, sums / degree.clamp_min(1)[:, None], 0.0)


class _Terms:
    """α, β + p log(1 + d) and ω of some items (n,)."""

    def __init__(self, scale: Tensor, prior: Tensor, following: Tensor) -> None:
        self.scale, self.prior, self.following = scale, prior, following


class _Contexts:
    """Soft membership (n, 4) in cold or warm × tail or head by clicks (n,)."""

    def __init__(self, cold_degree: float, head_degree: float) -> None:
        self.cold_degree, self.head_degree = cold_degree, head_degree

    def __call__(self, degree: Tensor) -> Tensor:
        return routed(degree, self.cold_degree, self.head_degree)


class _Net(nn.Module):
    """The trainable tensors."""

    def __init__(self, config: SIGNConfig, dims: int, num_items: int, seed: int) -> None:
        super().__init__()
        random, self.temperature = torch_rng(seed, "sign/start"), config.temperature
        self.own = nn.Parameter(torch.eye(dims))  # W_s
        self.near = nn.Parameter(torch.zeros(dims, dims))  # W_n
        self.inner = nn.Parameter(torch.randn(config.hidden, dims, generator=random) * 2 / dims**0.5)  # W_1
        self.outer = nn.Parameter(torch.zeros(dims, config.hidden))  # W_2
        self.turn = nn.Parameter(torch.eye(dims))  # W_q
        self.log_scale = nn.Parameter(torch.zeros(len(ROUTED)))  # log α per context
        self.prior = nn.Parameter(torch.zeros(len(ROUTED)))  # β
        self.following = nn.Parameter(torch.full((len(ROUTED),), 0.3))  # ω
        self.popularity = nn.Parameter(torch.tensor(0.5))  # p
        start = torch.randn(num_items, dims, generator=random) * 0.1 / dims**0.5
        self.ids = nn.Parameter(start) if config.ids else None

    def vectors(self, words: Tensor, rows: Tensor, near: Tensor, warm: Tensor) -> Tensor:
        """z (n, dims) of item rows (n,) with words and neighbourhood means (n, dims); embeddings where `warm` (n,)."""
        if self.ids is not None and len(self.ids):
            words = words + self.ids.index_select(0, rows) * warm[:, None]
        around = near @ self.near.T + F.gelu(near @ self.inner.T) @ self.outer.T
        return unit(words @ self.own.T + around)

    def query(self, history: Tensor) -> Tensor:
        """q (B, dims) from the weighted sums of the histories' vectors (B, dims)."""
        return unit(history) @ self.turn / self.temperature

    def terms(self, contexts: Tensor, degree: Tensor) -> _Terms:
        """α, β + p log(1 + d), ω of items with these memberships (n, 4) and clicks (n,)."""
        prior = contexts @ self.prior + self.popularity * degree.log1p()
        return _Terms(contexts @ self.log_scale.exp(), prior, contexts @ self.following)


class _Loss:
    """The loss of a batch of users: every click of theirs after (without an order: beside) the others."""

    def __init__(
        self,
        config: SIGNConfig,
        net: _Net,
        words: Tensor,
        near: Neighbourhood,
        known: Histories,
        followers: Followers | None,
        contexts: _Contexts,
        decay: float,
        seed: int,
        ordered: bool,
    ) -> None:
        self.config, self.net, self.words, self.near, self.followers = config, net, words, near, followers
        self.contexts, self.decay, self.seed, self.ordered = contexts, decay, seed, ordered
        self.known, self.active = known, np.flatnonzero(known.lengths > 1)

    def __len__(self) -> int:
        return len(self.active)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean cross-entropy of all targets of the users `rows`."""
        users = self.active[rows]
        random = at.rng("stretch")
        places = Places.of(self.known.take(users), self.ordered, self.config.max_history, random)
        clicks = places.clicks
        owner = torch.from_numpy(users[clicks.row_of_entry])
        item, drawn = torch.from_numpy(clicks.items), self._drawn(at)
        warm = kept_items(len(self.words), self.config.cold_dropout, at)
        own = owner if self.config.leave_one_out else None
        vectors, degree = self._encode(item, own, warm)  # (clicks, dims), (clicks,)
        others, degree_of_others = self._encode(drawn, None, warm)
        target = torch.from_numpy(places.target)  # entries of `clicks` that have a history
        history = places.weighted(vectors, self.decay).index_select(0, target)
        query = self.net.query(dropout(history, self.config.dropout, at.torch_rng("dropout")))  # (targets, dims)
        positive, negative = self._scores(query, vectors.index_select(0, target), degree.index_select(0, target),
                                          others, degree_of_others, places, drawn)  # fmt: skip
        same = drawn[None, :] == item.index_select(0, target)[:, None]
        return sampled_softmax_loss(positive, negative.masked_fill(same, -torch.inf), len(self.words))

    def _scores(
        self, query: Tensor, wanted: Tensor, degree: Tensor, others: Tensor, degree_of_others: Tensor,
        places: Places, drawn: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Scores of the targets (T,) and of the drawn items (T, N)."""
        own = self.net.terms(self.contexts(degree), degree)
        rest = self.net.terms(self.contexts(degree_of_others), degree_of_others)
        positive = own.scale * (query * wanted).sum(1) + own.prior
        negative = query @ others.T * rest.scale + rest.prior
        if self.followers is not None:
            after = self.followers.of_targets(places, self.decay, self.config.leave_one_out)
            positive = positive + own.following * _soft(after)
            negative = negative + rest.following * _soft(self.followers.of_items(places, self.decay, drawn.numpy()))
        return positive, negative

    def _encode(self, items: Tensor, without: Tensor | None, warm: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, dims) and clicks (n,) of items as seen without a clicker each; those that are not `warm` have none."""
        known = warm.index_select(0, items)
        degree = (self.near.degree.index_select(0, items) - int(without is not None)) * known
        near = self.near.means(items, without) * known[:, None]
        return self.net.vectors(self.words.index_select(0, items), items, near, degree > 0), degree

    def _drawn(self, at: At) -> Tensor:
        wanted, num_items = self.config.negatives, len(self.words)
        return (
            torch.arange(num_items) if wanted >= num_items else torch.from_numpy(uniform_items(wanted, num_items, *at))
        )


def _soft(transitions: Tensor) -> Tensor:
    return torch.log1p(transitions / _SOFT)
