"""Randomness as a function: the same (seed, purpose, steps) always gives the same stream, whatever ran before."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch


def stream_seed(seed: int, purpose: str, *steps: int) -> int:
    """A 63-bit seed from the run's seed, a purpose such as "negatives", and counters such as (epoch, step)."""
    key = f"{seed}/{purpose}/{'/'.join(str(step) for step in steps)}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def rng(seed: int, purpose: str, *steps: int) -> np.random.Generator:
    """NumPy generator for (seed, purpose, steps)."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, purpose, *steps)))


def torch_rng(seed: int, purpose: str, *steps: int) -> torch.Generator:
    """CPU torch generator for (seed, purpose, steps)."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *steps))


class At(NamedTuple):
    """Stage, epoch and step of a training: everything random about a step is a function of it."""

    seed: int
    stage: str  # name of the training stage
    epoch: int  # from 0
    step: int  # of the epoch, from 0

    def rng(self, purpose: str) -> np.random.Generator:
        """NumPy generator of this step for `purpose`."""
        return rng(self.seed, f"{self.stage}/{purpose}", self.epoch, self.step)

    def torch_rng(self, purpose: str) -> torch.Generator:
        """CPU torch generator of this step for `purpose`."""
        return torch_rng(self.seed, f"{self.stage}/{purpose}", self.epoch, self.step)
