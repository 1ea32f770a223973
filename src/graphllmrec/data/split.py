"""Splits. A Split says what a model may see while fitting, what is known when a user asks, and what is to be found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from graphllmrec.data.tables import Histories, Interactions

Part = Literal["valid", "test"]


@dataclass(frozen=True)
class Split:
    """Train, validation and test interactions over the same users and items (row numbers)."""

    kind: str  # "leave-last-out", "user-ratio", "global-time", "cold-item", "ready-made"
    num_users: int
    num_items: int
    train: Interactions
    valid: Interactions
    test: Interactions
    valid_in_history: bool  # at test time: is the validation part known (history, and masked)?
    ordered: bool  # do histories have a meaningful order?
    settings: dict[str, object] = field(default_factory=dict)

    def known(self, part: Part) -> Histories:
        """What is known of each user (and masked in the ranking) when `part` is evaluated (num_users rows)."""
        if part == "valid" or not self.valid_in_history or not len(self.valid):
            return self.train.histories(self.num_users)
        return _joined(self.train, self.valid).histories(self.num_users)

    def targets(self, part: Part) -> Histories:
        """The items to be found, per user (num_users rows)."""
        return (self.valid if part == "valid" else self.test).histories(self.num_users)

    def item_degree(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Training clicks per item (num_items,): what "cold", "tail" and the strata refer to."""
        return self.train.item_degree(self.num_items)


def _joined(first: Interactions, second: Interactions) -> Interactions:
    """Both parts in one table; per user, all of `first` comes before all of `second`."""
    user = np.concatenate([first.user, second.user])
    index = np.argsort(user, kind="stable")
    both = first.order is not None and second.order is not None
    order = np.concatenate([first.order, second.order])[index] if both else None  # type: ignore[list-item]
    return Interactions(user[index], np.concatenate([first.item, second.item])[index], order)
