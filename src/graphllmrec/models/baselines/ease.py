"""EASE: a linear autoencoder over items with a closed-form solution.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW, arXiv:1905.03375):

    P = (XᵀX + l2·I)⁻¹                  X (num_users, num_items): training clicks, 1 or their weight
    B_ij = −P_ij / P_jj,  B_jj = 0      (num_items, num_items)
    score(u, j) = Σ_{i in history of u} decay^(steps back of i) · B_ij

which minimises |X − XB|² + l2·|B|² subject to diag(B) = 0. Weights are relative: their mean is 1. Queries have none.
Differences from the paper: X is binary there, and when scoring, the history may
fade with its steps back (decay 1 is the paper); the fit is the paper's.

Memory: one dense (num_items, num_items) float32 matrix (586 MB for 12,101 items), which holds XᵀX, its factor, P and
B in turn, beside the sparse XᵀX. The bytes needed are logged before the solve starts; where they are not free, the
error names them. The inverse is computed by Cholesky in float32 and its residual is checked; when it is too large
(small l2, very popular items), the solve is repeated in float64, which takes three times the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import lapack
from torch import Tensor

from graphllmrec.errors import RecipeError
from graphllmrec.graph.bipartite import weighted_matrix
from graphllmrec.models.memory import free_memory
from graphllmrec.models.scoring import Decay, dense_scores, history_state, load_history_state, settle_decay
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config
from graphllmrec.train.validation import settle, tune_setting

_RESIDUAL = 1e-3  # largest |(XᵀX + l2·I) P − I| accepted of a float32 solve
L2S = (10.0, 30.0, 100.0, 300.0, 1000.0)  # tried when tuning
UNTUNED_L2 = 100.0  # for data without a validation part to tune on
_CHECKED = 64  # columns of the residual that are computed


class EASEConfig(Config):
    """Settings of EASE."""

    l2: Annotated[float, Field(gt=0, le=1e8)] | Literal["tune"] = Field(
        100.0, description='ridge penalty; larger for more users and noisier clicks; or "tune" on validation'
    )
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')


class EASE:
    """Embarrassingly shallow autoencoder."""

    name: ClassVar[str] = "ease"
    config_class: ClassVar[type[Config]] = EASEConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: EASEConfig) -> None:
        self.config = config
        self.weights = torch.empty(0, 0)  # B (num_items at fit, same)
        self.num_items = 0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Solve for B, l2 and decay from the validation part. Raises RecipeError when B does not fit into memory."""
        split = task.split
        clicks = weighted_matrix(split.train, split.num_users, split.num_items)
        gram = (clicks.T @ clicks).tocsr()
        self.num_items = split.num_items
        self._solve(gram, self._settle_l2(gram, task), task)
        settle_decay(self, task)

    def _settle_l2(self, gram: Any, task: Task) -> float:
        """The l2 of the config, or the best of L2S by NDCG@20 of validation users, with histories that do not fade."""
        if self.config.l2 != "tune":
            return self.config.l2

        def tuned() -> float:
            return tune_setting(self, task, "l2", L2S, lambda l2: self._solve(gram, l2, task))

        return settle(task, "ease/l2", tuned, UNTUNED_L2)

    def _solve(self, gram: Any, l2: float, task: Task) -> None:
        """Set `weights` to B, made from P in the memory of P."""
        self.weights = torch.empty(0, 0)  # before the next solve needs its room
        inverse = checked_inverse(gram, l2, task, self.name).T  # P is symmetric: the same values, now in rows
        inverse /= -np.diagonal(inverse).copy()  # B_ij = −P_ij / P_jj, in place
        np.fill_diagonal(inverse, 0.0)
        self.weights = torch.from_numpy(np.ascontiguousarray(inverse, dtype=np.float32))

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items); items added since the fit score 0, as an item without clicks does."""
        return dense_scores(queries, self.weights, self.num_items, self.decay)

    def state(self) -> dict[str, Tensor]:
        """B, decay, size of the catalogue."""
        return {"weights": self.weights} | history_state(self)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.weights = state["weights"]
        load_history_state(self, state)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items without weights: score 0."""
        more = copy(self)
        more.num_items += len(text)
        return more


def checked_inverse(gram: Any, l2: float, task: Task, model: str, at_least: int = 0) -> NDArray[Any]:
    """P = (gram + l2·I)⁻¹ of a sparse symmetric (n, n) matrix, in float32 if that is accurate enough, else in float64.

    at_least: bytes per pair of items that `model` needs later on. Raises RecipeError when these, or those of the solve,
    are not free, and when l2 is too small for float64.
    """
    for dtype in (np.float32, np.float64):
        needed = _check_memory(gram, dtype, model, at_least)
        task.logger.log(f"{model}-memory", gb=round(needed / 1e9, 2), items=gram.shape[0])
        inverse = ridge_inverse(gram, l2, dtype)
        residual = _residual(gram, l2, inverse)
        if residual < _RESIDUAL:  # never true of NaN
            return inverse
        task.logger.log(f"{model}-inaccurate", precision=dtype.__name__, residual=f"{residual:.1e}")
        del inverse
    raise RecipeError([f"model.l2: {l2:g} is too small for this data, the solve is off by {residual:.1e}; raise it"])


def ridge_inverse(gram: Any, l2: float, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """(gram + l2·I)⁻¹ of a sparse symmetric (n, n) matrix by Cholesky: dense, symmetric, NaN when it breaks down."""
    # LAPACK works in place on Fortran order; a symmetric matrix transposed is itself
    dense = gram.astype(dtype).toarray().T
    np.fill_diagonal(dense, dense.diagonal() + dtype(l2))
    factorise, invert = (lapack.spotrf, lapack.spotri) if dtype is np.float32 else (lapack.dpotrf, lapack.dpotri)
    factor, failed = factorise(dense, lower=True, overwrite_a=True, clean=False)
    if failed:
        return np.full_like(dense, np.nan)
    inverse: NDArray[Any] = invert(factor, lower=True, overwrite_c=True)[0]  # lower triangle only
    for row in range(1, len(inverse)):
        inverse[:row, row] = inverse[row, :row]
    return inverse


def _residual(gram: Any, l2: float, inverse: NDArray[Any]) -> float:
    """Largest absolute entry of (gram + l2·I)·P − I over the columns of the most popular items, in float64."""
    hardest = np.argsort(-gram.diagonal(), kind="stable")[:_CHECKED]
    columns = inverse[:, hardest].astype(np.float64)  # (n, checked)
    product = gram.astype(np.float64) @ columns + l2 * columns
    product[hardest, np.arange(len(hardest))] -= 1.0
    return float(np.abs(product).max(initial=0.0))


def _check_memory(gram: Any, dtype: type[np.floating[Any]], model: str, at_least: int) -> int:
    """Bytes that a solve takes at its peak. Raises RecipeError with the figure when they are not free."""
    # bytes per pair of items: P, and its float32 copy where P is float64
    num_items, dense = gram.shape[0], max(4 if dtype is np.float32 else 12, at_least)
    needed, free = int(num_items**2 * dense + gram.nnz * 24), free_memory()  # a second XᵀX in the solver's precision
    if needed > free:
        raise RecipeError([
            f"model.name: {model} needs {needed / 1e9:,.1f} GB for {num_items:,} items ({dense} bytes for every pair), "
            f"{free / 1e9:,.1f} GB are free; use item-knn, which is sparse, or an items table without the rarest items"
        ])  # fmt: skip
    return needed
