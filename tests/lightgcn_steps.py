"""LightGCN's four models: random weights, one batch, and what their golden tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import one_step
from dense import Dense, cross_entropy, normalised
from graphllmrec.nn.examples import uniform_items
from graphllmrec.protocol import Queries, Task
from graphllmrec.rng import At
from graphllmrec.train.loop import TrainingStage
from one_step import Weights
from tiny import CLICKS, ITEMS, SPLIT, TASK, USERS

DIM, SEED = 3, 5
NORM = normalised(CLICKS)
ROWS = np.array([3, 0, 11, 7, 4, 7])  # examples of one batch; one comes twice
AT = At(SEED, "graph", 2, 1)  # seed, stage, epoch, step
KNOWN = Queries.of(SPLIT.known("test"), np.arange(USERS))
STRANGERS = [[2, 5, 1], [8], [0, 1, 2, 3, 4, 5]]  # histories of unknown users
USER_MODELS = {  # what the models with user embeddings share: layer means, folding in
    "lightgcn": {"embedding_dim": DIM, "num_layers": 3, "l2": 0.3},
    "lightgcn-softmax": {"embedding_dim": DIM, "num_layers": 3, "l2": 0.3},
    "lightgcn-sampled": {"embedding_dim": DIM, "num_layers": 3, "l2": 0.3},
}


def staged(
    monkeypatch: pytest.MonkeyPatch, name: str, task: Task = TASK, **settings: Any
) -> tuple[Any, TrainingStage, Weights]:
    """A model served from random weights, its training stage, and those weights in float64."""
    return one_step.staged(monkeypatch, task, name, SEED, **settings)


def assert_step(stage: TrainingStage, weights: Weights, expected: Callable[[], float]) -> None:
    """Loss and all gradients of the batch ROWS, against `expected` (which reads `weights`) and its slopes."""
    one_step.assert_step(stage, weights, expected, AT.epoch, AT.step, ROWS, SEED)


def softmax_over(scores: list[float], target: int, negatives: int) -> float:
    """Cross-entropy among all items, or with the partition function estimated from the drawn ones."""
    if not negatives:
        return cross_entropy(scores, target)
    partition = math.exp(scores[target])
    for drawn in uniform_items(negatives, ITEMS, *AT):
        if drawn != target:
            partition += ITEMS / negatives * math.exp(scores[drawn])
    return math.log(partition) - scores[target]


def biased_score(user: Dense, item: Dense, degree: float, cosine: bool) -> float:
    """Cosine / .5, or dot product, plus .7 times the log of clicks over their mean."""
    dot = float(user @ item)
    if cosine:
        dot /= 0.5 * math.sqrt(float(user @ user)) * math.sqrt(float(item @ item))
    return dot + 0.7 * math.log(max(degree, 1) / np.maximum(CLICKS.sum(0), 1).mean())
