"""GF-CF: collaborative filtering as low-pass filtering of a user's clicks on the item graph. Nothing is trained.

Shen et al. 2021, "How Powerful is Graph Convolution for Recommendation?" (CIKM, arXiv:2108.07567, eqs. 8 and 9):

    R~ = D_u^-1/2 R D_i^-1/2              R (num_users, num_items): binary training clicks, D: degrees
    P  = R~ᵀ R~                           the linear filter; its eigenvectors are V, the right singular vectors of R~
    s  = r P + ideal · r D_i^-1/2 V_k V_kᵀ D_i^1/2          r (num_items,): the user's clicks

V_k holds the `rank` leading singular vectors (the ideal low-pass filter). With ideal = 0 this is the linear filter.
Differences: r may fade with its steps back (decay 1 is the paper), and V comes from graph/svd.py.

P and V Vᵀ are never formed: the model keeps the clicks and V, num_clicks + num_items × rank values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.graph.bipartite import clicked_matrix, sparse_tensor
from graphllmrec.graph.svd import COLUMNS, truncated_svd
from graphllmrec.models.scoring import Decay, Sparse, empty_csr, history_state, load_history_state, settle_decay
from graphllmrec.nn.histories import history_matrix
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Condition, Config


@dataclass(frozen=True)
class ItemGraph:
    """The item graph P = R~ᵀ R~ as two sparse factors, R~ = D_u^-user_power R D_i^-item_power."""

    to_users: Tensor  # (num_users, num_items) sparse CSR: R~
    to_items: Tensor  # (num_items, num_users) sparse CSR: its transpose
    scale: Tensor  # (num_items,) D_i^item_power; 1 for items without clicks
    columns: Sparse  # the same as to_items for SciPy, sharing its memory

    @staticmethod
    def of(clicks: Sparse, user_power: float = 0.5, item_power: float = 0.5) -> ItemGraph:
        """The graph of binary `clicks` (num_users, num_items); a repeated pair must be one entry."""
        by_user = np.maximum(np.diff(clicks.indptr), 1.0) ** -user_power  # (num_users,)
        item_degree = np.bincount(clicks.indices, minlength=clicks.shape[1])
        scale = np.maximum(item_degree, 1.0) ** item_power  # (num_items,)
        values = (np.repeat(by_user, np.diff(clicks.indptr)) / scale[clicks.indices]).astype(np.float32)
        rows: Sparse = sp.csr_array((values, clicks.indices, clicks.indptr), shape=clicks.shape)
        columns: Sparse = sp.csr_array(rows.T)
        return ItemGraph(sparse_tensor(rows), sparse_tensor(columns), torch.from_numpy(scale).float(), columns)

    @property
    def num_items(self) -> int:
        """Number of items at the fit."""
        return self.columns.shape[0]

    def blur(self, signals: Tensor) -> Tensor:
        """P x for every column x of `signals` (num_items, B)."""
        parts = [self.to_items @ (self.to_users @ part.contiguous()) for part in torch.split(signals, COLUMNS, dim=1)]
        return torch.cat(parts, dim=1)

    def blur_histories(self, histories: Sparse) -> Tensor:
        """(x P)ᵀ (num_items, B) for the rows x of a sparse (B, num_items) matrix: few users share these items."""
        sharing = torch.from_numpy((histories @ self.columns).toarray()).T.to(self.to_items.device)  # (num_users, B)
        parts = [self.to_items @ part.contiguous() for part in torch.split(sharing, COLUMNS, dim=1)]
        return torch.cat(parts, dim=1) if parts else sharing.new_zeros(self.num_items, 0)

    def low_pass(self, histories: Sparse, vectors: Tensor, weight: float) -> Tensor:
        """weight · r D_i^-1/2 V Vᵀ D_i^1/2 of the rows r of `histories` (B, num_items), as columns (num_items, B).

        histories: sparse; vectors (num_items, rank): V.
        """
        in_spectrum = torch.from_numpy((histories / self.scale.numpy()) @ vectors.numpy())  # (B, rank)
        return weight * self.scale[:, None] * (vectors @ in_spectrum.T)


def clicks_state(clicks: Sparse) -> dict[str, Tensor]:
    """Row pointers and items of the clicks (all of them count 1)."""
    return {
        "click_indptr": torch.from_numpy(clicks.indptr.astype(np.int64)),
        "click_items": torch.from_numpy(clicks.indices.astype(np.int32)),
    }


def clicks_restore(state: Mapping[str, Tensor], num_items: int) -> Sparse:
    """Clicks from tensors written by `clicks_state`. Raises ValueError for impossible item rows."""
    indptr, items = state["click_indptr"].numpy(), state["click_items"].numpy()
    shape = (len(indptr) - 1, num_items)
    clicks: Sparse = sp.csr_array((np.ones(len(items), np.float32), items, indptr), shape=shape)
    clicks.check_format(full_check=True)  # SciPy reads other memory for a column that does not exist
    return clicks


class GraphFilterConfig(Config):
    """Settings of the graph filter."""

    rank: int = Field(256, ge=1, le=100_000, description="singular vectors of the ideal low-pass filter")
    ideal: float = Field(0.3, ge=0, le=1e6, description="weight of the ideal low-pass filter beside the linear one")
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("rank", self.ideal > 0, "ideal above 0")


class GraphFilter:
    """Linear plus ideal low-pass filter on the item graph."""

    name: ClassVar[str] = "graph-filter"
    config_class: ClassVar[type[Config]] = GraphFilterConfig
    abilities = Abilities()

    def __init__(self, config: GraphFilterConfig) -> None:
        self.config = config
        self.clicks = empty_csr()
        self.graph = ItemGraph.of(self.clicks)
        self.vectors = torch.empty(0, 0)  # V (num_items at fit, rank); no columns when ideal = 0
        self.num_items = 0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Singular vectors of the training clicks, decay from the validation part."""
        split = task.split
        self.clicks, self.num_items = clicked_matrix(split.train, split.num_users, split.num_items), split.num_items
        self.graph = ItemGraph.of(self.clicks)
        self.vectors = torch.zeros(self.num_items, 0)
        if self.config.ideal:
            spectrum = truncated_svd(self.graph.to_users, self.graph.to_items, self.config.rank, task.seed)
            task.logger.log("svd", rank=len(spectrum.s), residual=spectrum.residual, rounds=spectrum.rounds)
            self.vectors = spectrum.v
        settle_decay(self, task)

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items); items added since the fit, like items without clicks, score 0."""
        histories = history_matrix(queries.histories, self.num_items, self.decay)[:, : self.graph.num_items]
        scores = self.graph.blur_histories(histories)  # (num_items at fit, B)
        if self.vectors.shape[1]:
            scores += self.graph.low_pass(histories, self.vectors, self.config.ideal)
        return torch.nn.functional.pad(scores.T, (0, self.num_items - len(scores)))  # (B, num_items)

    def state(self) -> dict[str, Tensor]:
        """Clicks, singular vectors, decay, size of the catalogue."""
        return clicks_state(self.clicks) | {"vectors": self.vectors} | history_state(self)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.vectors = state["vectors"]
        self.clicks = clicks_restore(state, len(self.vectors))
        self.graph = ItemGraph.of(self.clicks)
        load_history_state(self, state)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items without clicks: score 0."""
        more = copy(self)
        more.num_items += len(text)
        return more
