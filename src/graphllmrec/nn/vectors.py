"""Vectors as rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(vectors: Tensor) -> Tensor:
    """The rows (n, dim) scaled to length 1; a zero row stays zero."""
    return torch.nn.functional.normalize(vectors, dim=1, eps=1e-12)
