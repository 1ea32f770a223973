"""Dropout as a function of (seed, stage, epoch, step): of values, and of items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphllmrec.rng import At


def dropout(values: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Values (any shape) with a random share of them zero and the others larger (Srivastava et al. 2014).

    As they are where the share is 0 or nothing draws. The mask is drawn on the CPU, so it is the same on every device.
    """
    if not share or random is None:
        return values
    keep = torch.rand(values.shape, generator=random) >= share
    return values * keep.to(values.device) / (1 - share)


def dropout_mask(shape: Sequence[int], share: float, random: torch.Generator) -> Tensor:
    """What `dropout` multiplies values of this shape with: 0, or 1 / (1 - share)."""
    return (torch.rand(tuple(shape), generator=random) >= share) / (1 - share)


def kept_items(num_items: int, share: float, at: At) -> Tensor:
    """Item dropout: bool (num_items,), False for the `share` of items that lose their graph part in this step.

    So a model rehearses cold start: a dropped item looks to it as one that nobody has clicked.
    """
    return torch.rand(num_items, generator=at.torch_rng("cold")) >= share
