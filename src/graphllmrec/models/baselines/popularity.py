"""Popularity: all users get the most clicked items. The baseline that any personalised model has to beat.

    score(j) = Σ_{clicks c on j} w(c) 2^(-age(c) / half_life)

w(c) is 1, or the weight of the click relative to the mean; age(c) is the time from click c to the newest training
click; without a half-life 2^(…) is 1
(Ji et al. 2020, "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR, arXiv:2005.13829, show that the
time-aware form is the fair baseline). New items score 0, like catalogue items without clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Interactions
from graphllmrec.errors import RecipeError
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Config

_DAY = 86_400
_FIRST_CLOCK = 10_000_000  # an order value below this (April 1970 in unix seconds) is a position, not a clock


class PopularityConfig(Config):
    """Settings of popularity."""

    half_life_days: float | None = Field(
        None, gt=0, le=36_500, description="days after which a click counts half; needs timestamps; none: all count 1"
    )


class Popularity:
    """Popularity of items in the training clicks."""

    name: ClassVar[str] = "popularity"
    config_class: ClassVar[type[Config]] = PopularityConfig
    abilities = Abilities(uses_weights=True)

    def __init__(self, config: PopularityConfig) -> None:
        self.config = config
        self.counts = torch.empty(0)  # (num_items,)

    def fit(self, task: Task) -> None:
        """Count the training clicks. Raises RecipeError for a half-life on data without timestamps."""
        train = task.split.train
        relative = train.relative_weight()
        weights = np.ones(len(train)) if relative is None else relative.astype(np.float64)
        if self.config.half_life_days is not None:
            weights = weights * _age_weights(train, self.config.half_life_days)
        counts = np.bincount(train.item, weights=weights, minlength=task.split.num_items)
        self.counts = torch.from_numpy(counts.astype(np.float32))

    def scores(self, queries: Queries) -> Tensor:
        """The same scores for all queries (B, num_items)."""
        return self.counts.repeat(len(queries), 1)

    def state(self) -> dict[str, Tensor]:
        """The counts."""
        return {"counts": self.counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.counts = state["counts"]

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, each with a count of 0."""
        more = copy(self)
        more.counts = torch.cat([self.counts, torch.zeros(len(text))])
        return more


def _age_weights(train: Interactions, half_life_days: float) -> NDArray[np.float64]:
    """Weight of every click (n,)."""
    if train.order is None or not len(train) or train.order.max() < _FIRST_CLOCK:
        found = "no order" if train.order is None else "positions only"
        raise RecipeError([f"model.half_life_days: needs timestamps, this data has {found}; leave the setting out"])
    age_days = (train.order.max() - train.order) / _DAY
    weights: NDArray[np.float64] = np.exp2(-age_days / half_life_days)
    return weights
