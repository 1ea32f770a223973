"""Text-kNN: items whose texts resemble what was clicked last. Nothing is learned from clicks; new items are welcome.

    z_j = W(x_j) / |W(x_j)|                                      x_j: frozen text vector, W: PCA whitening to `dims`
    q_u = Σ_{i in history of u} decay^(steps back of i) · z_i + v · W(x_u) / |W(x_u)|
    score(u, j) = q_u · z_j

Whitening (Su et al. 2021, arXiv:2103.15316; see text/whiten.py) is what makes raw sentence vectors usable here: their
similarities are dominated by a few directions that all items share. An item without text has the zero vector: score 0.
x_u: mean vector of what user u wrote in the training part (text/reviews.py), where there are reviews; v: `user_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.errors import TextError
from graphllmrec.models.scoring import Decay, settle_decay
from graphllmrec.nn.histories import aggregate, recency_weights
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.text.whiten import Whitening


class TextKNNConfig(Config):
    """Settings of text-kNN."""

    dims: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')
    user_weight: float = Field(1.0, ge=0, le=1e6, description="what a user wrote counts as so many newest clicks")


class TextKNN:
    """Neighbours in the space of whitened text vectors."""

    name: ClassVar[str] = "text-knn"
    config_class: ClassVar[type[Config]] = TextKNNConfig
    abilities = Abilities(needs_text=True, uses_user_text=True, ranks_cold_items=True)

    def __init__(self, config: TextKNNConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.vectors = torch.empty(0, 0)  # (num_items, dims), unit length
        self.written = torch.empty(0, 0)  # (num_users, dims) of what users wrote; no rows where nobody did
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Whiten the text vectors, decay from the validation part. Raises TextError when there are none."""
        if task.text is None:
            raise TextError("text-knn needs item text, and this data has none: add a title column to the items table")
        if len(task.text) != task.split.num_items:
            raise TextError(f"{len(task.text):,} text vectors for {task.split.num_items:,} items")
        self.whitening = Whitening.fit(task.text, self.config.dims)
        self.vectors = unit(self.whitening.apply(task.text))
        if task.user_text is not None and self.config.user_weight:
            self.written = unit(self.whitening.apply(task.user_text))
        settle_decay(self, task)

    def item_vectors(self) -> Tensor:
        """Unit-length whitened text vectors (num_items, dims)."""
        return self.vectors

    def query_vectors(self, queries: Queries) -> Tensor:
        """Recency-weighted sums of the history's vectors, and what a known user wrote (B, dims)."""
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
        whitening = {f"whitening.{key}": value for key, value in self.whitening.state().items()}
        written = {"written": self.written} if len(self.written) else {}
        own = {"vectors": self.vectors, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        return own | written | whitening

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        prefix = "whitening."
        parts = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.whitening = Whitening.restore(parts)
        self.vectors, self.decay = state["vectors"], float(state["decay"])
        self.written = state.get("written", torch.empty(0, 0))

    def add_items(self, text: TextVectors) -> None:
        """Append items by their text; the whitening stays as fitted."""
        assert self.whitening is not None, "add_items() before fit()"
        self.vectors = torch.cat([self.vectors, unit(self.whitening.apply(text))])
