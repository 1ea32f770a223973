"""Dropout as a function of (seed, stage, epoch, step): of values, and of items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphllmrec.rng import At


def dropout(values: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Values (any shape) with a random share of them zero and the others larger (Srivastava et al. 2014, JMLR 15).

    share in [0, 1). Returns `values` themselves where the share is 0 or `random` is None. The mask is drawn on the CPU,
    so it is the same on every device.
    """
    if not share or random is None:
        return values
    keep = torch.rand(values.shape, generator=random) >= share
    return values * keep.to(values.device) / (1 - share)


def dropout_mask(shape: Sequence[int], share: float, random: torch.Generator) -> Tensor:
    """The factors (of this shape) that `dropout` multiplies values with: 0, or 1 / (1 - share); on the CPU."""
    return (torch.rand(tuple(shape), generator=random) >= share) / (1 - share)


def kept_items(num_items: int, share: float, at: At) -> Tensor:
    """Item dropout: bool (num_items,), False for the `share` of items that lose their graph part in this step.

    This simulates cold start in training: a dropped item is treated as an item without clicks. The mask is on the CPU.
    """
    return torch.rand(num_items, generator=at.torch_rng("cold")) >= share
