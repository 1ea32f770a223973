"""LightGCN against the paper's equations in loops: a training step by finite differences, served scores, fold-in.

Serving is that of all models with user embeddings; the steps of the others are in test_lightgcn_softmax.py,
test_lightgcn_sampled.py and test_lightgcn_history.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import layer_means, layers, softplus
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import Interrupted
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import UnclickedItems
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.recipe import load_recipe
from graphllmrec.train import validation
from lightgcn_steps import AT, DIM, KNOWN, NORM, ROWS, STRANGERS, USER_MODELS, assert_step, staged
from tiny import CLICKS, ITEMS, SPLIT, TASK, TRAIN, USERS
from world import block_world

PAPER = USER_MODELS["lightgcn"]

# a step as published


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_a_step_as_published_is_bpr_on_layer_means_and_l2_on_layer_0(
    monkeypatch: pytest.MonkeyPatch, num_layers: int
) -> None:
    _, stage, weights = staged(monkeypatch, "lightgcn", **PAPER | {"num_layers": num_layers})
    assert {name: value.shape for name, value in weights.items()} == {"users": (USERS, DIM), "items": (ITEMS, DIM)}
    assert stage.num_examples == len(SPLIT.train)
    user, item = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS]
    other = UnclickedItems(SPLIT.train.histories(USERS), ITEMS).draw(user, *AT)

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], num_layers)
        total = 0.0
        for u, i, j in zip(user, item, other, strict=True):
            assert not CLICKS[u, j]
            total += softplus(float(z_users[u] @ z_items[j] - z_users[u] @ z_items[i]))
            touched = [weights["users"][u], weights["items"][i], weights["items"][j]]
            total += 0.3 / 2 * sum(float(vector @ vector) for vector in touched)
        return total / len(ROWS)

    assert_step(stage, weights, expected)


def test_the_defaults_are_the_recipe() -> None:
    assert build("lightgcn").config == load_recipe("lightgcn-paper").model.config


# serving, of all models with user embeddings


@pytest.mark.parametrize("name", list(USER_MODELS))
@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_a_user_is_scored_by_layer_means(monkeypatch: pytest.MonkeyPatch, name: str, num_layers: int) -> None:
    model, _, weights = staged(monkeypatch, name, **USER_MODELS[name] | {"num_layers": num_layers})
    z_users, z_items = layer_means(NORM, weights["users"], weights["items"], num_layers)
    np.testing.assert_allclose(model.scores(KNOWN).numpy(), z_users @ z_items.T, atol=2e-6)
    without_history = Queries(np.arange(USERS), Histories.from_lists([[]] * USERS))
    assert torch.equal(model.scores(without_history), model.scores(KNOWN))  # their embedding is the query


@pytest.mark.parametrize("name", list(USER_MODELS))
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_an_unknown_user_is_a_new_node_with_a_zero_embedding(
    monkeypatch: pytest.MonkeyPatch, name: str, num_layers: int
) -> None:
    """Layer l + 1 of the new node is Σ_i i^(l) / sqrt(|N_u| |N_i|) over its history; layer 0 is zero."""
    model, _, weights = staged(monkeypatch, name, **USER_MODELS[name] | {"num_layers": num_layers})
    _, item_layers = layers(NORM, weights["users"], weights["items"], num_layers)
    degree = CLICKS.sum(0)
    expected = np.zeros((len(STRANGERS), ITEMS))
    for row, history in enumerate(STRANGERS):
        of_user = [np.zeros(DIM)]
        for layer in range(num_layers):
            of_user.append(sum(item_layers[layer][i] / math.sqrt(len(history) * max(degree[i], 1)) for i in history))
        expected[row] = np.mean(of_user, axis=0) @ np.mean(item_layers, axis=0).T
    found = model.scores(Queries.anonymous(Histories.from_lists(STRANGERS))).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("name", list(USER_MODELS))
def test_fold_in_is_what_a_node_with_the_same_clicks_and_no_embedding_gets(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They differ only in what the messages of the node in the graph do to the items: nothing at layer 1."""
    model, stage, _ = staged(monkeypatch, name, **USER_MODELS[name] | {"num_layers": 1})
    stage.module.get_parameter("users").data[4] = 0
    assert stage.validate is not None
    stage.validate()  # exports the vectors anew
    unknown = model.query_vectors(Queries.anonymous(Histories.from_lists([TRAIN[4]])))
    known = model.query_vectors(Queries(np.array([4]), Histories.from_lists([[]])))
    torch.testing.assert_close(unknown, known, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(USER_MODELS))
def test_without_layers_an_unknown_user_is_the_damped_sum_of_the_items(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, _, weights = staged(monkeypatch, name, **USER_MODELS[name] | {"num_layers": 0})
    found = model.query_vectors(Queries.anonymous(Histories.from_lists(STRANGERS)))[:, :-1].numpy()
    for row, history in enumerate(STRANGERS):
        expected = sum(weights["items"][item] for item in history) / math.sqrt(len(history))
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


# serving, of all four

SCALED = {"cosine": True, "temperature": 0.5, "popularity": 1.0}
MODELS = {
    "paper": ("lightgcn", PAPER),
    "mf": ("lightgcn", PAPER | {"num_layers": 0}),
    "history": ("lightgcn-history", {}),
    "history-cos": ("lightgcn-history", SCALED),
    "softmax": ("lightgcn-softmax", USER_MODELS["lightgcn-softmax"] | SCALED),
    "sampled": ("lightgcn-sampled", USER_MODELS["lightgcn-sampled"] | SCALED | {"contrast": 0.1}),
}


@pytest.mark.parametrize("case", list(MODELS))
def test_scores_are_dot_products(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, settings = MODELS[case]
    model, _, _ = staged(monkeypatch, name, **settings)
    assert torch.equal(model.scores(KNOWN), model.query_vectors(KNOWN) @ model.item_vectors().T)


@pytest.mark.parametrize("case", ["history-cos", "softmax", "sampled"])
def test_cosine_scores_are_an_angle_and_a_popularity(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """And what the items of a history add to the query adds up."""
    name, settings = MODELS[case]
    model, stage, _ = staged(monkeypatch, name, **settings)
    unknown = Queries.anonymous(Histories.from_lists(STRANGERS))
    scores, degree = model.scores(unknown).numpy(), CLICKS.sum(0)
    bias = np.log(np.maximum(degree, 1) / np.maximum(degree, 1).mean())
    if name == "lightgcn-history":
        bias = bias + stage.module.get_parameter("bias").detach().numpy()
    assert (np.abs(0.5 * (scores - bias)) <= 1 + 1e-6).all()
    for row, history in enumerate(STRANGERS):
        shares = [1 / math.sqrt(len(history))] * len(history)
        if name == "lightgcn-history":
            shares = [model.decay ** (len(history) - 1 - place) for place in range(len(history))]
            shares = [share / sum(shares) for share in shares]
        query = sum(share * model.fold_in[item].numpy() for share, item in zip(shares, history, strict=True))
        items = model.items[:, :-1].numpy()
        np.testing.assert_allclose(items @ query / (0.5 * np.linalg.norm(query)), scores[row] - bias, atol=1e-5)


@pytest.mark.parametrize("case", list(MODELS))
def test_an_added_item_comes_last_in_every_ranking(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, settings = MODELS[case]
    model, _, _ = staged(monkeypatch, name, **settings)
    histories = [[0], [8], list(range(ITEMS)), [3] * 2, list(range(ITEMS))[::-1]]
    unknown = Queries.anonymous(Histories.from_lists(histories))
    for _ in range(2):
        model = model.with_items(TextVectors(torch.ones(1, 5), torch.ones(1, dtype=torch.bool)))
        for queries in (unknown, KNOWN):
            scores = model.scores(queries)
            assert (scores[:, -1] < scores[:, :-1].min(1).values).all()
    model.scores(Queries.anonymous(Histories.from_lists([[ITEMS, 0]])))  # clicked afterwards


@pytest.mark.parametrize("name", list(USER_MODELS))
def test_a_long_history_does_not_reach_below_an_added_item(name: str) -> None:
    """Two opposite camps: many clicks in one of them score the other lower than any known user does."""
    model = build(name, USER_MODELS[name] | {"num_layers": 1})
    side = torch.tensor([1.0] * 50 + [-1.0] * 50)[:, None]
    model.restore({"items": torch.cat([side, torch.zeros(100, 1)], dim=1), "users": side[::50] * 0.1, "fold_in": side})
    model = model.with_items(TextVectors(torch.ones(1, 5), torch.ones(1, dtype=torch.bool)))
    scores = model.scores(Queries.anonymous(Histories.from_lists([list(range(50))])))
    assert scores[0, -1] < scores[0, :-1].min()


# whole fits


BLOCKS = block_world()
SMALL: dict[str, Any] = {"batch_size": 64, "embedding_dim": 16}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lightgcn-history", {"embedding_dim": 64}),
        ("lightgcn-history", {"embedding_dim": 64, "negatives": 20}),
        ("lightgcn", {"epochs": 60, "l2": 0.0, "learning_rate": 3e-3, "validate_every": 1}),
        ("lightgcn-softmax", {"num_layers": 3, "l2": 0.3}),
        ("lightgcn-softmax", {"num_layers": 3, "l2": 0.3, "cosine": True, "popularity": 0.5, "init": "spectral"}),
        ("lightgcn-softmax", {"num_layers": 3, "loss": "slk", "cosine": True}),
        (
            "lightgcn-sampled",
            {"num_layers": 3, "embedding_dim": 3, "l2": 0.3, "loss": "directau", "cosine": True, "uniformity": 0.3}
            | {"learning_rate": 0.01, "patience": 40},
        ),
        ("lightgcn-sampled", {"num_layers": 3, "loss": "in-batch", "cosine": True}),
        ("lightgcn-sampled", {"num_layers": 3, "epochs": 60, "contrast": 0.1}),
        ("lightgcn-sampled", {"num_layers": 3, "loss": "softmax", "l2": 0.3, "negatives": 20, "fanouts": (3, 3, 3)}),
    ],
    ids=["history", "drawn", "paper", "softmax", "fast", "slk", "directau", "in-batch", "xsimgcl", "walks"],
)
def test_every_way_of_training_finds_the_blocks(name: str, settings: dict[str, Any]) -> None:
    model = build(name, SMALL | settings)
    model.fit(BLOCKS.task(seed=1))
    known = BLOCKS.split.known("test")
    scores = model.scores(Queries.of(known, np.arange(BLOCKS.split.num_users)))
    scores[torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)] = -torch.inf
    blocks = BLOCKS.item_block[scores.topk(3).indices.numpy()]
    assert (blocks == BLOCKS.user_block[:, None]).mean() > 0.85  # of the three best; by chance a tenth


def test_cold_items_stay_where_chance_puts_them_or_below() -> None:
    model = build("lightgcn-history", {"batch_size": 64})
    model.fit(BLOCKS.task(seed=1))
    found = evaluate_model(model, BLOCKS.cold_split()).overall["recall@10"]
    assert found < 10 / (BLOCKS.split.num_items - 6) + 0.1  # of the items that are not masked, ten are shown


ALL = ["lightgcn", "lightgcn-history", "lightgcn-softmax", "lightgcn-sampled"]


@pytest.mark.parametrize("name", ALL)
def test_without_validation_it_trains_to_the_last_epoch(name: str) -> None:
    nothing = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    split = replace(SPLIT, valid=nothing)
    models = [build(name, {"epochs": epochs, "embedding_dim": 4}) for epochs in (1, 2)]
    for model in models:
        model.fit(Task(split))
    assert not torch.equal(models[0].item_vectors(), models[1].item_vectors())


@pytest.mark.parametrize("name", ALL)
def test_users_and_items_without_clicks_are_no_obstacle(name: str) -> None:
    train = Interactions(np.array([0, 0, 2, 2]), np.array([0, 1, 1, 2]), np.array([0, 1, 0, 1]))
    split = replace(SPLIT, num_users=4, num_items=6, train=train, valid=train.where(train.user > 5), test=train)
    model = build(name, {"epochs": 3, "embedding_dim": 3})
    model.fit(Task(split))
    assert torch.isfinite(model.scores(Queries.of(split.known("test"), np.arange(4)))).all()


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_fit_is_told_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def stop(*_: Any) -> float:
        raise Interrupted("stopped in stage 'graph'")

    monkeypatch.setattr(validation, "train", stop)
    with pytest.raises(Interrupted, match="graph"):
        build(name).fit(TASK)
