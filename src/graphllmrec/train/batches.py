"""The order in which an epoch visits its examples: a function of the seed, so a run can stop and go on anywhere."""

from __future__ import annotations

import numpy as np

from graphllmrec.data.tables import Ints
from graphllmrec.nn.examples import NextClicks, Places, UnclickedItems, uniform_items
from graphllmrec.rng import rng

__all__ = ["NextClicks", "Places", "UnclickedItems", "epoch_order", "uniform_items"]  # examples moved to nn/examples.py


def epoch_order(num_examples: int, seed: int, purpose: str, epoch: int) -> Ints:
    """The order (num_examples,) in which an epoch visits its examples."""
    return rng(seed, f"{purpose}/order", epoch).permutation(num_examples).astype(np.int64)
