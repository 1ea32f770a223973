"""Fourteen users and nine items: small enough to write every equation as a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, SilentLogger, Task, TextVectors

USERS, ITEMS, DIM = 14, 9, 5
RANDOM = np.random.default_rng(4)
WALKS = [RANDOM.permutation(ITEMS)[: RANDOM.integers(4, 8)] for _ in range(USERS)]  # oldest first, no repeats
QUERY = [WALKS[0][:3], WALKS[3], np.array([2]), np.array([], dtype=np.int64)]  # histories that are asked about
QUERIES = Queries.anonymous(Histories.from_lists(QUERY))
DECAY = 0.6


class Notes(SilentLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}

    def log(self, event: str, **values: Any) -> None:
        self.events[event] = values


def interactions(lists: list[np.ndarray], first: int) -> Interactions:
    user = np.repeat(np.arange(len(lists)), [len(entry) for entry in lists])
    order = np.concatenate([np.arange(first, first + len(entry)) for entry in lists])
    return Interactions(user, np.concatenate(lists).astype(np.int64), order)


TRAIN = [walk[:-2] for walk in WALKS]
SPLIT = Split(
    kind="leave-last-out",
    num_users=USERS,
    num_items=ITEMS,
    train=interactions(TRAIN, 0),
    valid=interactions([walk[-2:-1] for walk in WALKS], 10),
    test=interactions([walk[-1:] for walk in WALKS], 11),
    valid_in_history=True,
    ordered=True,
)
TEXT = TextVectors(
    torch.from_numpy(RANDOM.normal(size=(ITEMS, DIM)).astype(np.float32)) * (torch.arange(ITEMS) != 6)[:, None],
    torch.arange(ITEMS) != 6,
)
TASK = Task(SPLIT, TEXT)
CLICKS = np.zeros((USERS, ITEMS))
for _user, _items in enumerate(TRAIN):
    CLICKS[_user, _items] = 1.0


def fitted(name: str, task: Task = TASK, **settings: Any) -> Any:
    model = build(name, settings)
    model.fit(task)
    return model


def faded(weights: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """Σ over the history of decay^(steps back) · weights[i, j], entry by entry."""
    out = np.zeros((len(QUERY), weights.shape[1]))
    for query, history in enumerate(QUERY):
        for position, item in enumerate(history):
            for other in range(weights.shape[1]):
                out[query, other] += decay ** (len(history) - 1 - position) * weights[item, other]
    return out


def assert_scores(model: Any, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(model.scores(QUERIES).numpy(), expected, rtol=tolerance, atol=tolerance)
