"""Negatives that all examples of a step share."""

from __future__ import annotations

import torch
from torch import Tensor

from graphllmrec.nn.examples import uniform_items
from graphllmrec.rng import At


def draw_negatives(wanted: int, num_items: int, at: At) -> Tensor:
    """Item rows (N,): `wanted` drawn uniformly, with repeats; every item once where that many are wanted or more."""
    if wanted >= num_items:
        return torch.arange(num_items)
    return torch.from_numpy(uniform_items(wanted, num_items, *at))


def mask_targets(scores: Tensor, drawn: Tensor, target: Tensor) -> Tensor:
    """Scores (B, N) of the drawn items (N,), -inf where an item is the target (B,) of its row."""
    return scores.masked_fill(drawn[None, :] == target[:, None], -torch.inf)
