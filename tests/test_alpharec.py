"""AlphaRec against its equations in loops: training steps by finite differences, served vectors, new items."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import Dense, clicks_of, cross_entropy, faded_mean, layer_means, layers, normalised, slope
from graphllmrec.data.tables import Histories
from graphllmrec.errors import TextError
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import NextClicks, uniform_items
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.rng import At, rng, torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train import validation
from graphllmrec.train.loop import TrainingStage
from tiny import DECAY, ITEMS, QUERIES, QUERY, SPLIT, TASK, TEXT, TRAIN, USERS
from world import block_world

SEED, ROWS = 5, np.array([3, 0, 11, 7, 4, 7])
SMALL = {"text_dim": 4, "hidden": 6, "embedding_dim": 3, "temperature": 0.5, "decay": DECAY, "negatives": 5}
WORDS = unit(Whitening.fit(TEXT, 4, shrink=1.0).apply(TEXT)).double().numpy()
PRESENT = TEXT.present.numpy()
CLICKS = clicks_of(SPLIT.train, USERS, ITEMS)
Weights = dict[str, Dense]


def staged(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Any, TrainingStage, Weights]:
    """A model served from random weights, its training stage, and those weights in float64."""
    kept: list[TrainingStage] = []

    def instead_of_training(stage: TrainingStage, _: Task) -> float:
        random = rng(SEED, "weights")
        for tensor in stage.module.parameters():
            tensor.data = torch.from_numpy(random.normal(0, 0.6, tuple(tensor.shape)).astype(np.float32))
        kept.append(stage)
        return 0.0

    monkeypatch.setattr(validation, "train", instead_of_training)
    own = SMALL | settings
    if own.get("query") == "user":
        del own["decay"]  # has no effect there
    model = build("alpharec", own)
    model.fit(replace(TASK, seed=SEED))
    weights = {name: value.detach().double().numpy().copy() for name, value in kept[0].module.named_parameters()}
    return model, kept[0], weights


def mapped(words: Dense, weights: Weights) -> Dense:
    """f of one text vector."""
    hidden = words @ weights["first"] + weights["first_bias"]
    return np.array([max(h, 0.01 * h) for h in hidden]) @ weights["second"] + weights["second_bias"]


def starts(weights: Weights, query: str) -> tuple[Dense, Dense]:
    """Layer 0 of users and items."""
    items = np.array([mapped(WORDS[i], weights) if PRESENT[i] else np.zeros(3) for i in range(ITEMS)])
    if query == "history":
        return np.zeros((USERS, 3)), items
    return np.array([mapped(np.mean(WORDS[mine], axis=0), weights) for mine in TRAIN]), items


def vectors(weights: Weights, query: str) -> tuple[Dense, Dense]:
    return layer_means(normalised(CLICKS), *starts(weights, query), 2)


def unit_of(vector: Dense) -> Dense:
    length = math.sqrt(float(vector @ vector))
    return vector / length if length else vector


@pytest.mark.parametrize("query", ["user", "history"])
@pytest.mark.parametrize("cold_dropout", [0.0, 0.4])
def test_a_step(monkeypatch: pytest.MonkeyPatch, query: str, cold_dropout: float) -> None:
    _, stage, weights = staged(monkeypatch, query=query, cold_dropout=cold_dropout)
    draw = torch.rand(ITEMS, generator=torch_rng(SEED, "alpharec/cold", 2, 1))
    cold = (draw < cold_dropout).numpy()
    drawn = uniform_items(5, ITEMS, SEED, "alpharec", 2, 1)
    examples = NextClicks(SPLIT.train.histories(USERS), ordered=True, max_history=50)

    def expected() -> float:
        users, items = vectors(weights, query)
        start = starts(weights, query)[1]
        items = np.array([start[i] / 3 if cold[i] else items[i] for i in range(ITEMS)])
        total = 0.0
        for row in ROWS:
            if query == "user":
                target, asking = int(SPLIT.train.item[row]), users[SPLIT.train.user[row]]
            else:
                history = examples.histories(np.array([row])).items.tolist()
                target, asking = int(examples.target[row]), faded_mean(history, items, DECAY)
            rivals = [target, *(int(item) for item in drawn if item != target)]
            total += cross_entropy([float(unit_of(asking) @ unit_of(items[i])) / 0.5 for i in rivals], 0)
        return total / len(ROWS)

    loss = stage.loss(ROWS, At(SEED, stage.name, 2, 1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-6)
    for name, parameter in stage.module.named_parameters():
        assert parameter.grad is not None, name
        np.testing.assert_allclose(parameter.grad.numpy(), slope(expected, weights[name]), atol=2e-6, err_msg=name)


def test_served_to_users_and_to_those_who_have_their_history(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, weights = staged(monkeypatch, query="user")
    users, items = vectors(weights, "user")
    expected = [[float(unit_of(user) @ unit_of(item)) / 0.5 for item in items] for user in users]
    known = Queries.of(SPLIT.train.histories(USERS), np.arange(USERS))
    np.testing.assert_allclose(model.scores(known).numpy(), expected, atol=2e-6)
    lower = layers(normalised(CLICKS), *starts(weights, "user"), 1)[1]
    degree = CLICKS.sum(0)
    for place, history in enumerate(QUERY):  # a new node: f of the mean text, and what the items' layers send
        query = mapped(np.mean(WORDS[history], axis=0), weights) if len(history) else np.zeros(3)
        for item in history:
            query = query + (lower[0][item] + lower[1][item]) / math.sqrt(len(history) * max(degree[item], 1))
        own = [float(unit_of(query) @ unit_of(item)) / 0.5 for item in items]
        np.testing.assert_allclose(model.scores(QUERIES)[place].numpy(), own, atol=2e-6)


def test_served_to_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, weights = staged(monkeypatch, query="history")
    items = vectors(weights, "history")[1]
    for place, history in enumerate(QUERY):
        query = unit_of(faded_mean(history.tolist(), items, DECAY))
        expected = [float(query @ unit_of(item)) / 0.5 for item in items]
        np.testing.assert_allclose(model.scores(QUERIES)[place].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("query", ["user", "history"])
def test_a_new_item_scores_as_an_unclicked_one_with_its_text(query: str) -> None:
    world = block_world()
    model = build("alpharec", {"batch_size": 64, "epochs": 1, "min_steps": 0, "query": query})
    model.fit(world.task(seed=7))
    cold = world.cold[0]
    model = model.with_items(TextVectors(world.text.vectors[[cold]], torch.ones(1, dtype=torch.bool)))
    for history in ([12, 13], [int(cold), 3]):
        scores = model.scores(Queries.anonymous(Histories.from_lists([history])))
        assert float(scores[0, -1]) == pytest.approx(float(scores[0, cold]), abs=1e-5)


def test_text_of_other_items_is_refused() -> None:
    with pytest.raises(TextError, match="3 text vectors for 9 items"):
        build("alpharec").fit(replace(TASK, text=TextVectors(TEXT.vectors[:3], TEXT.present[:3])))
