"""TextGCN (Chernov, Wahab & Novitskij 2025, "Leveraging Language Semantics for Collaborative Filtering with TextGCN and
TextGCN-MLP", arXiv:2510.12461): graph convolution over text vectors, without any training.

    i^(0) = text vector of i                 u^(0) = mean of the i^(0) of what u clicked
    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)
    z = mean of layers 0 … L,   score(u, i) = z_u · z_i

A user's z is a sum over the clicks, so any history h of n clicks can be a query; with decay 1 and the training clicks
of a user, q is that user's z:

    q = [Σ_k w_k k^(0) + sqrt(n) Σ_k w_k b_k] / (L + 1),    w_k = decay^(steps back of k) / Σ decay^…
    b_i = Σ_{l<L} i^(l) / sqrt(|N_i|)
    score(h, i) = cos(q, z_i) (1 + |N_i|)^p

An item without clicks has layer 0 alone: its text. With 0 layers this is text-kNN.

Differences from the paper: text vectors are whitened (text/whiten.py), because raw ones are too similar; the recency
weights; the cosine, with popularity as a separate exponent p, instead of vector lengths that grow with the degree.
Layers, p and decay are tuned on validation users, one after the other, unless they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate, sparse_product
from graphllmrec.models.scoring import UNTUNED_DECAY, Decay, settle_decay
from graphllmrec.nn.histories import Averages, aggregate, recency_weights
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening, require_text
from graphllmrec.train.validation import Trials, tuning_users

LAYERS = (1, 2, 3, 0)  # tried when tuning; a tie keeps the first
POPULARITIES = (0.0, 0.05, 0.1, 0.2, 0.3)
UNTUNED_LAYERS, UNTUNED_POPULARITY = 2, 0.0  # for data without a validation part to tune on


class TextGCNConfig(Config):
    """Settings of TextGCN."""

    text_dim: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    num_layers: Annotated[int, Field(ge=0, le=16)] | Literal["tune"] = Field(
        "tune", description='propagation layers L, or "tune" on validation; 0 is text-kNN'
    )
    popularity: Annotated[float, Field(ge=0, le=2)] | Literal["tune"] = Field(
        "tune", description='exponent p of an item\'s clicks, or "tune" on validation'
    )
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')


class TextGCN:
    """Text vectors, smoothed over the user–item graph; a vector model."""

    name: ClassVar[str] = "textgcn"
    config_class: ClassVar[type[Config]] = TextGCNConfig
    abilities = Abilities(needs_text=True, ranks_cold_items=True)

    def __init__(self, config: TextGCNConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.items = torch.empty(0, 0)  # (num_items, text_dim): unit z_i, times (1 + clicks)^p
        self.text = torch.empty(0, 0)  # (num_items, text_dim): i^(0)
        self.below = torch.empty(0, 0)  # (num_items, text_dim): b_i
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Whiten, propagate, and tune layers, popularity and decay. Raises TextError when there is no text."""
        text, split = require_text(task, self.name), task.split
        self.whitening = Whitening.fit(text, self.config.text_dim)
        self.text = unit(self.whitening.apply(text))
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, decay=1.0)
        users = sparse_product(means.matrix, means.transposed, self.text)  # (num_users, text_dim): u^(0)
        self.decay = UNTUNED_DECAY if split.ordered else 1.0  # while layers and popularity are tuned
        self._propagate(graph, users, *self._settle(task, graph, users))
        settle_decay(self, task)

    def _settle(self, task: Task, graph: Bipartite, users: Tensor) -> tuple[int, float]:
        """Layers and popularity: those of the config, or the best on validation users, one after the other."""
        layers, popularities = self._candidates(tunable=bool(len(task.split.valid)))
        if len(layers) == len(popularities) == 1:
            return layers[0], popularities[0]
        trials = Trials(self, task.split, tuning_users(task.split, task.seed), partial(self._propagate, graph, users))
        best = max(layers, key=lambda number: trials(number, popularities[0]))
        power = max(popularities, key=lambda each: trials(best, each))
        tried = {f"{number} layers, clicks^{each}": ndcg for (number, each), ndcg in trials.found.items()}
        task.logger.log("textgcn-tuned", num_layers=best, popularity=power, tried=tried)
        return best, power

    def _candidates(self, tunable: bool) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Layers and popularities to try; one of each where nothing is tuned."""
        config = self.config
        layers = LAYERS if tunable else (UNTUNED_LAYERS,)
        popularities = POPULARITIES if tunable else (UNTUNED_POPULARITY,)
        return (
            (config.num_layers,) if config.num_layers != "tune" else layers,
            (config.popularity,) if config.popularity != "tune" else popularities,
        )

    def _propagate(self, graph: Bipartite, users: Tensor, num_layers: int, popularity: float) -> None:
        """Set `items` and `below` from the layers of the text vectors and of the users' means (num_users, text_dim)."""
        weights = [1 / (num_layers + 1)] * (num_layers + 1)
        vectors = propagate(graph, users, self.text, num_layers, weights)[1]
        self.items = unit(vectors) * (1 + graph.item_degree.float())[:, None] ** popularity
        self.below = torch.zeros_like(self.text)
        if num_layers:
            lower = propagate(graph, users, self.text, num_layers - 1, weights[1:])[1]  # Σ_{l<L} i^(l) / (L + 1)
            self.below = lower * (num_layers + 1) / graph.item_degree.clamp_min(1).sqrt()[:, None]

    def item_vectors(self) -> Tensor:
        """Unit z_i times its popularity (num_items, text_dim)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """Unit vectors q (B, text_dim); zeros for an empty history."""
        histories, lengths = queries.histories, torch.from_numpy(queries.histories.lengths)
        weights = recency_weights(histories, self.decay)
        ones = torch.ones(len(self.text), 1)
        total = aggregate(histories, ones, weights).clamp_min(1e-12)  # (B, 1)
        text = aggregate(histories, self.text, weights)
        return unit((text + lengths.sqrt()[:, None] * aggregate(histories, self.below, weights)) / total)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Item vectors, i^(0) and b of every item, whitening, decay."""
        assert self.whitening is not None, "state() before fit()"
        own = {"items": self.items, "text": self.text, "below": self.below}
        own["decay"] = torch.tensor(self.decay, dtype=torch.float64)
        return own | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.text, self.below = state["items"], state["text"], state["below"]
        self.decay = float(state["decay"])

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no place in the graph, layer 0 alone."""
        assert self.whitening is not None, "with_items() before fit()"
        text_features = unit(self.whitening.apply(text))
        has_layers = bool(self.below.any())  # with 0 layers there is nothing below
        below = text_features if has_layers else torch.zeros_like(text_features)
        more = copy(self)
        more.items, more.text = torch.cat([self.items, text_features]), torch.cat([self.text, text_features])
        more.below = torch.cat([self.below, below])
        return more
