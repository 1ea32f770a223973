"""iALS: a vector per user and item by alternating least squares over all user–item pairs, each half solved exactly.

Hu, Koren & Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM), in the form and with the
frequency-scaled regularisation of Rendle, Krichene, Zhang & Koren 2021, "Revisiting the Performance of iALS on Item
Recommendation Benchmarks" (arXiv:2110.14037):

    L(W, H) = Σ_{(u,i) clicked} c_ui (w_u · h_i − 1)² + α₀ Σ_{all u,i} (w_u · h_i)² + Σ_u λ_u |w_u|² + Σ_i λ_i |h_i|²
    λ_u = l2 (n_u + α₀ |I|)^ν      λ_i = l2 (n_i + α₀ |U|)^ν            n: clicks of the user, of the item
    w_u = (Σ_{i clicked by u} c_ui h_i h_iᵀ + α₀ HᵀH + λ_u I)⁻¹ Σ_{i clicked by u} c_ui h_i     and items as well

c_ui is 1, or the click's weight relative to the mean (the confidence of Hu et al.; 1 for the clicks of a query).

A sweep solves all users, then all items; H starts as noise of standard deviation `init_scale` / sqrt(dim). Clicks have
no order and a repeated one counts once. Every query, of a known user or not, is folded in: w_u of the history, against
the H of the last sweep. An item without clicks solves to the zero vector: it scores 0, as do items added since the fit.

How it is solved: HᵀH = Q diag(e) Qᵀ once per half sweep, and H rotated to H Q, make the part of the equations that all
users share diagonal, D_u = diag(α₀ e + λ_u). With the n clicked rows X = c^1/2 H_clicked D_u^-1/2, a user with n ≤ dim
clicks then needs a system of n equations instead of dim, exactly (the push-through identity):

    w_u = D_u^-1/2 Xᵀ (X Xᵀ + I)⁻¹ c^1/2 = D_u^-1/2 (XᵀX + I)⁻¹ Xᵀ c^1/2

Most users and items of real data have so few, so that the cost hardly depends on dim³. Users of similar n share a
batch. Scores do not change when H and w are rotated by the same Q, so the model keeps the rotated H.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Ints
from graphllmrec.errors import RecipeError
from graphllmrec.graph.bipartite import weighted_matrix
from graphllmrec.models.scoring import Sparse
from graphllmrec.nn.histories import history_matrix
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import torch_rng
from graphllmrec.settings import Config
from graphllmrec.train.validation import tune_setting

_BLOCK = 2_000_000  # numbers in the largest tensors of a batch of systems
_FILLED = 0.75  # the shortest row of a batch has at least this share of the clicks of the longest
L2 = (0.005, 0.01, 0.02, 0.04)  # tried when tuning
UNTUNED_L2 = 0.01  # for data without a validation part to tune on


class IALSConfig(Config):
    """Settings of iALS."""

    embedding_dim: int = Field(256, ge=1, le=8_192, description="size of the vectors")
    sweeps: int = Field(16, ge=1, le=10_000, description="number of sweeps over all users, then all items")
    unobserved: float = Field(0.01, gt=0, le=1e3, description="weight α₀ of every pair, beside 1 for a clicked one")
    l2: Annotated[float, Field(gt=0, le=1e6)] | Literal["tune"] = Field(
        0.01, description="penalty λ per unit of weight^ν in a user's or item's pairs; or \"tune\" on validation"
    )
    frequency: float = Field(
        1.0, ge=0, le=2, description="ν: how the penalty grows with that weight; 0: the same for all"
    )
    init_scale: float = Field(0.1, gt=0, le=1e3, description="length of the random initial item vectors")


class IALS:
    """Matrix factorisation by alternating least squares; a vector model."""

    name: ClassVar[str] = "ials"
    config_class: ClassVar[type[Config]] = IALSConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: IALSConfig) -> None:
        self.config = config
        self.items = torch.empty(0, 0)  # H Q (num_items, dim); zero for items without clicks
        self.spectrum = torch.empty(0)  # e (dim,)
        self.known = 0  # items at the fit: |I| of the equations
        self.settings = config  # with the penalty in use

    def fit(self, task: Task) -> None:
        """`sweeps` sweeps over the training clicks, for every penalty that is tried.

        Raises RecipeError when rounding spoils a solve.
        """
        split, l2 = task.split, self.config.l2
        clicks = weighted_matrix(split.train, split.num_users, split.num_items)
        by_item: Sparse = sp.csr_array(clicks.T)
        self.known = split.num_items
        if l2 == "tune" and len(split.valid):
            self._tune(task, clicks, by_item)
        else:
            self._sweep(task, clicks, by_item, UNTUNED_L2 if l2 == "tune" else l2)

    def _tune(self, task: Task, clicks: Sparse, by_item: Sparse) -> None:
        """Keep the penalty of L2 with the best NDCG@20 on validation users."""
        best: dict[str, Tensor] = {}
        tune_setting(self, task, "l2", L2, lambda l2: self._sweep(task, clicks, by_item, l2),
                     keep=lambda: best.update(self.state()))  # fmt: skip
        self.restore(best)

    def _sweep(self, task: Task, clicks: Sparse, by_item: Sparse, l2: float) -> None:
        """All sweeps with this penalty, each time from the same initial vectors."""
        self.settings = config = self.config.model_copy(update={"l2": l2})
        noise = torch.randn(self.known, config.embedding_dim, generator=torch_rng(task.seed, "ials/items"))
        self.items, self.spectrum = rotate(noise * (config.init_scale / config.embedding_dim**0.5))
        task.logger.begin("ials", config.sweeps)
        for _ in range(config.sweeps):
            users, spectrum = rotate(solve_rows(clicks, self.items, self.spectrum, config, len(self.items)))
            self.items, self.spectrum = rotate(solve_rows(by_item, users, spectrum, config, len(users)))
            task.logger.advance()

    def item_vectors(self) -> Tensor:
        """h_i (num_items, dim)."""
        return self.items

    def query_vectors(self, queries: Queries) -> Tensor:
        """w of every history (B, dim), of known and unknown users alike; zero for an empty history."""
        clicks = history_matrix(queries.histories, len(self.items))[
            :, : self.known
        ]  # without items added since the fit
        clicks.data[:] = 1.0  # a repeated click counts once
        return solve_rows(clicks, self.items, self.spectrum, self.settings, self.known)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.items.T

    def state(self) -> dict[str, Tensor]:
        """Item vectors and what folding in needs; users are not kept."""
        own = {"items": self.items, "spectrum": self.spectrum, "known": torch.tensor(self.known)}
        return own | {"l2": torch.tensor(float(self.settings.l2), dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.items, self.spectrum, self.known = state["items"], state["spectrum"], int(state["known"])
        self.settings = self.config.model_copy(update={"l2": float(state["l2"])})

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items without clicks: the zero vector."""
        more = copy(self)
        more.items = torch.cat([self.items, self.items.new_zeros(len(text), self.items.shape[1])])
        return more


def rotate(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """`vectors` (n, dim) in the eigenbasis Q of their Gram matrix, and its eigenvalues (dim,)."""
    spectrum, basis = torch.linalg.eigh(vectors.T @ vectors)
    return vectors @ basis, spectrum.clamp_min(0)  # (n, dim), (dim,)


def solve_rows(clicks: Sparse, vectors: Tensor, spectrum: Tensor, config: IALSConfig, others: int) -> Tensor:
    """One half sweep: the least-squares vector (n, dim) of every row of `clicks` (n, m), whose entries are weights c.

    `vectors` (m or more, dim) are those of the other side, rotated, with their `spectrum` (dim,); `others` is |I| or
    |U|. Rows without clicks are zero. Raises RecipeError when a system has become singular in rounding.
    """
    lengths = np.diff(clicks.indptr).astype(np.int64)  # (n,)
    out = vectors.new_zeros(len(lengths), vectors.shape[1])
    padded = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])  # its last row stands for "no click"
    penalty = float(config.l2) * (lengths + config.unobserved * others) ** config.frequency  # (n,)
    for rows in _batches(lengths, vectors.shape[1]):
        place = np.arange(lengths[rows[0]])  # (width,)
        entry = np.minimum(clicks.indptr[rows][:, None] + place, clicks.nnz - 1)
        items = np.where(place < lengths[rows][:, None], clicks.indices[entry], len(vectors))  # (B, width)
        index = torch.from_numpy(items.reshape(-1).astype(np.int64)).to(vectors.device)
        clicked = padded.index_select(0, index).view(*items.shape, -1)  # (B, width, dim)
        root = torch.from_numpy(np.sqrt(clicks.data[entry])).to(vectors)[:, :, None]  # (B, width, 1) c^1/2
        diagonal = config.unobserved * spectrum + torch.from_numpy(penalty[rows]).to(vectors)[:, None]  # (B, dim)
        out.index_copy_(0, torch.from_numpy(rows).to(vectors.device), _solve_batch(clicked, root, diagonal))
    if not torch.isfinite(out).all():
        raise RecipeError([f"model.l2: {config.l2} is too small for this data, a solve broke down; raise it"])
    return out


def _batches(lengths: Ints, dim: int) -> Iterator[Ints]:
    """Rows with clicks in batches of similar length, the longest first, each within `_BLOCK` numbers."""
    order = np.argsort(-lengths, kind="stable")
    descending = -lengths[order]  # ascending negatives, for searchsorted
    start, end = 0, int(np.searchsorted(descending, 0))
    while start < end:
        width = int(-descending[start])
        room = max(1, _BLOCK // (width * dim + min(width, dim) ** 2))
        alike = int(np.searchsorted(descending, -_FILLED * width, side="right"))
        stop = min(start + room, alike, end)
        yield order[start:stop]
        start = stop


def _solve_batch(clicked: Tensor, root: Tensor, diagonal: Tensor) -> Tensor:
    """w (B, dim) from the clicked vectors (B, width, dim), zero rows for none, c^1/2 (B, width, 1) and D (B, dim).

    NaN where the system is singular.
    """
    scale = diagonal.rsqrt()  # D^-1/2
    x = clicked * scale[:, None] * root  # (B, width, dim)
    few = x.shape[1] <= x.shape[2]
    system = x @ x.mT if few else x.mT @ x  # (B, width, width) or (B, dim, dim)
    system.diagonal(dim1=1, dim2=2).add_(1)
    factor, failed = torch.linalg.cholesky_ex(system)
    if few:
        solution = x.mT @ torch.cholesky_solve(root, factor)  # at the zero rows of x too: they count for nothing
    else:
        solution = torch.cholesky_solve(x.mT @ root, factor)
    vectors = scale * solution.squeeze(2)  # (B, dim)
    return vectors.masked_fill_((failed != 0)[:, None], torch.nan)
