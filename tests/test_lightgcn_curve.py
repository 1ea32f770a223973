"""200 epochs of `lightgcn-paper` on 200 nodes against an independent dense NumPy implementation, in float64.

The other side has its own normalised adjacency, propagation by dense matrices, BPR and L2 gradients by hand and its own
AdamW. It shares three things with ours: the first embeddings, the order of the examples and the drawn negatives, which
are functions of the seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dense import Dense
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Interactions, Ints
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import UnclickedItems
from graphllmrec.protocol import Queries, SilentLogger, Task
from graphllmrec.recipe import load_recipe
from graphllmrec.rng import rng
from graphllmrec.train import validation
from graphllmrec.train.batches import epoch_order
from graphllmrec.train.loop import TrainingStage

NODES, EPOCHS, SEED, STAGE = 100, 200, 3, "graph"  # users, and as many items


def clicked_matrix() -> Dense:
    """Ten groups of users who click four of five times within a group of items; about ten clicks a user (100, 100)."""
    random = rng(SEED, "world")
    same = np.arange(NODES)[:, None] % 10 == np.arange(NODES)[None, :] % 10
    return (random.random((NODES, NODES)) < np.where(same, 0.8, 0.02)).astype(np.float64)


CLICKS = clicked_matrix()
NOTHING = np.empty(0, dtype=np.int64)
SPLIT = Split(
    kind="ready-made",
    num_users=NODES,
    num_items=NODES,
    train=Interactions(*(rows.astype(np.int64) for rows in np.nonzero(CLICKS))),
    valid=Interactions(NOTHING, NOTHING),
    test=Interactions(NOTHING, NOTHING),
    valid_in_history=False,
    ordered=False,
)


class Losses(SilentLogger):
    """Keeps the loss of every epoch."""

    def __init__(self) -> None:
        self.curve: list[float] = []

    def log(self, event: str, **values: Any) -> None:
        if event == "epoch":
            self.curve.append(values["loss"])


def ours(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> tuple[list[float], dict[str, Dense], Any]:
    """Loss curve, first embeddings and fitted model of the real training path."""
    start: dict[str, Dense] = {}
    train = validation.train

    def noting_the_start(stage: TrainingStage, task: Task) -> float:
        assert stage.name == STAGE
        start.update({name: value.detach().double().numpy() for name, value in stage.module.named_parameters()})
        return train(stage, task)

    monkeypatch.setattr(validation, "train", noting_the_start)
    logger, model = Losses(), build("lightgcn", settings)
    model.fit(Task(SPLIT, seed=SEED, logger=logger))
    return logger.curve, start, model


def dense_curve(settings: dict[str, Any], users: Dense, items: Dense) -> tuple[list[float], Dense]:
    """Loss of every epoch, and the final layer means (200, d), users first."""
    degree = CLICKS.sum(1), CLICKS.sum(0)
    edge = CLICKS / np.sqrt(np.maximum(np.outer(*degree), 1))
    whole = np.block([[np.zeros((NODES, NODES)), edge], [edge.T, np.zeros((NODES, NODES))]])
    depth, size = settings["num_layers"], settings["batch_size"]
    mean = sum(np.linalg.matrix_power(whole, layer) for layer in range(depth + 1)) / (depth + 1)  # z = mean x
    x = np.concatenate([users, items])
    first, second, steps = np.zeros_like(x), np.zeros_like(x), 0
    unclicked = UnclickedItems(SPLIT.train.histories(NODES), NODES)
    curve = []
    for epoch in range(EPOCHS):
        order, total = epoch_order(len(SPLIT.train), SEED, STAGE, epoch), 0.0
        for step, begin in enumerate(range(0, len(order), size)):
            rows = order[begin : begin + size]
            user = SPLIT.train.user[rows]
            other = unclicked.draw(user, SEED, STAGE, epoch, step)
            loss, gradient = bpr_step(mean, x, (user, SPLIT.train.item[rows], other), settings["l2"])
            total, steps = total + loss * len(rows), steps + 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            x = x - settings["learning_rate"] * settings["weight_decay"] * x
            move = (first / (1 - 0.9**steps)) / (np.sqrt(second / (1 - 0.999**steps)) + 1e-8)
            x = x - settings["learning_rate"] * move
        curve.append(total / len(order))
    return curve, mean @ x


def bpr_step(mean: Dense, x: Dense, batch: tuple[Ints, Ints, Ints], l2: float) -> tuple[float, Dense]:
    """Mean BPR loss with L2 / 2 per example on the layer-0 embeddings, and its gradient by x (200, d)."""
    user, clicked, other = batch[0], NODES + batch[1], NODES + batch[2]
    z, by_z, by_x = mean @ x, np.zeros_like(x), np.zeros_like(x)
    margin = (z[user] * (z[clicked] - z[other])).sum(1)
    slope = -1 / (1 + np.exp(margin))[:, None]  # of -log σ(margin)
    loss = np.log1p(np.exp(-margin)).sum()
    np.add.at(by_z, user, slope * (z[clicked] - z[other]))
    np.add.at(by_z, clicked, slope * z[user])
    np.add.at(by_z, other, -slope * z[user])
    for rows in (user, clicked, other):  # an embedding that comes twice in the batch is penalised twice
        loss += l2 / 2 * (x[rows] ** 2).sum()
        np.add.at(by_x, rows, l2 * x[rows])
    return loss / len(user), (mean.T @ by_z + by_x) / len(user)


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 0.01, "l2": 0.01, "weight_decay": 0.1, "num_layers": 2}])
def test_200_epochs_of_loss_equal_dense_numpy(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    paper = load_recipe("lightgcn-paper").model.config.model_dump()
    settings = paper | {"epochs": EPOCHS, "batch_size": 512} | changes
    curve, start, model = ours(monkeypatch, settings)
    expected, z = dense_curve(settings, start["users"], start["items"])
    assert len(curve) == EPOCHS
    assert expected[-1] < 0.9 * expected[0]  # it learns: the curves are not equal for lack of change
    np.testing.assert_allclose(curve, expected, rtol=0, atol=1e-5)
    scores = model.scores(Queries.of(SPLIT.known("test"), np.arange(NODES))).double().numpy()
    np.testing.assert_allclose(scores, z[:NODES] @ z[NODES:].T, atol=2e-5)
