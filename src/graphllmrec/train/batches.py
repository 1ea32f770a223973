"""The order in which an epoch visits its examples: a function of the seed, so a run can stop and go on anywhere."""

from __future__ import annotations

import numpy as np

from graphllmrec.data.tables import Ints
from graphllmrec.rng import rng


def epoch_order(num_examples: int, seed: int, purpose: str, epoch: int) -> Ints:
    """The order (num_examples,) in which an epoch visits its examples."""
    return rng(seed, f"{purpose}/order", epoch).permutation(num_examples).astype(np.int64)
