"""LightGCN queried by histories, against its equations in loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import cross_entropy, faded_mean, layer_means
from graphllmrec.data.tables import Histories
from graphllmrec.models.graph import lightgcn_history
from graphllmrec.models.registry import build
from graphllmrec.nn.dropout import dropout as drop
from graphllmrec.nn.dropout import kept_items
from graphllmrec.protocol import Queries
from graphllmrec.rng import At
from lightgcn_steps import AT, DIM, NORM, ROWS, SEED, STRANGERS, assert_step, biased_score, softmax_over, staged
from tiny import CLICKS, DECAY, ITEMS, SPLIT, TASK, TRAIN, USERS


@pytest.mark.parametrize(("negatives", "dropout", "cold_dropout"), [(0, 0.0, 0.0), (5, 0.4, 0.4)])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_history_step(
    monkeypatch: pytest.MonkeyPatch, negatives: int, dropout: float, cold_dropout: float, ordered: bool
) -> None:
    settings = {
        "embedding_dim": DIM,
        "decay": DECAY,
        "negatives": negatives,
        "dropout": dropout,
        "cold_dropout": cold_dropout,
    }
    task = replace(TASK, split=replace(SPLIT, ordered=ordered))
    _, stage, weights = staged(monkeypatch, "lightgcn-history", task, **settings, max_history=2)
    assert weights.keys() == {"items", "query_map", "bias"}
    keep_item = kept_items(ITEMS, cold_dropout, AT).numpy()
    keep_query = drop(torch.ones(len(ROWS), DIM), dropout, AT.torch_rng("dropout")).double().numpy()
    examples = examples_of(ordered)
    assert stage.num_examples == len(examples)

    def expected() -> float:
        _, items = layer_means(NORM, np.zeros((USERS, DIM)), weights["items"], 2)
        items = items * keep_item[:, None]
        total = 0.0
        for place, row in enumerate(ROWS):
            history, target = examples[row]
            query = faded_mean(history, items, DECAY if ordered else 1.0) @ weights["query_map"] * keep_query[place]
            scores = [float(query @ items[j] + weights["bias"][j]) for j in range(ITEMS)]
            total += softmax_over(scores, target, negatives) / len(ROWS)
        return total

    assert_step(stage, weights, expected)


def examples_of(ordered: bool) -> list[tuple[list[int], int]]:
    """(history, target) of every click: what came before, newest two, or everything else of the user."""
    if not ordered:
        return [([i for i in walk if i != target], int(target)) for walk in TRAIN for target in walk if len(walk) > 1]
    return [
        (walk[max(0, at - 2) : at].tolist(), int(walk[at])) for walk in TRAIN for at in range(1, len(walk))
    ]  # fmt: skip


def test_item_dropout_is_a_function_of_the_step() -> None:
    kept = kept_items(10_000, 0.3, AT)
    assert kept.unique().tolist() == [0.0, 1.0]
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.025)  # five standard errors
    assert torch.equal(kept, kept_items(10_000, 0.3, AT))
    assert not torch.equal(kept, kept_items(10_000, 0.3, At(SEED, "graph", 2, 2)))
    assert kept_items(50, 0.0, AT).min() == 1


def test_with_all_vectors_gone_only_the_bias_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, _ = staged(monkeypatch, "lightgcn-history", embedding_dim=DIM, dropout=0.0, cold_dropout=0.5)
    monkeypatch.setattr(lightgcn_history, "kept_items", lambda size, *_: torch.zeros(size))
    stage.loss(ROWS, At(SEED, stage.name, AT[2], AT[3])).backward()
    grads = {name: float(parameter.grad.abs().max()) for name, parameter in stage.module.named_parameters()}
    assert grads["items"] == grads["query_map"] == 0
    assert grads["bias"] > 0


def test_dropout_keeps_the_mean_and_is_a_function_of_the_step() -> None:
    ones = torch.ones(400, 100)
    dropped = drop(ones, 0.3, AT.torch_rng("dropout"))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(dropped, drop(ones, 0.3, AT.torch_rng("dropout")))
    assert drop(ones, 0.0, AT.torch_rng("dropout")) is ones


@pytest.mark.parametrize("ordered", [True, False])
def test_a_history_is_scored_by_its_recent_items(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    task = replace(TASK, split=replace(SPLIT, ordered=ordered))
    model, _, weights = staged(monkeypatch, "lightgcn-history", task, embedding_dim=DIM, decay=DECAY)
    _, items = layer_means(NORM, np.zeros((USERS, DIM)), weights["items"], 2)
    expected = np.zeros((len(STRANGERS) + 1, ITEMS))
    for row, history in enumerate([*STRANGERS, []]):
        query = faded_mean(history, items, DECAY if ordered else 1.0) @ weights["query_map"]
        expected[row] = items @ query + weights["bias"]
    queries = Queries(np.array([-1, 3, -1, 0]), Histories.from_lists([*STRANGERS, []]))  # the user makes no difference
    np.testing.assert_allclose(model.scores(queries).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("cosine", [True, False])
def test_scores_may_be_cosines_and_hold_the_popularity(monkeypatch: pytest.MonkeyPatch, cosine: bool) -> None:
    settings = {"embedding_dim": DIM, "decay": DECAY, "popularity": 0.7, "dropout": 0.0, "cold_dropout": 0.0}
    settings |= {"cosine": True, "temperature": 0.5} if cosine else {}
    _, stage, weights = staged(monkeypatch, "lightgcn-history", **settings, max_history=2)
    examples, degree = examples_of(True), CLICKS.sum(0)

    def expected() -> float:
        _, items = layer_means(NORM, np.zeros((USERS, DIM)), weights["items"], 2)
        total = 0.0
        for row in ROWS:
            history, target = examples[row]
            query = faded_mean(history, items, DECAY) @ weights["query_map"]
            scores = [biased_score(query, items[j], degree[j], cosine) + weights["bias"][j] for j in range(ITEMS)]
            total += cross_entropy([float(score) for score in scores], target) / len(ROWS)
        return total

    assert_step(stage, weights, expected)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"temperature": 0.5}, "needs cosine"),
        ({"edge_dropout": 0.1, "num_layers": 1}, "num_layers of at least 2"),
        ({"loss": "bpr"}, "loss"),
        ({"l2": 0.1}, "l2"),
        ({"contrast": 0.1}, "contrast"),
        ({"user_weight": 0.5}, "user_weight"),
        ({"fanouts": (2, 2)}, "fanouts"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build("lightgcn-history", settings)
