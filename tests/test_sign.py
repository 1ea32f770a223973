"""SIGN against its equations in loops: neighbourhoods with one clicker left out, steps, served scores, new items."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dense import Dense, clicks_of, faded_mean
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import TextError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.graph.sign import Neighbourhood
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import uniform_items
from graphllmrec.nn.gate import head_degree
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.rng import At, rng, torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train import validation
from graphllmrec.train.batches import epoch_order
from graphllmrec.train.loop import TrainingStage, train
from one_step import Weights, assert_step, staged
from tiny import DECAY, QUERIES, QUERY, TEXT, USERS, interactions
from tiny import SPLIT as WHOLE
from tiny import TRAIN as WALKS
from world import block_world

DIMS, SEED, ITEMS = 3, 5, 10  # one item more than in tiny.py: nobody has clicked it
ONLY_ONE, NOBODY, WORDLESS = 7, 9, 6
TRAIN = [[3], *(walk.tolist() for walk in WALKS[1:])]  # the first user clicked once: nothing to learn from
TRAIN[9] = [3, 1]  # so that one user alone clicked item 7
ACTIVE = [user for user in range(USERS) if len(TRAIN[user]) > 1]
SPLIT = replace(WHOLE, num_items=ITEMS, train=interactions([np.array(items) for items in TRAIN], 0))
VECTORS = torch.cat([TEXT.vectors, torch.ones(1, TEXT.vectors.shape[1])])
TASK = Task(SPLIT, TextVectors(VECTORS, torch.arange(ITEMS) != WORDLESS))
CLICKS = clicks_of(SPLIT.train, USERS, ITEMS)
SMALL = {
    "text_dim": DIMS,
    "hidden": 4,
    "temperature": 0.8,
    "dropout": 0.0,
    "cold_dropout": 0.0,
    "decay": DECAY,
    "min_steps": 0,
}
ROWS = np.array([3, 0, 12, 8])  # one batch: users with two clicks and more, in the order of ACTIVE


def features(task: Task) -> Dense:
    """x_i."""
    if task.text is None:
        return np.zeros((ITEMS, DIMS))
    return unit(Whitening.fit(task.text, DIMS).apply(task.text)).double().numpy()


def unit_row(row: Dense) -> Dense:
    length = math.sqrt(float(row @ row))
    return row / length if length else row


def around(item: int, without: int | None, words: Dense) -> tuple[Dense, int]:
    """n_i and d_i."""
    found = np.zeros(DIMS)
    clickers = [user for user in range(USERS) if CLICKS[user, item] and user != without]
    for user in clickers:
        mean = sum(words[other] for other in TRAIN[user]) / len(TRAIN[user])
        found += mean / len(clickers)
    return found, len(clickers)


def encoded(item: int, without: int | None, warm: bool, words: Dense, w: Weights) -> tuple[Dense, int]:
    """z_i and d_i."""
    near, degree = around(item, without, words) if warm else (np.zeros(DIMS), 0)
    own = words[item] + w["ids"][item] if "ids" in w and degree else words[item]
    inner = [x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in w["inner"] @ near]
    return unit_row(w["own"] @ own + w["near"] @ near + w["outer"] @ inner), degree


def terms(degree: int, w: Weights) -> tuple[float, float, float]:
    """α, β + p log(1 + d) and ω of an item with `degree` clicks."""
    head = head_degree(CLICKS.sum(0).astype(np.int64))
    is_cold = 1 / (1 + math.exp(-3 * (math.log(1 + 3.0) - math.log(1 + degree))))
    is_head = 1 / (1 + math.exp(-3 * (math.log(1 + degree) - math.log(1 + head))))
    mix = [is_cold * (1 - is_head), is_cold * is_head, (1 - is_cold) * (1 - is_head), (1 - is_cold) * is_head]
    scale = sum(share * math.exp(w["log_scale"][context]) for context, share in enumerate(mix))
    prior = sum(share * w["context_bias"][context] for context, share in enumerate(mix))
    following = sum(share * w["following"][context] for context, share in enumerate(mix))
    return scale, prior + float(w["popularity"]) * math.log(1 + degree), following


def follows(without: int | None) -> Dense:
    """S without the steps of one user."""
    counts = np.zeros((ITEMS, ITEMS))
    for user, items in enumerate(TRAIN):
        for p in range(len(items)):
            for q in range(p + 1, min(p + 3, len(items) - 1) + 1):
                counts[items[p], items[q]] += (user != without) / (q - p)
    out = np.zeros_like(counts)
    for i in range(ITEMS):
        for j in range(ITEMS):
            if counts[i, j]:
                out[i, j] = counts[i, j] / math.sqrt(counts[i].sum() * counts[:, j].sum())
    return out


def after(history: list[int], item: int, steps: Dense) -> float:
    """log(1 + s / .01)."""
    return math.log(1 + sum(DECAY**back * steps[other, item] for back, other in enumerate(history[::-1])) / 0.01)


def query(summed: Dense, w: Weights) -> Dense:
    return unit_row(summed) @ w["query_map"] / 0.8


STEPS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"negatives": 4}, {}),
    ({"negatives": 6, "cold_dropout": 0.4, "dropout": 0.3}, {}),
    ({"max_history": 3, "transitions": False}, {}),
    ({"leave_one_out": False}, {}),
    ({"ids": False, "cold_dropout": 0.4}, {}),
    ({"negatives": 4, "cold_dropout": 0.4}, {"text": None}),
    ({"dropout": 0.3}, {"split": replace(SPLIT, ordered=False)}),
]
NAMES = ["all", "sampled", "dropout-cold", "short", "own-clicks-in", "no-ids", "no-text", "no-order"]


def stretches(lists: list[list[int]], limit: int, at: tuple[int, int]) -> list[list[int]]:
    """Of longer histories a stretch of `limit` clicks."""
    first = rng(SEED, "sign/stretch", *at).integers(0, [max(len(items) - limit, 0) + 1 for items in lists])
    return [items[begin : begin + limit] for items, begin in zip(lists, first, strict=True)]


def expected_loss(settings: dict[str, Any], task: Task, w: Weights, rows: np.ndarray, at: tuple[int, int]) -> float:
    """The loss of users `rows` among those with two clicks, at (epoch, step)."""
    ordered, words, losses = task.split.ordered, features(task), []
    negatives = settings.get("negatives", 1024)
    drawn = range(ITEMS) if negatives >= ITEMS else uniform_items(negatives, ITEMS, SEED, "sign", *at).tolist()
    warm = (torch.rand(ITEMS, generator=torch_rng(SEED, "sign/cold", *at)) >= settings.get("cold_dropout", 0.0)).numpy()
    share, masks = settings.get("dropout", 0.0), torch_rng(SEED, "sign/dropout", *at)
    others = {item: encoded(item, None, warm[item], words, w) for item in drawn}
    whole = follows(None)
    lists = stretches([TRAIN[ACTIVE[row]] for row in rows], settings.get("max_history", 50) + 1, at)
    num_targets = sum(len(items) - ordered for items in lists)
    keep = iter((torch.rand(num_targets, DIMS, generator=masks) >= share).numpy())
    for row, items in zip(rows, lists, strict=True):
        user = ACTIVE[row] if settings.get("leave_one_out", True) else None
        seen = {item: encoded(item, user, warm[item], words, w) for item in items}
        steps = follows(user) if user is not None else whole
        for place in range(int(ordered), len(items)):
            target = items[place]
            history = items[:place] if ordered else items[:place] + items[place + 1 :]
            decay = DECAY if ordered else 1.0
            summed = sum(decay**back * seen[item][0] for back, item in enumerate(history[::-1]))
            asked = query(summed * next(keep) / (1 - share), w)

            def score(of: tuple[Dense, int], item: int, following: Dense, asked: Dense, history: list[int]) -> float:
                scale, prior, weight = terms(of[1], w)
                if not ordered or not settings.get("transitions", True):
                    weight = 0.0
                return scale * float(asked @ of[0]) + prior + weight * after(history, item, following)

            positive = score(seen[target], target, steps, asked, history)
            partition = math.exp(positive)
            for item in drawn:
                if item != target:
                    partition += ITEMS / len(drawn) * math.exp(score(others[item], item, whole, asked, history))
            losses.append(math.log(partition) - positive)
    return float(np.mean(losses))


@pytest.mark.parametrize(("settings", "other"), STEPS, ids=NAMES)
def test_a_step(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], other: dict[str, Any]) -> None:
    task = replace(TASK, **other)
    _, stage, weights = staged(monkeypatch, task, "sign", SEED, **SMALL | settings)
    assert [ACTIVE[row] for row in ROWS] == [4, 1, 13, 9]
    if not task.split.ordered or not settings.get("transitions", True):
        stage.module.get_parameter("following").requires_grad_(False)  # ω has nothing to weigh, and no gradient
    assert_step(stage, weights, lambda: expected_loss(settings, task, weights, ROWS, (2, 1)), 2, 1, ROWS, SEED)


def test_steps_are_functions_of_epoch_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL | {"negatives": 4, "cold_dropout": 0.4, "dropout": 0.3}
    _, stage, _ = staged(monkeypatch, TASK, "sign", SEED, **settings)
    found = [stage.loss(ROWS, At(SEED, stage.name, *at)).item() for at in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_playing_cold_without_words_leaves_all_gradients_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL | {"cold_dropout": 0.999}
    _, stage, _ = staged(monkeypatch, TASK, "sign", SEED, **settings)
    assert WORDLESS in TRAIN[5][:-1]  # so that a history of nothing is asked with
    stage.loss(np.array([ACTIVE.index(5)]), At(SEED, stage.name, 0, 0)).backward()
    for name, parameter in stage.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_one_epoch_of_one_batch_is_one_step_of_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Dense] = {}
    rate = 0.02 * 1 / 4  # of a warm-up of four steps

    def watched(stage: TrainingStage, task: Task) -> float:
        stage.loss(epoch_order(stage.num_examples, SEED, "sign", 0), At(SEED, stage.name, 0, 0)).backward()
        for name, parameter in stage.module.named_parameters():
            assert parameter.grad is not None
            slope = parameter.grad.double().numpy()
            before = parameter.detach().double().numpy()
            kept[name] = before * (1 - rate * 0.1) - rate * slope / (np.abs(slope) + 1e-8)
        stage.module.zero_grad(set_to_none=True)
        return train(stage, task)

    monkeypatch.setattr(validation, "train", watched)
    nothing = Interactions(*(np.empty(0, dtype=np.int64) for _ in range(3)))  # not validated: the last weights stay
    learning = {"epochs": 1, "batch_size": USERS, "learning_rate": 0.02, "warmup": 4, "weight_decay": 0.1}
    model = build("sign", SMALL | {"negatives": 4, "cold_dropout": 0.2, "dropout": 0.3} | learning)
    model.fit(replace(TASK, split=replace(SPLIT, valid=nothing), seed=SEED))
    found = dict(model.net.named_parameters())
    assert set(found) == set(kept)
    for name, wanted in kept.items():
        np.testing.assert_allclose(found[name].detach().numpy(), wanted, rtol=0, atol=1e-6, err_msg=name)


# what is left out


def test_a_neighbourhood_without_one_of_its_clickers() -> None:
    words = features(TASK)
    near = Neighbourhood.of(SPLIT, torch.from_numpy(words).float())
    everything = torch.arange(ITEMS)
    whole = [around(item, None, words) for item in range(ITEMS)]
    np.testing.assert_allclose(near.means(everything).numpy(), [mean for mean, _ in whole], rtol=0, atol=1e-6)
    assert near.degree.tolist() == [degree for _, degree in whole]
    users, items = np.nonzero(CLICKS)
    expected = [around(item, user, words)[0] for user, item in zip(users, items, strict=True)]
    found = near.means(torch.from_numpy(items), torch.from_numpy(users))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert not found[torch.from_numpy(items == ONLY_ONE)].any()
    assert not near.means(everything)[NOBODY].any()


def test_a_pair_that_is_there_twice_is_one_click() -> None:
    words = torch.from_numpy(features(TASK)).float()
    twice = [np.array([*items, items[0]]) for items in TRAIN]
    once, again = (Neighbourhood.of(split, words) for split in (SPLIT, replace(SPLIT, train=interactions(twice, 0))))
    assert torch.equal(again.sums, once.sums)
    assert torch.equal(again.degree, once.degree)
    models = [build("sign", SMALL | {"epochs": 0}) for _ in range(2)]
    models[0].fit(TASK)
    models[1].fit(replace(TASK, split=replace(SPLIT, train=interactions(twice, 0))))
    assert torch.equal(models[1].degree, models[0].degree)
    assert models[1].head_degree == models[0].head_degree


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_what_its_clicker_alone_clicked_plays_an_item_that_nobody_has(
    monkeypatch: pytest.MonkeyPatch, leave_one_out: bool
) -> None:
    model, stage, _ = staged(monkeypatch, TASK, "sign", SEED, **SMALL | {"leave_one_out": leave_one_out})
    assert ONLY_ONE in TRAIN[13]
    assert CLICKS[:, ONLY_ONE].sum() == 1
    stage.loss(np.array([ACTIVE.index(13)]), At(SEED, stage.name, 0, 0)).backward()
    owner = torch.tensor([13]) if leave_one_out else None
    with torch.no_grad():
        vector, degree = stage.loss._encode(torch.tensor([ONLY_ONE]), owner, torch.ones(ITEMS, dtype=torch.bool))
    model = model.with_items(TextVectors(VECTORS[ONLY_ONE : ONLY_ONE + 1], torch.ones(1, dtype=torch.bool)))
    assert degree.tolist() == [0.0 if leave_one_out else 1.0]
    assert torch.allclose(vector[0], model.items[-1], atol=1e-6) == leave_one_out
    assert torch.allclose(vector[0], model.items[ONLY_ONE], atol=1e-6) != leave_one_out


# what is served


@pytest.mark.parametrize(("settings", "other"), [STEPS[0], *STEPS[5:]], ids=["all", *NAMES[5:]])
def test_served_scores(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], other: dict[str, Any]) -> None:
    task = replace(TASK, **other)
    model, _, weights = staged(monkeypatch, task, "sign", SEED, **SMALL | settings)
    ordered, words, steps = task.split.ordered, features(task), follows(None)
    items = [encoded(item, None, True, words, weights) for item in range(ITEMS)]
    vectors = np.array([vector for vector, _ in items])
    for row, history in enumerate(QUERY):
        asked = query(faded_mean(history.tolist(), vectors, DECAY if ordered else 1.0), weights)
        for item, (vector, degree) in enumerate(items):
            scale, prior, following = terms(degree, weights)
            expected = scale * float(asked @ vector) + prior
            if ordered:
                expected += following * after(history.tolist(), item, steps)
            assert float(model.scores(QUERIES)[row, item]) == pytest.approx(expected, abs=2e-6)


def test_new_items_score_as_they_would_if_nobody_had_clicked_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, weights = staged(monkeypatch, TASK, "sign", SEED, **SMALL)
    asked, before = model.query_vectors(QUERIES), model.scores(QUERIES)
    model = model.with_items(TASK.text)
    scores = model.scores(QUERIES)
    assert torch.equal(model.query_vectors(QUERIES), asked)
    torch.testing.assert_close(scores[:, :ITEMS], before, rtol=0, atol=1e-6)
    wanted = scores[:, ITEMS:]
    torch.testing.assert_close(wanted[:, NOBODY], before[:, NOBODY], rtol=0, atol=1e-6)
    scale, prior, _ = terms(0, weights)
    for item, words in enumerate(features(TASK)):
        vector = unit_row(weights["own"] @ words)
        expected = scale * (asked.double().numpy() @ vector) + prior
        np.testing.assert_allclose(wanted[:, item].numpy(), expected, rtol=0, atol=2e-6)


def test_more_items_can_be_added_than_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = staged(monkeypatch, TASK, "sign", SEED, **SMALL)
    model = model.with_items(TextVectors(VECTORS.repeat(3, 1), TASK.text.present.repeat(3)))
    new = model.scores(QUERIES)[:, ITEMS:]
    assert new.shape[1] == 3 * ITEMS
    torch.testing.assert_close(new, new[:, :ITEMS].repeat(1, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("settings", "other"), [STEPS[0], *STEPS[5:]], ids=["all", *NAMES[5:]])
def test_a_restored_model_scores_and_grows_the_same(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], other: dict[str, Any]
) -> None:
    model, _, _ = staged(monkeypatch, replace(TASK, **other), "sign", SEED, **SMALL | settings)
    state = save(model.state())
    restored = build("sign", SMALL | settings)
    restored.restore(load(state))
    assert save(restored.state()) == state
    assert "net.ids" not in load(state)
    assert torch.equal(restored.scores(QUERIES), model.scores(QUERIES))
    new = TextVectors(VECTORS[:2], torch.ones(2, dtype=torch.bool))
    assert torch.equal(restored.with_items(new).scores(QUERIES), model.with_items(new).scores(QUERIES))


# data that lack something


@pytest.mark.parametrize("text", [None, TextVectors(torch.zeros(ITEMS, 5), torch.zeros(ITEMS, dtype=torch.bool))])
def test_without_text_it_learns_from_clicks_or_refuses(text: TextVectors | None) -> None:
    task = replace(TASK, text=text)
    model = build("sign", SMALL | {"epochs": 1})
    model.fit(task)
    assert model.whitening is None
    assert torch.isfinite(model.scores(QUERIES)).all()
    assert model.items[CLICKS.sum(0) > 0].norm(dim=1).min() > 0.99
    assert not model.items[NOBODY].any()  # neither words nor clicks
    with pytest.raises(TextError, match="sign with ids = false needs item text, and this data has none"):
        build("sign", SMALL | {"ids": False}).fit(task)


def test_text_of_other_items_is_refused() -> None:
    few = TextVectors(VECTORS[:3], TASK.text.present[:3])
    with pytest.raises(TextError, match="3 text vectors for 10 items"):
        build("sign").fit(replace(TASK, text=few))


def test_without_an_order_nothing_fades_and_nothing_follows() -> None:
    model = build("sign", SMALL | {"epochs": 1})
    model.fit(replace(TASK, split=replace(SPLIT, ordered=False)))
    assert model.decay == 1.0
    assert model.followers.nnz == 0
    there, back = (Queries.anonymous(Histories.from_lists([items])) for items in ([0, 3, 5], [5, 3, 0]))
    torch.testing.assert_close(model.scores(there), model.scores(back), rtol=0, atol=1e-5)


def test_transitions_can_be_left_out() -> None:
    model = build("sign", SMALL | {"epochs": 1, "transitions": False})
    model.fit(TASK)
    assert model.followers.nnz == 0
    assert model.followers.shape == (ITEMS, ITEMS)


def test_users_with_a_single_click_teach_nothing_and_are_answered() -> None:
    singles = [np.array(items[:1]) for items in TRAIN]
    model = build("sign", SMALL | {"epochs": 3})
    model.fit(replace(TASK, split=replace(SPLIT, train=interactions(singles, 0))))
    assert torch.equal(model.net.own.detach(), torch.eye(DIMS))
    assert torch.isfinite(model.scores(QUERIES)).all()


# what it learns


@pytest.mark.parametrize("with_text", [True, False])
def test_it_learns_the_very_next_item(with_text: bool) -> None:
    world = block_world()
    model = build("sign", {"batch_size": 16})
    model.fit(world.task(seed=7, with_text=with_text))
    found = evaluate_model(model, world.split, ks=(1, 3)).overall
    assert found["recall@1"] > 0.7  # the text knows the block alone: one in eight
    assert found["recall@3"] > 0.95
