"""LightGCN against the paper's equations in loops: training steps by finite differences, served scores, fold-in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import one_step
from dense import Dense, cross_entropy, faded_mean, layer_means, layers, normalised, softplus
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import Interrupted
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.graph import lightgcn, lightgcn_training
from graphllmrec.models.registry import build
from graphllmrec.nn.dropout import dropout as drop
from graphllmrec.nn.dropout import kept_items
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.train import validation
from graphllmrec.train.batches import UnclickedItems, uniform_items
from graphllmrec.train.loop import TrainingStage
from one_step import Weights
from tiny import CLICKS, DECAY, ITEMS, SPLIT, TASK, TRAIN, USERS
from world import block_world

DIM, SEED = 3, 5
NORM = normalised(CLICKS)
ROWS = np.array([3, 0, 11, 7, 4, 7])  # examples of one batch; one comes twice
AT = At(SEED, "graph", 2, 1)  # seed, stage, epoch, step
PAPER = {"query": "user", "loss": "bpr", "dim": DIM, "num_layers": 3, "l2": 0.3}


def staged(monkeypatch: pytest.MonkeyPatch, task: Task = TASK, **settings: Any) -> tuple[Any, TrainingStage, Weights]:
    """A model served from random weights, its training stage, and those weights in float64."""
    return one_step.staged(monkeypatch, task, "lightgcn", SEED, **settings)


def assert_step(stage: TrainingStage, weights: Weights, expected: Callable[[], float]) -> None:
    """Loss and all gradients of the batch ROWS, against `expected` (which reads `weights`) and its slopes."""
    one_step.assert_step(stage, weights, expected, AT[2], AT[3], ROWS, SEED)


# training as published


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_a_step_as_published_is_bpr_on_layer_means_and_l2_on_layer_0(
    monkeypatch: pytest.MonkeyPatch, num_layers: int
) -> None:
    _, stage, weights = staged(monkeypatch, **PAPER | {"num_layers": num_layers})
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


def test_a_user_step_with_sampled_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PAPER | {"loss": "softmax", "negatives": 4, "l2": 0.1, "num_layers": 2}
    _, stage, weights = staged(monkeypatch, **settings)
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


def fast_score(user: Dense, item: Dense, degree: float, cosine: bool) -> float:
    """The score of lightgcn-fast: cosine / .5 plus .7 times the log of clicks over their mean."""
    dot = float(user @ item)
    if cosine:
        dot /= 0.5 * math.sqrt(float(user @ user)) * math.sqrt(float(item @ item))
    return dot + 0.7 * math.log(max(degree, 1) / np.maximum(CLICKS.sum(0), 1).mean())


FAST = PAPER | {
    "loss": "softmax",
    "num_layers": 2,
    "temperature": 0.5,
    "popularity": 0.7,
    "user_weight": 0.3,
    "l2": 0.1,
}


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("loss", ["softmax", "slk"])
def test_a_step_of_users_counts_all_their_clicks(monkeypatch: pytest.MonkeyPatch, loss: str, cosine: bool) -> None:
    """The click-by-click softmax over all items, n clicks of a user weighing n^.3 together; SL@K weighs each more."""
    _, stage, weights = staged(monkeypatch, **FAST | {"loss": loss, "cosine": cosine})
    if loss == "slk":
        stage.module.get_buffer("floor").copy_(torch.linspace(-1, 1, USERS))
    users, degree = np.flatnonzero(CLICKS.sum(1))[ROWS], CLICKS.sum(0)
    assert stage.num_examples == (CLICKS.sum(1) > 0).sum()

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = norm = size = num_clicks = 0.0
        for user in users:
            scores = [fast_score(z_users[user], z_items[j], degree[j], cosine) for j in range(ITEMS)]
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


def test_floor_of_slk_is_the_kth_largest_score_and_renewed_every_twenty_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightgcn_training, "SLK_CUTOFF", 3)
    _, stage, weights = staged(monkeypatch, **FAST | {"loss": "slk"})
    floor = stage.module.get_buffer("floor")
    for epoch, step in ((0, 1), (19, 0)):
        stage.loss(ROWS, At(SEED, stage.name, epoch, step))
        assert not floor.any()
    stage.loss(ROWS, At(SEED, stage.name, 20, 0))
    z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
    for user in range(USERS):
        scores = [fast_score(z_users[user], z_items[j], CLICKS[:, j].sum(), False) for j in range(ITEMS)]
        assert float(floor[user]) == pytest.approx(sorted(scores)[-3], abs=1e-6)


def test_a_step_with_in_batch_negatives_corrects_for_popularity(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, weights = staged(monkeypatch, **FAST | {"loss": "in-batch", "cosine": True, "l2": 0.0})
    user, item, degree = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS], CLICKS.sum(0)

    def expected() -> float:
        z_users, z_items = layer_means(NORM, weights["users"], weights["items"], 2)
        total = 0.0
        for u, i in zip(user, item, strict=True):
            own = fast_score(z_users[u], z_items[i], degree[i], True)
            partition = math.exp(own)
            for j in item:
                if j != i:
                    share = degree[j] / np.maximum(degree, 1).mean()
                    partition += math.exp(fast_score(z_users[u], z_items[j], degree[j], True)) / share
            total += math.log(partition) - own
        return total / len(ROWS)

    assert_step(stage, weights, expected)


def test_a_step_of_direct_au_sees_directions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stage, _ = staged(monkeypatch, **PAPER | {"loss": "directau", "uniformity": 0.4, "l2": 0.0})
    user, item = (torch.from_numpy(part[ROWS]) for part in (SPLIT.train.user, SPLIT.train.item))
    users, items = (torch.nn.functional.normalize(z, dim=1) for z in (model.users, model.items[:, :-1]))
    expected = float(lightgcn_training.direct_au_loss(users[user], items[item], 0.4))
    assert float(stage.loss(ROWS, At(SEED, stage.name, AT[2], AT[3])).detach()) == pytest.approx(expected, abs=1e-6)


def test_contrast_compares_noisy_layers_of_the_batch_and_is_a_function_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = PAPER | {"contrast": 0.5, "noise": 0.1, "num_layers": 2}
    _, stage, weights = staged(monkeypatch, **settings)
    first = stage.loss(ROWS, At(SEED, stage.name, 2, 1)).detach()
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)).detach(), first)
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 2)).detach(), first)
    quiet = staged(monkeypatch, **settings | {"noise": 0.0})[1].loss(ROWS, At(SEED, "graph", 2, 1)).detach()
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
    _, whole, _ = staged(monkeypatch, **PAPER)
    model, stage, _ = staged(monkeypatch, **PAPER | {"edge_dropout": 0.5})
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), whole.loss(ROWS, At(SEED, whole.name, 2, 1)))
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), stage.loss(ROWS, At(SEED, stage.name, 2, 1)))
    assert torch.equal(model.scores(KNOWN), staged(monkeypatch, **PAPER)[0].scores(KNOWN))  # served from all edges


@pytest.mark.parametrize("loss", [{}, {"loss": "softmax", "negatives": 4}, {"loss": "in-batch"}, {"loss": "directau"}])
def test_walks_over_all_neighbours_are_the_whole_graph(monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any]) -> None:
    settings = PAPER | {"num_layers": 2, "popularity": 0.5} | loss
    _, whole, _ = staged(monkeypatch, **settings)
    _, walks, _ = staged(monkeypatch, **settings | {"fanouts": (USERS, ITEMS)})
    assert float(walks.loss(ROWS, At(SEED, walks.name, 2, 1)).detach()) == pytest.approx(
        float(whole.loss(ROWS, At(SEED, whole.name, 2, 1)).detach()), abs=1e-6
    )


def test_sampled_walks_are_a_function_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, _ = staged(monkeypatch, **PAPER | {"fanouts": (2, 2, 1)})
    first = stage.loss(ROWS, At(SEED, stage.name, 2, 1))
    assert torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 1)), first)
    assert not torch.equal(stage.loss(ROWS, At(SEED, stage.name, 2, 2)), first)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fanouts": (2, 2)}, "2 fanouts for 3 layers"),
        ({"fanouts": (2, 2, 2), "loss": "softmax"}, "a loss of single clicks"),
        ({"fanouts": (2, 2, 2), "contrast": 0.1}, "neither contrast nor edge_dropout"),
    ],
)
def test_fanouts_that_cannot_be_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build("lightgcn", PAPER | settings)


def test_spectral_start_is_the_leading_singular_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[Any] = []
    monkeypatch.setattr(validation, "train", lambda stage, _: nets.append(stage.module))
    build("lightgcn", PAPER | {"start": "spectral"}).fit(TASK)
    u, s, vt = np.linalg.svd(NORM)
    for found, wanted in (
        (nets[0].users, u[:, :DIM] * np.sqrt(s[:DIM])),
        (nets[0].items, vt[:DIM].T * np.sqrt(s[:DIM])),
    ):
        scaled = wanted * 0.05 / math.sqrt((wanted**2).mean())
        gram = found.detach().double().numpy()
        np.testing.assert_allclose(gram @ gram.T, scaled @ scaled.T, atol=2e-3)  # the trace of noise; signs are free


@pytest.mark.parametrize("settings", [{"loss": "bpr"}, {"loss": "directau"}, {"contrast": 0.1}])
def test_histories_train_with_softmax_alone(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="history trains with softmax alone"):
        build("lightgcn", settings)


def test_contrast_needs_layers() -> None:
    with pytest.raises(ValueError, match="num_layers of at least 1"):
        build("lightgcn", PAPER | {"contrast": 0.1, "num_layers": 0})


def softmax_over(scores: list[float], target: int, negatives: int) -> float:
    """Cross-entropy among all items, or with the partition function estimated from the drawn ones."""
    if not negatives:
        return cross_entropy(scores, target)
    partition = math.exp(scores[target])
    for drawn in uniform_items(negatives, ITEMS, *AT):
        if drawn != target:
            partition += ITEMS / negatives * math.exp(scores[drawn])
    return math.log(partition) - scores[target]


# training that asks with a history


@pytest.mark.parametrize(("negatives", "dropout", "cold_dropout"), [(0, 0.0, 0.0), (5, 0.4, 0.4)])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_history_step(
    monkeypatch: pytest.MonkeyPatch, negatives: int, dropout: float, cold_dropout: float, ordered: bool
) -> None:
    settings = {"dim": DIM, "decay": DECAY, "negatives": negatives, "dropout": dropout, "cold_dropout": cold_dropout}
    task = replace(TASK, split=replace(SPLIT, ordered=ordered))
    _, stage, weights = staged(monkeypatch, task, **settings, max_history=2)
    assert weights.keys() == {"items", "turn", "bias"}
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
            query = faded_mean(history, items, DECAY if ordered else 1.0) @ weights["turn"] * keep_query[place]
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


def test_items_that_play_cold_contribute_nothing_to_query_or_target() -> None:
    kept = kept_items(10_000, 0.3, AT)
    assert kept.unique().tolist() == [0.0, 1.0]
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.025)  # five standard errors
    assert torch.equal(kept, kept_items(10_000, 0.3, AT))
    assert not torch.equal(kept, kept_items(10_000, 0.3, At(SEED, "graph", 2, 2)))
    assert kept_items(50, 0.0, AT).min() == 1


def test_with_all_vectors_gone_only_the_bias_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stage, _ = staged(monkeypatch, dim=DIM, dropout=0.0, cold_dropout=0.5)
    monkeypatch.setattr(lightgcn_training, "kept_items", lambda size, *_: torch.zeros(size))
    stage.loss(ROWS, At(SEED, stage.name, AT[2], AT[3])).backward()
    grads = {name: float(parameter.grad.abs().max()) for name, parameter in stage.module.named_parameters()}
    assert grads["items"] == grads["turn"] == 0
    assert grads["bias"] > 0


def test_dropout_keeps_the_mean_and_is_a_function_of_the_step() -> None:
    ones = torch.ones(400, 100)
    dropped = drop(ones, 0.3, AT.torch_rng("dropout"))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(dropped, drop(ones, 0.3, AT.torch_rng("dropout")))
    assert drop(ones, 0.0, AT.torch_rng("dropout")) is ones


# serving


@pytest.mark.parametrize("query", ["user", "history"])
def test_cosine_scores_have_a_popularity_prior_and_shares_that_add_up(
    monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    settings = {"query": query, "dim": DIM, "num_layers": 2, "cosine": True, "temperature": 0.5, "popularity": 0.7}
    model, stage, _ = staged(monkeypatch, **settings)
    strangers = Queries.anonymous(Histories.from_lists(STRANGERS))
    scores, degree = model.scores(strangers), CLICKS.sum(0)
    bias = stage.module.get_buffer("bias") if query == "user" else stage.module.get_parameter("bias")
    prior = 0.7 * np.log(np.maximum(degree, 1) / np.maximum(degree, 1).mean()) + bias.detach().numpy()
    angles = 0.5 * (scores.numpy() - prior)
    assert (np.abs(angles) <= 1 + 1e-6).all()
    weights = model.history_weights(strangers)
    for row, history in enumerate(STRANGERS):
        first = sum(map(len, STRANGERS[:row]))
        shares = sum(weights[first + place] * model.fold[item] for place, item in enumerate(history))
        np.testing.assert_allclose(model.items[:, :-1] @ shares, scores[row].numpy() - prior, atol=1e-5)


KNOWN = Queries.of(SPLIT.known("test"), np.arange(USERS))
STRANGERS = [[2, 5, 1], [8], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_a_user_is_scored_by_layer_means(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> None:
    model, _, weights = staged(monkeypatch, **PAPER | {"num_layers": num_layers})
    z_users, z_items = layer_means(NORM, weights["users"], weights["items"], num_layers)
    np.testing.assert_allclose(model.scores(KNOWN).numpy(), z_users @ z_items.T, atol=2e-6)
    nobody_clicked = Queries(np.arange(USERS), Histories.from_lists([[]] * USERS))
    assert torch.equal(model.scores(nobody_clicked), model.scores(KNOWN))  # known users ask with their embedding


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_stranger_is_a_new_node_with_a_zero_embedding(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> None:
    """Layer l + 1 of the new node is Σ_i i^(l) / sqrt(|N_u| |N_i|) over its history; layer 0 is zero."""
    model, _, weights = staged(monkeypatch, **PAPER | {"num_layers": num_layers})
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


def test_fold_in_is_what_a_silent_copy_of_the_stranger_in_the_graph_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the graph whose embedding is zero, and a stranger with that user's clicks, differ only in what the
    known one's own messages do to the items: nothing at layer 1."""
    model, stage, _ = staged(monkeypatch, **PAPER | {"num_layers": 1})
    stage.module.get_parameter("users").data[4] = 0
    model._export_vectors(stage.module, lightgcn.Bipartite.of(SPLIT.train, USERS, ITEMS))
    stranger = model.query_vectors(Queries.anonymous(Histories.from_lists([TRAIN[4]])))
    known = model.query_vectors(Queries(np.array([4]), Histories.from_lists([[]])))
    torch.testing.assert_close(stranger, known, atol=1e-6, rtol=0)


def test_without_layers_a_stranger_is_the_damped_sum_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, weights = staged(monkeypatch, **PAPER | {"num_layers": 0})
    found = model.query_vectors(Queries.anonymous(Histories.from_lists(STRANGERS)))[:, :-1].numpy()
    for row, history in enumerate(STRANGERS):
        expected = sum(weights["items"][item] for item in history) / math.sqrt(len(history))
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_history_is_scored_by_its_recent_items(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    task = replace(TASK, split=replace(SPLIT, ordered=ordered))
    model, _, weights = staged(monkeypatch, task, dim=DIM, decay=DECAY)
    _, items = layer_means(NORM, np.zeros((USERS, DIM)), weights["items"], 2)
    expected = np.zeros((len(STRANGERS) + 1, ITEMS))
    for row, history in enumerate([*STRANGERS, []]):
        query = faded_mean(history, items, DECAY if ordered else 1.0) @ weights["turn"]
        expected[row] = items @ query + weights["bias"]
    queries = Queries(np.array([-1, 3, -1, 0]), Histories.from_lists([*STRANGERS, []]))  # who asks makes no difference
    np.testing.assert_allclose(model.scores(queries).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["history", "user"])
def test_scores_are_dot_products(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    model, _, _ = staged(monkeypatch, **settings)
    assert torch.equal(model.scores(KNOWN), model.query_vectors(KNOWN) @ model.item_vectors().T)


COSINE = {"cosine": True, "popularity": 1.0}


@pytest.mark.parametrize(
    "settings",
    [{}, PAPER, PAPER | {"num_layers": 0}, COSINE, PAPER | COSINE],
    ids=["history", "user", "mf", "cos", "cos-user"],
)
def test_an_added_item_comes_last_for_everybody(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    model, _, _ = staged(monkeypatch, **settings)
    asked = Queries.anonymous(Histories.from_lists([[0], [8], list(range(ITEMS)), [3] * 2, list(range(ITEMS))[::-1]]))
    for _ in range(2):
        model.add_items(TextVectors(torch.ones(1, 5), torch.ones(1, dtype=torch.bool)))
        for queries in (asked, KNOWN):
            scores = model.scores(queries)
            assert (scores[:, -1] < scores[:, :-1].min(1).values).all()
    model.scores(Queries.anonymous(Histories.from_lists([[ITEMS, 0]])))  # clicked afterwards


def test_a_long_history_does_not_reach_below_an_added_item() -> None:
    """Two opposite camps: a stranger with many clicks in one of them dislikes the other more than any known user."""
    model = build("lightgcn", PAPER | {"num_layers": 1})
    side = torch.tensor([1.0] * 50 + [-1.0] * 50)[:, None]
    model.restore({
        "items": torch.cat([side, torch.zeros(100, 1)], dim=1), "users": side[::50] * 0.1, "fold": side,
        "decay": torch.tensor(1.0),
    })  # fmt: skip
    model.add_items(TextVectors(torch.ones(1, 5), torch.ones(1, dtype=torch.bool)))
    scores = model.scores(Queries.anonymous(Histories.from_lists([list(range(50))])))
    assert scores[0, -1] < scores[0, :-1].min()


# whole fits


BLOCKS = block_world()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"negatives": 20},
        PAPER | {"dim": 16, "epochs": 60, "l2": 0.0},
        PAPER | {"loss": "softmax", "dim": 16},
        PAPER | {"loss": "softmax", "dim": 16, "cosine": True, "popularity": 0.5, "start": "spectral"},
        PAPER | {"loss": "slk", "dim": 16, "cosine": True, "l2": 0.0},
        PAPER | {"loss": "directau", "cosine": True, "uniformity": 0.3, "learning_rate": 0.01, "patience": 40},
        PAPER | {"loss": "in-batch", "dim": 16, "cosine": True, "l2": 0.0},
        PAPER | {"dim": 16, "epochs": 60, "contrast": 0.1, "l2": 0.0},
        PAPER | {"loss": "softmax", "negatives": 20, "fanouts": (3, 3, 3), "dim": 16},
    ],
    ids=["history", "sampled", "paper", "user-softmax", "fast", "slk", "directau", "in-batch", "xsimgcl", "walks"],
)
def test_every_way_of_training_finds_the_blocks(settings: dict[str, Any]) -> None:
    model = build("lightgcn", {"batch_size": 64} | settings)
    model.fit(BLOCKS.task(seed=1))
    known = BLOCKS.split.known("test")
    scores = model.scores(Queries.of(known, np.arange(BLOCKS.split.num_users)))
    scores[torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)] = -torch.inf
    blocks = BLOCKS.item_block[scores.topk(3).indices.numpy()]
    assert (blocks == BLOCKS.user_block[:, None]).mean() > 0.85  # of the three best; by chance a tenth


def test_cold_items_stay_where_chance_puts_them_or_below() -> None:
    model = build("lightgcn", {"batch_size": 64})
    model.fit(BLOCKS.task(seed=1))
    found = evaluate_model(model, BLOCKS.cold_split()).overall["recall@10"]
    assert found < 10 / (BLOCKS.split.num_items - 6) + 0.1  # of the items that are not masked, ten are shown


def test_without_validation_it_trains_to_the_last_epoch() -> None:
    nothing = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    split = replace(SPLIT, valid=nothing)
    models = [build("lightgcn", {"epochs": epochs, "dim": 4}) for epochs in (1, 2)]
    for model in models:
        model.fit(Task(split))
    assert not torch.equal(models[0].item_vectors(), models[1].item_vectors())


def test_users_and_items_without_clicks_are_no_obstacle() -> None:
    train = Interactions(np.array([0, 0, 2, 2]), np.array([0, 1, 1, 2]), np.array([0, 1, 0, 1]))
    split = replace(SPLIT, num_users=4, num_items=6, train=train, valid=train.where(train.user > 5), test=train)
    for settings in ({}, PAPER):
        model = build("lightgcn", {"epochs": 3} | settings)
        model.fit(Task(split))
        assert torch.isfinite(model.scores(Queries.of(split.known("test"), np.arange(4)))).all()


def test_an_interrupted_fit_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> float:
        raise Interrupted("stopped in stage 'graph'")

    monkeypatch.setattr(validation, "train", stop)
    with pytest.raises(Interrupted, match="graph"):
        build("lightgcn").fit(TASK)
