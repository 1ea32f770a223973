"""LightGCN with softmax over all items, against its equations in loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dense import cross_entropy, layer_means, layers
from graphllmrec.models.registry import build
from graphllmrec.nn import losses
from graphllmrec.rng import At
from graphllmrec.train import validation
from lightgcn_steps import AT, DIM, NORM, ROWS, SEED, assert_step, biased_score, staged
from tiny import CLICKS, ITEMS, TASK, TRAIN, USERS

FAST = {"embedding_dim": DIM, "num_layers": 2, "popularity": 0.7, "user_weight": 0.3, "l2": 0.1}


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("loss", ["softmax", "slk"])
def test_a_step_of_users_counts_all_their_clicks(monkeypatch: pytest.MonkeyPatch, loss: str, cosine: bool) -> None:
    """The click-by-click softmax over all items, n clicks of a user weighing n^.3 together; SL@K weighs each more."""
    _, stage, weights = staged(
        monkeypatch,
        "lightgcn-softmax",
        **FAST | {"loss": loss} | ({"cosine": True, "temperature": 0.5} if cosine else {}),
    )
    if loss == "slk":
        stage.module.get_buffer("threshold").copy_(torch.linspace(-1, 1, USERS))
    users, degree = np.flatnonzero(CLICKS.sum(1))[ROWS], CLICKS.sum(0)
    assert stage.num_examples == (CLICKS.sum(1) > 0).sum()

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = norm = size = num_clicks = 0.0
        for user in users:
            scores = [biased_score(z_users[user], z_items[j], degree[j], cosine) for j in range(ITEMS)]
            size += float(weights["users"][user] @ weights["users"][user])
            for item in TRAIN[user]:
                weight = len(TRAIN[user]) ** (0.3 - 1)
                within = 1.0
                if loss == "slk":
                    gap = (scores[item] - (-1 + 2 * user / (USERS - 1))) / (2.25 / (0.5 if cosine else 1))
                    within = 1 / (1 + math.exp(-gap))
                total += weight * within * cross_entropy(scores, int(item))
                norm, num_clicks = norm + weight, num_clicks + 1
                size += float(weights["items"][item] @ weights["items"][item])
        return total / norm + 0.1 / 2 * size / num_clicks

    assert_step(stage, weights, expected)


def test_threshold_of_slk_is_the_kth_largest_score_and_renewed_every_twenty_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "SLK_CUTOFF", 3)
    _, stage, weights = staged(monkeypatch, "lightgcn-softmax", **FAST | {"loss": "slk"})
    threshold = stage.module.get_buffer("threshold")
    for epoch, step in ((0, 1), (19, 0)):
        stage.loss(ROWS, At(SEED, stage.name, epoch, step))
        assert not threshold.any()
    stage.loss(ROWS, At(SEED, stage.name, 20, 0))
    z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
    for user in range(USERS):
        scores = [biased_score(z_users[user], z_items[j], CLICKS[:, j].sum(), False) for j in range(ITEMS)]
        assert float(threshold[user]) == pytest.approx(sorted(scores)[-3], abs=1e-6)


@pytest.mark.parametrize("name", ["lightgcn-softmax", "lightgcn-sampled", "lightgcn-history"])
def test_spectral_init_is_the_leading_singular_vectors(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    nets: list[Any] = []
    monkeypatch.setattr(validation, "train", lambda stage, _: nets.append(stage.module))
    build(name, {"embedding_dim": DIM, "num_layers": 3, "init": "spectral"}).fit(TASK)
    u, s, vt = np.linalg.svd(NORM)
    tables = {"items": vt[:DIM].T} | ({} if name == "lightgcn-history" else {"users": u[:, :DIM]})
    for side, vectors in tables.items():
        wanted = vectors * np.sqrt(s[:DIM])
        scaled = wanted * 0.05 / math.sqrt((wanted**2).mean())
        gram = nets[0].get_parameter(side).detach().double().numpy()
        np.testing.assert_allclose(gram @ gram.T, scaled @ scaled.T, atol=2e-3)  # the trace of noise; signs are free


def test_a_step_with_contrast_adds_that_of_noisy_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise: layer 1 against z, whose layer 0 is left out, of the users and items of the batch."""
    settings = {"embedding_dim": DIM, "contrast": 0.5, "noise": 0.0}
    _, stage, weights = staged(monkeypatch, "lightgcn-softmax", **settings)
    users = np.flatnonzero(CLICKS.sum(1))[ROWS]

    def expected() -> float:
        all_users, all_items = layers(NORM, weights["users"], weights["items"], 2)
        z_users, z_items = (np.mean(side[1:], axis=0) for side in (all_users, all_items))
        values = [cross_entropy((z_items @ z_users[user]).tolist(), int(i)) for user in users for i in TRAIN[user]]
        total = float(np.mean(values))
        items = np.unique(np.concatenate([TRAIN[user] for user in users]))
        for z, layer, nodes in ((z_users, all_users[1], np.unique(users)), (z_items, all_items[1], items)):
            for row, a in enumerate(nodes):
                cosines = [z[a] @ layer[b] / np.linalg.norm(z[a]) / np.linalg.norm(layer[b]) / 0.2 for b in nodes]
                total += 0.5 * cross_entropy(cosines, row) / len(nodes)
        return total

    assert float(stage.loss(ROWS, AT).detach()) == pytest.approx(expected(), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"temperature": 0.5}, "needs cosine"),
        ({"noise": 0.1}, "needs contrast"),
        ({"contrast": 0.1, "num_layers": 0}, "num_layers of at least 1"),
        ({"edge_dropout": 0.1, "num_layers": 0}, "num_layers of at least 1"),
        ({"negatives": 4}, "negatives"),
        ({"loss": "bpr"}, "loss"),
        ({"fanouts": (2, 2)}, "fanouts"),
        ({"decay": 0.5}, "decay"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build("lightgcn-softmax", settings)
