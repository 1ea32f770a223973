"""A tiny split and a model with scores of its own, shared by the tests of evaluation."""

from __future__ import annotations

import numpy as np
import torch

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Interactions
from graphllmrec.protocol import Queries


def table(*lists: list[int]) -> Interactions:
    """Interactions from one item list per user."""
    users = np.repeat(np.arange(len(lists)), [len(entry) for entry in lists])
    return Interactions(users.astype(np.int64), np.array([item for entry in lists for item in entry], dtype=np.int64))


def random_split(
    num_users: int = 60, num_items: int = 40, num_targets: int = 1, seed: int = 0, kind: str = "leave-last-out"
) -> Split:
    """Histories of 2 to 12 items over a long-tailed catalogue, then a validation and `num_targets` test items."""
    random = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, num_items + 1)
    train, valid, test = [], [], []
    for _ in range(num_users):
        length = int(random.integers(2, 13))
        items = random.choice(num_items, length + 1 + num_targets, replace=False, p=share / share.sum()).tolist()
        train.append(items[:length])
        valid.append(items[length : length + 1])
        test.append(items[length + 1 :])
    return Split(kind, num_users, num_items, table(*train), table(*valid), table(*test), True, True)


class Oracle:
    """Scores of a fixed matrix (num_users, num_items); noise = 0 puts the test targets first."""

    name = "oracle"

    def __init__(self, split: Split, noise: float, seed: int = 0, name: str = "oracle") -> None:
        random = np.random.default_rng(seed)
        targets = split.targets("test")
        matrix = np.zeros((split.num_users, split.num_items), dtype=np.float32)
        matrix[targets.row_of_entry, targets.items] = 1.0
        matrix += noise * random.standard_normal(matrix.shape).astype(np.float32)
        self.matrix, self.name = torch.from_numpy(matrix), name

    def scores(self, queries: Queries) -> torch.Tensor:
        return self.matrix[torch.from_numpy(queries.users)]


class Silent(Oracle):
    """Ranks the test targets last: every metric is 0."""

    def __init__(self, split: Split, name: str) -> None:
        super().__init__(split, 0.0, name=name)
        self.matrix = -self.matrix
