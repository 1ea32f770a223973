"""Leading singular vectors of a large sparse matrix, by filtered subspace iteration on a random start.

For the normalised adjacency A~ = D_u^-1/2 A D_i^-1/2 these are the smooth signals of the user–item graph: what graph
filters keep (Shen et al. 2021, arXiv:2108.07567) and what an embedding model can be started from.

    A~ ≈ U diag(S) Vᵀ,   U (num_users, rank),  S (rank,) falling,  V (num_items, rank)

Method: a random block is orthonormalised, then repeatedly filtered by a Chebyshev polynomial of A~ᵀA~ that is at most 1
on [0, a] and grows fast above, and rotated to its Ritz vectors; a is the smallest Ritz value of the block (Zhou, Saad,
Tiago & Chelikowsky 2006, "Self-consistent-field calculations using Chebyshev-filtered subspace iteration", J. Comp.
Phys. 219; random start as in Halko, Martinsson & Tropp 2011, arXiv:0909.4061). Products go through the matrix and its
transpose, both in CSR, so nothing is transposed. Stops when the largest residual |A~ᵀA~ v − s² v| / s_1² of the wanted
vectors is below `tolerance`, or after `max_rounds`. Memory: about five blocks of num_items × 1.25 rank float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphllmrec.rng import torch_rng

_DEGREE = 8  # of the Chebyshev filter: products with A~ᵀA~ between two orthonormalisations
COLUMNS = 32  # of a dense block per sparse product: gowalla, one thread: 3 ms for 32 columns, 10 for 64, 89 for 320
_VANISHES = 1e-5  # of the largest: singular values below it are rounding
_SAFE = 0.03  # smallest pivot of a float32 Gram matrix of unit columns that Cholesky QR is trusted with


@dataclass(frozen=True)
class Spectrum:
    """Leading singular values and vectors, largest first."""

    u: Tensor  # (num_rows, rank) float32, orthonormal columns; the largest entry of each column of v is positive
    s: Tensor  # (rank,) float32
    v: Tensor  # (num_columns, rank) float32, orthonormal columns
    residual: float  # largest |MᵀM v − s² v| / s_1² over the columns of v
    rounds: int  # filter rounds taken

    def first(self, rank: int) -> Spectrum:
        """The `rank` leading ones."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.v[:, :rank], self.residual, self.rounds)


@torch.no_grad()
def truncated_svd(
    matrix: Tensor, transposed: Tensor, rank: int, seed: int, *, tolerance: float = 1e-3, max_rounds: int = 12
) -> Spectrum:
    """The `rank` leading singular triplets of `matrix` (n, m) sparse CSR float32; `transposed` is its transpose, CSR.

    Triplets whose value is below 1e-5 of the largest are left out, so there may be fewer. Rows and columns of `matrix`
    without entries have zeros in U and V. Deterministic for the same seed, machine and thread count.
    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    smaller = min(matrix.shape)
    rank = min(rank, smaller)
    width = min(rank + max(rank // 5, 16), smaller)
    start = torch.randn(matrix.shape[0], width, generator=torch_rng(seed, "graph/spectral"))
    basis = _orthonormal(transposed @ start.to(matrix.device))
    values, basis, residual = _ritz(matrix, transposed, basis, rank)
    rounds = 0
    while residual > tolerance and rounds < max_rounds:
        basis = _orthonormal(_filtered(matrix, transposed, basis, values))
        values, basis, residual = _ritz(matrix, transposed, basis, rank)
        rounds += 1
    filled = transposed.crow_indices().diff() > 0  # orthonormalising leaves rounding in the rows of empty columns
    return _triplets(matrix, basis[:, :rank] * filled[:, None], residual, rounds)


def _filtered(matrix: Tensor, transposed: Tensor, basis: Tensor, values: Tensor) -> Tensor:
    """T_m(2 MᵀM / a − 1) basis (m, width), a = the smallest Ritz value, each product scaled against overflow."""
    cut = float(values[-1].clamp_min(values[0] * 1e-6))
    if cut <= 0:  # a matrix of zeros
        return basis
    top = 2 * float(values[0]) / cut - 1  # image of the largest value; T grows by about 2·top a step
    before, now = basis, (matrix_gram(matrix, transposed, basis) * (2 / cut) - basis) / top
    scale = 1 / top
    for _ in range(_DEGREE - 1):
        following_scale = 1 / (2 * top - scale)
        product = matrix_gram(matrix, transposed, now) * (2 / cut) - now
        before, now = now, 2 * following_scale * product - scale * following_scale * before
        scale = following_scale
    return now


def matrix_gram(matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
    """MᵀM dense (m, d) by two sparse products, a few columns at a time so that what is gathered stays in the cache."""
    parts = [transposed @ (matrix @ part.contiguous()) for part in torch.split(dense, COLUMNS, dim=1)]
    return torch.cat(parts, dim=1)


def _ritz(matrix: Tensor, transposed: Tensor, basis: Tensor, wanted: int) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues (width,) of MᵀM on the span of `basis`, falling, their vectors (m, width), and the residual."""
    image = matrix_gram(matrix, transposed, basis)  # (m, width)
    small = (basis.T @ image).double()
    values, turn = torch.linalg.eigh((small + small.T) / 2)  # ascending
    values, turn = values.flip(0).clamp_min(0), turn.flip(1).float()
    basis, image = basis @ turn, image @ turn
    error = (image[:, :wanted] - basis[:, :wanted] * values[:wanted].float()).norm(dim=0).max()
    return values, basis, float(error / values[0].clamp_min(torch.finfo(torch.float32).tiny))


def _orthonormal(block: Tensor) -> Tensor:
    """An orthonormal basis (m, width) of the columns of `block`: Cholesky QR twice, Householder where that is unsafe.

    A filtered block of Ritz vectors is nearly orthogonal once its columns have length 1, and two products with a small
    triangle are a tenth of the work of Householder's QR.
    """
    basis = torch.nn.functional.normalize(block, dim=0, eps=1e-30)
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex((basis.T @ basis).double())
        if int(failed) or float(factor.diagonal().min()) < _SAFE:
            safe: Tensor = torch.linalg.qr(block)[0]
            return safe
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        basis = basis @ inverse.T.float()
    return basis


def _triplets(matrix: Tensor, v: Tensor, residual: float, rounds: int) -> Spectrum:
    """Singular triplets from the Ritz vectors `v` (m, rank): U = M V / S, whose columns are as orthogonal as V's."""
    image = matrix @ v  # (n, rank)
    s = image.norm(dim=0)
    kept = s > _VANISHES * s.max()
    order = s[kept].argsort(descending=True, stable=True)
    u, s, v = (image[:, kept] / s[kept])[:, order], s[kept][order], v[:, kept][:, order]
    sign = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()  # (1, rank)
    return Spectrum((u * sign).contiguous(), s, (v * sign).contiguous(), residual, rounds)
