"""Rows of vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(vectors: Tensor) -> Tensor:
    """Rows (n, dim) of length 1; zero rows stay zero."""
    return torch.nn.functional.normalize(vectors, dim=1, eps=1e-12)
