"""TextGCN against its equations in loops, and how its numbers are settled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dense import clicks_of, layers, normalised
from graphllmrec.errors import TextError
from graphllmrec.models.registry import build
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.text.whiten import Whitening
from tiny import DECAY, ITEMS, QUERIES, QUERY, SPLIT, TASK, TEXT, TRAIN, USERS, Notes, fitted
from world import block_world

WORDS = unit(Whitening.fit(TEXT, 4).apply(TEXT)).double().numpy()
CLICKS = clicks_of(SPLIT.train, USERS, ITEMS)
MEANS = np.array([np.mean([WORDS[item] for item in items], axis=0) for items in TRAIN])


def layered(num_layers: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return layers(normalised(CLICKS), MEANS, WORDS, num_layers)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length else 0.0


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_the_users_of_the_graph_score_as_the_paper_says(num_layers: int) -> None:
    model = fitted("textgcn", text_dim=4, num_layers=num_layers, popularity=0.0, decay=1.0)
    users, items = (np.mean(side, axis=0) for side in layered(num_layers))
    found = model.scores(Queries.of(SPLIT.train.histories(USERS), np.arange(USERS)))
    expected = [[cosine(user, item) for item in items] for user in users]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_any_history_with_recency_and_popularity() -> None:
    model = fitted("textgcn", text_dim=4, num_layers=2, popularity=0.3, decay=DECAY)
    _, items = layered(2)
    degree = CLICKS.sum(0)
    for place, history in enumerate(QUERY):
        query = np.zeros(4)
        weights = [DECAY ** (len(history) - 1 - step) for step in range(len(history))]
        for item, weight in zip(history, weights, strict=True):
            below = (items[0][item] + items[1][item]) / np.sqrt(max(degree[item], 1))
            query += weight / sum(weights) * (WORDS[item] + np.sqrt(len(history)) * below)
        z = np.mean(items, axis=0)
        expected = [cosine(query, z[item]) * (1 + degree[item]) ** 0.3 for item in range(ITEMS)]
        np.testing.assert_allclose(model.scores(QUERIES)[place].numpy(), expected, atol=1e-6)


def test_without_layers_it_is_text_knn() -> None:
    model = fitted("textgcn", num_layers=0, popularity=0.0, decay=DECAY)
    plain = fitted("text-knn", decay=DECAY)
    torch.testing.assert_close(model.query_vectors(QUERIES), unit(plain.query_vectors(QUERIES)), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.item_vectors(), plain.item_vectors(), atol=1e-6, rtol=0)


def test_what_is_tuned_is_the_best_that_was_tried() -> None:
    from graphllmrec.evaluation.evaluation import validation_metric

    notes, world = Notes(), block_world()
    model = build("textgcn")
    model.fit(replace(world.task(seed=3), logger=notes))
    tuned = notes.events["textgcn-tuned"]
    assert tuned["tried"][f"{tuned['num_layers']} layers, clicks^{tuned['popularity']}"] == max(tuned["tried"].values())
    assert validation_metric(model, world.split) == max(notes.events["decay-tuned"]["tried"].values())
    given = build("textgcn", {"num_layers": 2, "popularity": 0.1, "decay": 0.5})
    quiet = Notes()
    given.fit(replace(world.task(), logger=quiet))
    assert quiet.events == {}
    assert given.decay == 0.5


def test_without_a_validation_part_nothing_is_tuned() -> None:
    split = SPLIT
    none = replace(split.valid, user=split.valid.user[:0], item=split.valid.item[:0], order=split.valid.order[:0])
    model = build("textgcn", {"text_dim": 4})
    model.fit(Task(replace(split, valid=none), TEXT))
    usual = fitted("textgcn", text_dim=4, num_layers=2, popularity=0.0, decay=0.7)
    assert torch.equal(model.scores(QUERIES), usual.scores(QUERIES))


def test_a_new_item_scores_as_an_unclicked_one_with_its_text() -> None:
    cold = int(np.flatnonzero(block_world().split.item_degree() == 0)[0])
    world = block_world()
    model = build("textgcn", {"num_layers": 2, "decay": 0.7})
    model.fit(world.task())
    model = model.with_items(TextVectors(world.text.vectors[[cold]], torch.ones(1, dtype=torch.bool)))
    queries = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    scores = model.scores(queries)
    torch.testing.assert_close(scores[:, -1], scores[:, cold], atol=1e-6, rtol=0)


def test_text_of_other_items_is_refused() -> None:
    with pytest.raises(TextError, match="3 text vectors for 9 items"):
        build("textgcn").fit(replace(TASK, text=TextVectors(TEXT.vectors[:3], TEXT.present[:3])))
