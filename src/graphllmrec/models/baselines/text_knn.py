"""Text-kNN: items whose texts resemble those of the clicked items. Nothing is learned from clicks.

    z_j = W(x_j) / |W(x_j)|                                      x_j: frozen text vector, W: PCA whitening to `text_dim`
    q_u = Σ_{i in history of u} decay^(steps back of i) · z_i + v · W(x_u) / |W(x_u)|
    score(u, j) = q_u · z_j

Whitening (Su et al. 2021, arXiv:2103.15316; see text/whiten.py) is necessary: the similarities of raw sentence vectors
are dominated by a few directions that all items share. An item without text has the zero vector: score 0. A new item
is scored by its text like any other. x_u: mean vector of the training reviews that user u wrote (text/reviews.py),
where there are reviews; v: `user_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.models.scoring import Decay, settle_decay
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening, require_text


class TextKNNConfig(Config):
    """Settings of text-kNN."""

    text_dim: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')
    user_weight: float = Field(1.0, ge=0, le=1e6, description="the reviews of a user count as so many newest clicks")


class TextKNN:
    """Neighbours in the space of whitened text vectors."""

    name: ClassVar[str] = "text-knn"
    config_class: ClassVar[type[Config]] = TextKNNConfig
    abilities = Abilities(needs_text=True, uses_user_text=True, ranks_cold_items=True)

    def __init__(self, config: TextKNNConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.vectors = torch.empty(0, 0)  # (num_items, text_dim), unit length
        self.written = torch.empty(0, 0)  # (num_users, text_dim) of what users wrote; no rows without reviews
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Whiten the text vectors, decay from the validation part. Raises TextError when there are none."""
        text = require_text(task, self.name)
        self.whitening = Whitening.fit(text, self.config.text_dim)
        self.vectors = unit(self.whitening.apply(text))
        if task.user_text is not None and self.config.user_weight:
            self.written = unit(self.whitening.apply(task.user_text))
        settle_decay(self, task)

    def item_vectors(self) -> Tensor:
        """Unit-length whitened text vectors (num_items, text_dim)."""
        return self.vectors

    def query_vectors(self, queries: Queries) -> Tensor:
        """Recency-weighted sums of the history's vectors, and what a known user wrote (B, text_dim)."""
        query = aggregate(queries.histories, self.vectors, recency_weights(queries.histories, self.decay))
        if len(self.written):
            known = torch.from_numpy(np.flatnonzero(queries.users >= 0))
            wrote = self.written.index_select(0, torch.from_numpy(queries.users).index_select(0, known))
            query.index_add_(0, known, wrote, alpha=self.config.user_weight)
        return query

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.vectors.T

    def state(self) -> dict[str, Tensor]:
        """Item vectors, whitening, decay, what users wrote."""
        assert self.whitening is not None, "state() before fit()"
        written = {"written": self.written} if len(self.written) else {}
        own = {"vectors": self.vectors, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        return own | written | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.vectors, self.decay = state["vectors"], float(state["decay"])
        self.written = state.get("written", torch.empty(0, 0))

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text; the whitening stays as fitted."""
        assert self.whitening is not None, "with_items() before fit()"
        more = copy(self)
        more.vectors = torch.cat([self.vectors, unit(self.whitening.apply(text))])
        return more
