"""TextGCN (Chernov, Wahab & Novitskij 2025, "Leveraging Language Semantics for Collaborative Filtering with TextGCN and
TextGCN-MLP", arXiv:2510.12461): graph convolution over text vectors, without any training.

    i^(0) = text vector of i                 u^(0) = mean of the i^(0) of what u clicked
    u^(l+1) = Σ_{i in N_u} i^(l) / sqrt(|N_u| |N_i|)       i^(l+1) = Σ_{u in N_i} u^(l) / sqrt(|N_u| |N_i|)
    z = mean of layers 0 … L,   score(u, i) = z_u · z_i

A user's z is a sum over the clicks, so that anybody with a history h of n clicks can ask; with decay 1 and the training
clicks of a user it is that user's z:

    q = [Σ_k w_k k^(0) + sqrt(n) Σ_k w_k b_k] / (L + 1),    w_k = decay^(steps back of k) / Σ decay^…
    b_i = Σ_{l<L} i^(l) / sqrt(|N_i|)
    score(h, i) = cos(q, z_i) (1 + |N_i|)^p

An item that nobody has clicked has layer 0 alone: its text. With 0 layers this is text-kNN.

Differences from the paper: text vectors are whitened (text/whiten.py), for raw ones resemble each other too much; the
recency weights; the cosine, with popularity as an exponent p of its own, instead of lengths that happen to grow with
the degree. Layers, p and decay are tuned on validation users, one after the other, unless they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.errors import TextError
from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import propagate, sparse_product
from graphllmrec.models.scoring import UNTUNED_DECAY, Decay, settle_decay
from graphllmrec.nn.histories import Averages, aggregate, recency_weights
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.validation import tuning_users

LAYERS = (1, 2, 3, 0)  # tried when tuning; a tie keeps the first
POPULARITIES = (0.0, 0.05, 0.1, 0.2, 0.3)
UNTUNED_LAYERS, UNTUNED_POPULARITY = 2, 0.0  # for data without a validation part to tune on


class TextGCNConfig(Config):
    """Settings of TextGCN."""

    dims: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
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
        self.items = torch.empty(0, 0)  # (num_items, dims): unit z_i, times (1 + clicks)^p
        self.text = torch.empty(0, 0)  # (num_items, dims): i^(0)
        self.below = torch.empty(0, 0)  # (num_items, dims): b_i
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Whiten, propagate, and settle the three numbers on validation. Raises TextError when there is no text."""
        if task.text is None:
            raise TextError("textgcn needs item text, and this data has none: add a title column to the items table")
        split, config = task.split, self.config
        if len(task.text) != split.num_items:
            raise TextError(f"{len(task.text):,} text vectors for {split.num_items:,} items")
        self.whitening = Whitening.fit(task.text, config.dims)
        self.text = unit(self.whitening.apply(task.text))
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, decay=1.0)
        users = sparse_product(means.matrix, means.transposed, self.text)  # (num_users, dims): u^(0)
        self.decay = UNTUNED_DECAY if split.ordered else 1.0  # while layers and popularity are tuned
        tunable = bool(len(split.valid))
        layers = (config.num_layers,) if config.num_layers != "tune" else LAYERS if tunable else (UNTUNED_LAYERS,)
        powers = (
            (config.popularity,) if config.popularity != "tune" else POPULARITIES if tunable else (UNTUNED_POPULARITY,)
        )
        best, tried = (layers[0], powers[0]), {}
        if len(layers) > 1 or len(powers) > 1:
            for number in layers:
                self._propagate(graph, users, number, powers[0])
                tried[number, powers[0]] = validation_metric(self, split, users=tuning_users(split, task.seed))
            best = max(tried, key=lambda key: tried[key])
            for power in powers[1:]:
                self._propagate(graph, users, best[0], power)
                tried[best[0], power] = validation_metric(self, split, users=tuning_users(split, task.seed))
            best = max(tried, key=lambda key: tried[key])
            found = {f"{number} layers, clicks^{power}": value for (number, power), value in tried.items()}
            task.logger.log("textgcn-tuned", num_layers=best[0], popularity=best[1], tried=found)
        self._propagate(graph, users, *best)
        settle_decay(self, task)

    def _propagate(self, graph: Bipartite, users: Tensor, num_layers: int, popularity: float) -> None:
        """Set `items` and `below` from the layers of the text vectors and of the users' means (num_users, dims)."""
        weights = [1 / (num_layers + 1)] * (num_layers + 1)
        vectors = propagate(graph, users, self.text, num_layers, weights)[1]
        self.items = unit(vectors) * (1 + graph.item_degree.float())[:, None] ** popularity
        self.below = torch.zeros_like(self.text)
        if num_layers:
            lower = propagate(graph, users, self.text, num_layers - 1, weights[1:])[1]  # Σ_{l<L} i^(l) / (L + 1)
            self.below = lower * (num_layers + 1) / graph.item_degree.clamp_min(1).sqrt()[:, None]

    def item_vectors(self) -> Tensor:
        """Unit z_i times its popularity (num_items, dims)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """Unit vectors q (B, dims); zeros for an empty history."""
        histories, lengths = queries.histories, torch.from_numpy(queries.histories.lengths)
        weights = recency_weights(histories, self.decay)
        ones = torch.ones(len(self.text), 1)
        total = aggregate(histories, ones, weights).clamp_min(1e-12)  # (B, 1)
        words = aggregate(histories, self.text, weights)
        return unit((words + lengths.sqrt()[:, None] * aggregate(histories, self.below, weights)) / total)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Item vectors, what histories are made of, whitening, decay."""
        assert self.whitening is not None, "state() before fit()"
        own = {"items": self.items, "text": self.text, "below": self.below}
        return (
            own
            | {"decay": torch.tensor(self.decay, dtype=torch.float64)}
            | prefixed("whitening", self.whitening.state())
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.text, self.below = state["items"], state["text"], state["below"]
        self.decay = float(state["decay"])

    def add_items(self, text: TextVectors) -> None:
        """Append items by their text: no place in the graph, layer 0 alone."""
        assert self.whitening is not None, "add_items() before fit()"
        words = unit(self.whitening.apply(text))
        below = words if bool(self.below.any()) else torch.zeros_like(words)  # with 0 layers there is nothing below
        self.items, self.text = torch.cat([self.items, words]), torch.cat([self.text, words])
        self.below = torch.cat([self.below, below])
