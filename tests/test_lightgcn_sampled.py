"""LightGCN on single clicks, against its equations in loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dense import cross_entropy, layer_means, layers, softplus
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import UnclickedItems
from graphllmrec.nn.losses import direct_au_loss
from graphllmrec.rng import At
from lightgcn_steps import AT, DIM, KNOWN, NORM, ROWS, SEED, assert_step, biased_score, softmax_over, staged
from tiny import CLICKS, ITEMS, SPLIT, USERS

PAPER = {"embedding_dim": DIM, "num_layers": 3, "l2": 0.3}  # with "bpr", the default, and nothing else


def test_a_user_step_with_sampled_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PAPER | {"loss": "softmax", "negatives": 4, "l2": 0.1, "num_layers": 2}
    _, stage, weights = staged(monkeypatch, "lightgcn-sampled", **settings)
    user, item = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS]

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = 0.0
        for u, i in zip(user, item, strict=True):
            scores = [float(z_users[u] @ z_items[j]) for j in range(ITEMS)]
            total += softmax_over(scores, int(i), 4)
            touched = [weights["users"][u], weights["items"][i]]
            total += 0.1 / 2 * sum(float(vector @ vector) for vector in touched)
        return total / len(ROWS)

    assert_step(stage, weights, expected)


def test_a_step_with_in_batch_negatives_corrects_for_popularity(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, weights = staged(
        monkeypatch,
        "lightgcn-sampled",
        loss="in-batch",
        cosine=True,
        temperature=0.5,
        popularity=0.7,
        embedding_dim=DIM,
    )
    user, item, degree = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS], CLICKS.sum(0)

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = 0.0
        for u, i in zip(user, item, strict=True):
            own = biased_score(z_users[u], z_items[i], degree[i], True)
            partition = math.exp(own)
            for j in item:
                if j != i:
                    share = degree[j] / np.maximum(degree, 1).mean()
                    partition += math.exp(biased_score(z_users[u], z_items[j], degree[j], True)) / share
            total += math.log(partition) - own
        return total / len(ROWS)

    assert_step(stage, weights, expected)


def test_a_step_of_direct_au_sees_directions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stage, _ = staged(
        monkeypatch, "lightgcn-sampled", **PAPER | {"loss": "directau", "uniformity": 0.4, "l2": 0.0}
    )
    user, item = (torch.from_numpy(part[ROWS]) for part in (SPLIT.train.user, SPLIT.train.item))
    users, items = (torch.nn.functional.normalize(z, dim=1) for z in (model.users, model.items[:, :-1]))
    expected = float(direct_au_loss(users[user], items[item], 0.4))
    assert float(stage.loss(ROWS, At(SEED, stage.name, AT[2], AT[3])).detach()) == pytest.approx(expected, abs=1e-6)


def test_contrast_compares_noisy_layers_of_the_batch_and_is_a_function_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = PAPER | {"contrast": 0.5, "noise": 0.1, "num_layers": 2}
    _, stage, weights = staged(monkeypatch, "lightgcn-sampled", **settings)
    first = stage.loss(ROWS, At(SEED, stage.name, 2, 1)).detach()
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)).detach(), first)
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 2)).detach(), first)
    quiet = (
        staged(monkeypatch, "lightgcn-sampled", **settings | {"noise": 0.0})[1]
        .loss(ROWS, At(SEED, "graph", 2, 1))
        .detach()
    )
    all_users, all_items = layers(NORM, weights["users"], weights["items"], 2)
    user, item = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS]
    other = UnclickedItems(SPLIT.train.histories(USERS), ITEMS).draw(user, *AT)
    z_users, z_items = (np.mean(side[1:], axis=0) for side in (all_users, all_items))  # layer 0 is left out
    expected = 0.0
    for u, i, j in zip(user, item, other, strict=True):
        expected += softplus(float(z_users[u] @ z_items[j] - z_users[u] @ z_items[i])) / len(ROWS)
        touched = [weights["users"][u], weights["items"][i], weights["items"][j]]
        expected += 0.3 / 2 * sum(float(vector @ vector) for vector in touched) / len(ROWS)
    for z, layer, nodes in ((z_users, all_users[1], np.unique(user)), (z_items, all_items[1], np.unique(item))):
        for row, a in enumerate(nodes):
            cosines = [z[a] @ layer[b] / np.linalg.norm(z[a]) / np.linalg.norm(layer[b]) / 0.2 for b in nodes]
            expected += 0.5 * cross_entropy(cosines, row) / len(nodes)
    assert float(quiet) == pytest.approx(expected, abs=1e-5)


def test_dropped_edges_change_the_step_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _ = staged(monkeypatch, "lightgcn-sampled", **PAPER)
    model, stage, _ = staged(monkeypatch, "lightgcn-sampled", **PAPER | {"edge_dropout": 0.5})
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), whole.loss(ROWS, At(SEED, whole.name, 2, 1)))
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), stage.loss(ROWS, At(SEED, stage.name, 2, 1)))
    assert torch.equal(
        model.scores(KNOWN), staged(monkeypatch, "lightgcn-sampled", **PAPER)[0].scores(KNOWN)
    )  # served from all edges


@pytest.mark.parametrize("loss", [{}, {"loss": "softmax", "negatives": 4}, {"loss": "in-batch"}, {"loss": "directau"}])
def test_walks_over_all_neighbours_are_the_whole_graph(monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any]) -> None:
    settings = PAPER | {"num_layers": 2, "popularity": 0.5} | loss
    _, whole, _ = staged(monkeypatch, "lightgcn-sampled", **settings)
    _, walks, _ = staged(monkeypatch, "lightgcn-sampled", **settings | {"fanouts": (USERS, ITEMS)})
    assert float(walks.loss(ROWS, At(SEED, walks.name, 2, 1)).detach()) == pytest.approx(
        float(whole.loss(ROWS, At(SEED, whole.name, 2, 1)).detach()), abs=1e-6
    )


def test_sampled_walks_are_a_function_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, _ = staged(monkeypatch, "lightgcn-sampled", **PAPER | {"fanouts": (2, 2, 1)})
    first = stage.loss(ROWS, At(SEED, stage.name, 2, 1))
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), first)
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 2)), first)


@pytest.mark.parametrize("cosine", [True, False])
def test_a_step_of_pairs_with_scaled_scores(monkeypatch: pytest.MonkeyPatch, cosine: bool) -> None:
    settings = {"embedding_dim": DIM, "popularity": 0.7} | ({"cosine": True, "temperature": 0.5} if cosine else {})
    _, stage, weights = staged(monkeypatch, "lightgcn-sampled", **settings)
    user, item, degree = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS], CLICKS.sum(0)
    other = UnclickedItems(SPLIT.train.histories(USERS), ITEMS).draw(user, *AT)

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = 0.0
        for u, i, j in zip(user, item, other, strict=True):
            clicked, unclicked = (biased_score(z_users[u], z_items[k], degree[k], cosine) for k in (i, j))
            total += softplus(unclicked - clicked) / len(ROWS)
        return total

    assert_step(stage, weights, expected)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss": "softmax"}, 'over all items: model "lightgcn-softmax"'),
        ({"negatives": 4}, 'negatives belong to loss = "softmax"'),
        ({"loss": "in-batch", "negatives": 4}, 'negatives belong to loss = "softmax"'),
        ({"uniformity": 0.5}, 'loss = "directau"'),
        ({"temperature": 0.5}, "needs cosine"),
        ({"noise": 0.1}, "needs contrast"),
        ({"contrast": 0.1, "num_layers": 0}, "num_layers of at least 1"),
        ({"edge_dropout": 0.1, "num_layers": 0}, "num_layers of at least 1"),
        ({"fanouts": (2, 2)}, "2 fanouts for 3 layers"),
        ({"fanouts": (2, 2, 2), "contrast": 0.1}, "neither contrast nor edge_dropout"),
        ({"fanouts": (2, 2, 2), "edge_dropout": 0.1}, "neither contrast nor edge_dropout"),
        ({"user_weight": 0.5}, "user_weight"),
        ({"loss": "slk"}, "loss"),
    ],
)
def test_settings_that_cannot_be_or_would_do_nothing_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build("lightgcn-sampled", PAPER | settings)
