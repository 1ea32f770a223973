"""GraphSAGE against its equations in loops: training steps by finite differences, served vectors, new items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import one_step
from dense import Dense, cross_entropy
from graphllmrec.data.tables import Histories
from graphllmrec.errors import TextError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import NextClicks, uniform_items
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.rng import torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.loop import TrainingStage
from one_step import Weights
from tiny import CLICKS, DECAY, ITEMS, QUERIES, QUERY, SPLIT, TASK, TEXT, TRAIN, USERS
from world import block_world

DIMS, HIDDEN, SEED = 4, 3, 5
ROWS = np.array([3, 0, 11, 7, 4, 7])  # examples of one batch; one comes twice
AT = (SEED, "graphsage", 2, 1)  # seed, stage, epoch, step
SMALL = {
    "text_dim": DIMS,
    "hidden": HIDDEN,
    "decay": DECAY,
    "temperature": 0.8,
    "users_per_item": 20,
    "items_per_user": 20,
}
WORDS = unit(Whitening.fit(TEXT, DIMS).apply(TEXT)).double().numpy()
CLICKED = CLICKS.sum(0) > 0
POPULARITY = np.log1p(CLICKS.sum(0))
EXAMPLES = NextClicks(SPLIT.train.histories(USERS), ordered=True, max_history=50)


def staged(monkeypatch: pytest.MonkeyPatch, task: Task = TASK, **settings: Any) -> tuple[Any, TrainingStage, Weights]:
    """A model served from random weights, its training stage, and those weights in float64."""
    return one_step.staged(monkeypatch, task, "graphsage", SEED, **(SMALL | settings))


def unit_of(vector: Dense) -> Dense:
    length = math.sqrt(float(vector @ vector))
    return vector / length if length else vector


def pooled(rows: Sequence[Dense], width: int, weights: Weights, layer: str) -> Dense:
    """Mean of the rows, or the largest relu(W h + b) of each coordinate; zero for nobody."""
    if not rows:
        return np.zeros(width)
    if f"pool_{layer}" in weights:
        matrix, bias = weights[f"pool_{layer}"], weights[f"pool_{layer}_bias"]
        return np.max([np.maximum(matrix @ row + bias, 0) for row in rows], axis=0)
    return np.mean(rows, axis=0)


def encoded(item: int, weights: Weights, words: Dense, warm: np.ndarray, avoid: int = -1) -> Dense:
    """z of one item from complete neighbourhoods, without the user `avoid` among its clickers."""

    def features(row: int) -> Dense:
        return words[row] + (weights["ids"][row] if "ids" in weights and warm[row] else 0)

    users = []
    for user in np.flatnonzero(CLICKS[:, item]) if warm[item] else ():
        if user != avoid:
            own = pooled([features(other) for other in np.flatnonzero(CLICKS[user])], words.shape[1], weights, "items")
            users.append(np.maximum(weights["into_users"] @ own, 0))
    around = pooled(users, HIDDEN, weights, "users")
    return unit_of(weights["own"] @ features(item) + weights["into_items"] @ around)


def asked(vectors: Sequence[Dense], weights: Weights, decay: float) -> Dense:
    """q W_q / temperature of a history's vectors, oldest first."""
    total = sum((decay ** (len(vectors) - 1 - place) * vector for place, vector in enumerate(vectors)), np.zeros(DIMS))
    return unit_of(total) @ weights["query_map"] / SMALL["temperature"]


def assert_step(stage: TrainingStage, weights: Weights, expected: Callable[[], float]) -> None:
    """Loss and all gradients of the batch ROWS, against `expected` (which reads `weights`) and its slopes."""
    one_step.assert_step(stage, weights, expected, AT[2], AT[3], ROWS, SEED)


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({"aggregator": "mean", "negatives": 100}, TASK),
        ({"aggregator": "max", "negatives": 100}, TASK),
        ({"aggregator": "mean", "negatives": 5, "cold_dropout": 0.4, "dropout": 0.3}, TASK),
        ({"aggregator": "max", "loss": "in-batch", "cold_dropout": 0.4, "ids": False}, TASK),
        ({"aggregator": "mean", "loss": "in-batch"}, replace(TASK, text=None)),
    ],
    ids=["mean", "max", "sampled-cold", "in-batch-words", "in-batch-ids"],
)
def test_a_step(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], task: Task) -> None:
    settings = {"cold_dropout": 0.0, "dropout": 0.0} | settings
    _, stage, weights = staged(monkeypatch, task, **settings)
    words = WORDS if task.text is not None else np.zeros((ITEMS, DIMS))
    assert stage.num_examples == len(EXAMPLES)
    assert ("ids" in weights) == settings.get("ids", True)
    draw = torch.rand(ITEMS, generator=torch_rng(SEED, "graphsage/cold", 2, 1))
    warm = CLICKED & (draw >= settings["cold_dropout"]).numpy()
    draw = torch.rand(len(ROWS), DIMS, generator=torch_rng(SEED, "graphsage/dropout", 2, 1))
    keep = (draw >= settings["dropout"]).numpy() / (1 - settings["dropout"])
    in_batch = settings.get("loss") == "in-batch"
    drawn = (
        np.arange(ITEMS) if settings.get("negatives", 100) > ITEMS else uniform_items(settings["negatives"], ITEMS, *AT)
    )
    targets = EXAMPLES.target[ROWS]

    def expected() -> float:
        own = [encoded(t, weights, words, warm, int(u)) for t, u in zip(targets, EXAMPLES.user[ROWS], strict=True)]
        others = {int(item): encoded(int(item), weights, words, warm) for item in drawn}
        total = 0.0
        for place, row in enumerate(ROWS):
            user, target = int(EXAMPLES.user[row]), int(targets[place])
            history = EXAMPLES.histories(np.array([row])).items
            assert target not in history
            query = asked([encoded(item, weights, words, warm, user) for item in history], weights, DECAY) * keep[place]
            if in_batch:
                rivals = [p for p in range(len(ROWS)) if p == place or targets[p] != target]
                total += cross_entropy([float(query @ own[p]) for p in rivals], rivals.index(place))
                continue
            prior = float(weights["popularity"][0]) * POPULARITY
            positive = float(query @ own[place]) + prior[target]
            partition = math.exp(positive)
            for item in drawn:
                if item != target:
                    partition += ITEMS / len(drawn) * math.exp(float(query @ others[int(item)]) + prior[item])
            total += math.log(partition) - positive
        return total / len(ROWS)

    assert_step(stage, weights, expected)


@pytest.mark.parametrize("aggregator", ["mean", "max"])
def test_served_scores_come_from_complete_neighbourhoods(monkeypatch: pytest.MonkeyPatch, aggregator: str) -> None:
    model, _, weights = staged(monkeypatch, aggregator=aggregator, users_per_item=1, items_per_user=1)
    vectors = [encoded(item, weights, WORDS, CLICKED) for item in range(ITEMS)]
    for place, history in enumerate(QUERY):
        query = asked([vectors[item] for item in history], weights, DECAY)
        expected = [
            float(query @ z) + float(weights["popularity"][0]) * p for z, p in zip(vectors, POPULARITY, strict=True)
        ]
        np.testing.assert_allclose(model.scores(QUERIES)[place].numpy(), expected, atol=1e-6)


def test_untrained_it_is_text_knn() -> None:
    model, plain = build("graphsage", {"epochs": 0, "ids": False}), build("text-knn", {"decay": 0.7})
    for each in (model, plain):
        each.fit(TASK)
    theirs = plain.scores(QUERIES)
    scale = unit(plain.query_vectors(QUERIES)).norm(dim=1) / plain.query_vectors(QUERIES).norm(dim=1).clamp_min(1e-9)
    torch.testing.assert_close(model.scores(QUERIES) * 0.1, theirs * scale[:, None], atol=1e-6, rtol=1e-5)


def test_an_item_is_encoded_by_its_words_and_clickers_as_if_it_had_been_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = staged(monkeypatch, ids=False)
    for item in range(ITEMS):
        text = TextVectors(TEXT.vectors[[item]], TEXT.present[[item]])
        clicked_by = Histories.from_lists([[user for user in range(USERS) if item in TRAIN[user]]])
        torch.testing.assert_close(model.encode(text, clicked_by)[0], model.item_vectors()[item], atol=1e-6, rtol=0)


def test_a_few_clicks_move_a_new_item_towards_those_who_clicked() -> None:
    world = block_world()
    model = build("graphsage", {"batch_size": 64})
    model.fit(world.task(seed=7))
    nothing = TextVectors(torch.zeros(1, world.text.vectors.shape[1]), torch.zeros(1, dtype=torch.bool))
    for block in range(3):
        clickers = Histories.from_lists([np.flatnonzero(world.user_block == block)[:3]])
        new = model.encode(nothing, clickers)[0]
        scores = model.query_vectors(Queries.of(world.split.known("test"), np.arange(world.split.num_users))) @ new
        own = torch.from_numpy(world.user_block == block)
        assert scores[own].min() > scores[~own].max()


@pytest.mark.parametrize("aggregator", ["mean", "max"])
def test_cold_items_are_found(aggregator: str) -> None:
    world = block_world()
    model = build("graphsage", {"batch_size": 64, "aggregator": aggregator})
    split = world.cold_split()
    model.fit(replace(world.task(seed=7), split=split))
    found = evaluate_model(model, split, ks=(20,)).overall
    assert found["recall@20"] > 0.95


def test_without_text_it_learns_from_clicks_alone() -> None:
    world = block_world()
    model = build("graphsage", {"batch_size": 64, "learning_rate": 0.01})
    model.fit(world.task(seed=7, with_text=False))
    assert evaluate_model(model, world.split, ks=(10,)).overall["recall@10"] > 0.9
    before = model.item_vectors()
    model = model.with_items(TextVectors(torch.zeros(2, 0), torch.zeros(2, dtype=torch.bool)))
    assert torch.equal(model.item_vectors()[:-2], before)
    assert torch.equal(model.item_vectors()[-2:], before[world.cold[:2]])  # as items that nobody has clicked


def test_text_that_is_missing_or_of_other_items_is_refused() -> None:
    with pytest.raises(TextError, match="ids = false needs item text"):
        build("graphsage", {"ids": False}).fit(replace(TASK, text=None))
    with pytest.raises(TextError, match="3 text vectors for 9 items"):
        build("graphsage").fit(replace(TASK, text=TextVectors(TEXT.vectors[:3], TEXT.present[:3])))


def test_the_embeddings_are_not_stored() -> None:
    model = build("graphsage", SMALL | {"epochs": 1})
    model.fit(TASK)
    assert not any("ids" in name for name in model.state())
