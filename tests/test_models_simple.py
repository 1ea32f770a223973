"""The untrained models against their equations, written out as loops over a tiny world, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import RecipeError, TextError
from graphllmrec.evaluate import validation_metric
from graphllmrec.models import build, ease
from graphllmrec.models.base import Queries, SilentJournal, Task, TextVectors
from graphllmrec.models.blend import Variant, collect, search, zscores
from graphllmrec.models.item_to_item import tuning_users
from world import block_world

USERS, ITEMS, DIM = 14, 9, 5
RANDOM = np.random.default_rng(4)
WALKS = [RANDOM.permutation(ITEMS)[: RANDOM.integers(4, 8)] for _ in range(USERS)]  # oldest first, no repeats
QUERY = [WALKS[0][:3], WALKS[3], np.array([2]), np.array([], dtype=np.int64)]  # histories that are asked about
QUERIES = Queries.anonymous(Histories.from_lists(QUERY))
DECAY = 0.6


class Notes(SilentJournal):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}

    def log(self, event: str, **values: Any) -> None:
        self.events[event] = values


def interactions(lists: list[np.ndarray], first: int) -> Interactions:
    user = np.repeat(np.arange(len(lists)), [len(entry) for entry in lists])
    order = np.concatenate([np.arange(first, first + len(entry)) for entry in lists])
    return Interactions(user, np.concatenate(lists).astype(np.int64), order)


TRAIN = [walk[:-2] for walk in WALKS]
SPLIT = Split(
    kind="leave-last-out",
    num_users=USERS,
    num_items=ITEMS,
    train=interactions(TRAIN, 0),
    valid=interactions([walk[-2:-1] for walk in WALKS], 10),
    test=interactions([walk[-1:] for walk in WALKS], 11),
    valid_in_history=True,
    ordered=True,
)
TEXT = TextVectors(
    torch.from_numpy(RANDOM.normal(size=(ITEMS, DIM)).astype(np.float32)) * (torch.arange(ITEMS) != 6)[:, None],
    torch.arange(ITEMS) != 6,
)
TASK = Task(SPLIT, TEXT)
CLICKS = np.zeros((USERS, ITEMS))
for _user, _items in enumerate(TRAIN):
    CLICKS[_user, _items] = 1.0


def fitted(name: str, task: Task = TASK, **settings: Any) -> Any:
    model = build(name, settings)
    model.fit(task)
    return model


def faded(weights: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """Σ over the history of decay^(steps back) · weights[i, j], entry by entry."""
    out = np.zeros((len(QUERY), weights.shape[1]))
    for query, history in enumerate(QUERY):
        for position, item in enumerate(history):
            for other in range(weights.shape[1]):
                out[query, other] += decay ** (len(history) - 1 - position) * weights[item, other]
    return out


def assert_scores(model: Any, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(model.scores(QUERIES).numpy(), expected, rtol=tolerance, atol=tolerance)


# --- popularity ---


def test_popularity_counts_training_clicks() -> None:
    assert_scores(fitted("popularity"), np.tile(CLICKS.sum(0), (len(QUERY), 1)))


def test_popularity_halves_a_click_every_half_life() -> None:
    day, newest = 86_400, 1_500_000_000
    ages = RANDOM.integers(0, 100, len(SPLIT.train)) * day
    ages[0] = 0
    train = replace(SPLIT.train, order=newest - ages)
    expected = np.zeros(ITEMS)
    for item, age in zip(train.item, ages, strict=True):
        expected[item] += 0.5 ** (age / day / 30)
    model = fitted("popularity", replace(TASK, split=replace(SPLIT, train=train)), half_life_days=30)
    assert_scores(model, np.tile(expected, (len(QUERY), 1)))


def test_popularity_refuses_a_half_life_of_positions() -> None:
    with pytest.raises(RecipeError, match="half_life_days: needs timestamps, this data has positions only"):
        fitted("popularity", half_life_days=30)
    unordered = replace(SPLIT, train=replace(SPLIT.train, order=None), ordered=False)
    with pytest.raises(RecipeError, match="this data has no order"):
        fitted("popularity", Task(unordered), half_life_days=30)


# --- item-knn ---


@pytest.mark.parametrize(("keep", "shrink"), [(3, 2.5), (ITEMS, 0.0)])
def test_item_knn_is_the_shrunk_cosine_of_its_nearest(keep: int, shrink: float) -> None:
    expected = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        row = np.zeros(ITEMS)
        for j in range(ITEMS):
            if i != j and CLICKS[:, i].any() and CLICKS[:, j].any():
                norms = math.sqrt(CLICKS[:, i].sum()) * math.sqrt(CLICKS[:, j].sum())
                row[j] = (CLICKS[:, i] * CLICKS[:, j]).sum() / (norms + shrink)
        for j in sorted(range(ITEMS), key=lambda j: (-row[j], j))[:keep]:
            expected[i, j] = row[j]
    assert_scores(fitted("item-knn", neighbours=keep, shrink=shrink, decay=DECAY), faded(expected))


def test_item_knn_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted("item-knn", neighbours=4, decay=DECAY).scores(QUERIES)
    monkeypatch.setattr("graphllmrec.models.item_knn._BLOCK", 2)
    assert torch.equal(fitted("item-knn", neighbours=4, decay=DECAY).scores(QUERIES), whole)


# --- ease ---


def ease_weights(l2: float) -> np.ndarray:
    inverse = np.linalg.inv(CLICKS.T @ CLICKS + l2 * np.eye(ITEMS))
    weights = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            if i != j:
                weights[i, j] = -inverse[i, j] / inverse[j, j]
    return weights


@pytest.mark.parametrize("l2", [2.0, 500.0])
def test_ease_is_the_closed_form(l2: float) -> None:
    assert_scores(fitted("ease", l2=l2, decay=DECAY), faded(ease_weights(l2)))


def test_ease_weights_minimise_the_ridge_objective() -> None:
    weights = fitted("ease", l2=2.0, decay=1.0).weights.double().numpy()

    def objective(candidate: np.ndarray) -> float:
        return float(((CLICKS - CLICKS @ candidate) ** 2).sum() + 2.0 * (candidate**2).sum())

    assert np.all(np.diag(weights) == 0)
    for _ in range(20):
        nudge = RANDOM.normal(0, 0.01, weights.shape)
        np.fill_diagonal(nudge, 0)
        assert objective(weights + nudge) > objective(weights)


def test_ease_repeats_an_inaccurate_solve_in_float64() -> None:
    users = 3_000  # two items that everybody has: nearly singular, beyond float32
    lists = [np.array([0, 1] + ([2] if user % 2 else [])) for user in range(users)]
    split = replace(SPLIT, num_users=users, num_items=3, train=interactions(lists, 0), ordered=False)
    notes = Notes()
    model = fitted("ease", Task(split, journal=notes), l2=1e-5, decay=1.0)
    assert notes.events["ease-inaccurate"]["precision"] == "float32"
    clicks = np.zeros((users, 3))
    for user, entry in enumerate(lists):
        clicks[user, entry] = 1
    inverse = np.linalg.inv(clicks.T @ clicks + 1e-5 * np.eye(3))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(model.weights.numpy(), expected, atol=1e-5)
    with pytest.raises(RecipeError, match=r"model\.l2: 1e-12 is too small for this data"):
        fitted("ease", Task(split), l2=1e-12)


def test_ease_refuses_what_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "free_memory", lambda: 20_000_000_000)
    huge = Task(replace(SPLIT, num_items=200_000))
    with pytest.raises(RecipeError, match=r"ease needs 320\.0 GB for 200,000 items.*20\.0 GB are free; use item-knn"):
        fitted("ease", huge)


def test_free_memory_is_a_plausible_number_of_bytes() -> None:
    assert 10**7 < ease.free_memory() < 10**15


# --- text-knn ---


def whitened(dims: int) -> np.ndarray:
    """Unit-length whitened vectors by an SVD of the centred rows; zeros where there is no text."""
    rows = TEXT.vectors.double().numpy()
    known = TEXT.present.numpy()
    mean = rows[known].mean(0)
    _, singular, axes = np.linalg.svd(rows[known] - mean, full_matrices=False)
    out = np.zeros((ITEMS, dims))
    for item in np.flatnonzero(known):
        for axis in range(dims):
            out[item, axis] = (rows[item] - mean) @ axes[axis] / singular[axis]
        out[item] /= np.linalg.norm(out[item])
    return out


@pytest.mark.parametrize("dims", [2, DIM])
def test_text_knn_is_the_similarity_to_the_faded_history(dims: int) -> None:
    vectors = whitened(dims)
    expected = faded(vectors) @ vectors.T
    assert_scores(fitted("text-knn", dims=dims, decay=DECAY), expected, 1e-5)


def test_text_knn_gives_an_item_without_text_no_score() -> None:
    assert (fitted("text-knn", decay=DECAY).scores(QUERIES)[:, 6] == 0).all()


def test_text_knn_refuses_missing_or_foreign_text() -> None:
    with pytest.raises(TextError, match="text-knn needs item text"):
        fitted("text-knn", Task(SPLIT))
    fewer = TextVectors(TEXT.vectors[:4], TEXT.present[:4])
    with pytest.raises(TextError, match="4 text vectors for 9 items"):
        fitted("text-knn", Task(SPLIT, fewer))


# --- transitions ---


@pytest.mark.parametrize("window", [1, 3, 50])
def test_transitions_count_what_follows(window: int) -> None:
    counts = np.zeros((ITEMS, ITEMS))
    for walk in TRAIN:
        for p in range(len(walk)):
            for q in range(p + 1, min(p + window, len(walk) - 1) + 1):
                counts[walk[p], walk[q]] += 1 / (q - p)
    expected = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            if counts[i, j]:
                expected[i, j] = counts[i, j] / math.sqrt(counts[i].sum() * counts[:, j].sum())
    assert not np.allclose(expected, expected.T)
    assert_scores(fitted("transitions", window=window, decay=DECAY), faded(expected))


def test_transitions_ignore_repeats_of_the_same_item() -> None:
    lists = [np.array([0, 0, 1])] * 2
    split = replace(SPLIT, num_users=2, num_items=2, train=interactions(lists, 0))
    model = fitted("transitions", Task(split), window=1, decay=1.0)
    assert model.weights.toarray().tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_transitions_find_the_next_item_of_the_block_world() -> None:
    world = block_world()
    model = fitted("transitions", world.task(), decay=0.5)
    known = world.split.known("test")
    scores = model.scores(Queries.of(known, np.arange(world.split.num_users)))
    scores[torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)] = -torch.inf
    assert np.array_equal(scores.argmax(1).numpy(), world.split.test.item)


def test_transitions_refuse_data_without_order() -> None:
    with pytest.raises(RecipeError, match="transitions needs a timestamp or position column"):
        fitted("transitions", Task(replace(SPLIT, ordered=False)))


# --- recency decay ---


def test_a_tuned_decay_is_the_best_of_those_tried() -> None:
    notes = Notes()
    model = fitted("item-knn", replace(TASK, journal=notes))
    tried = notes.events["decay-tuned"]["tried"]
    assert tried[str(model.decay)] == max(tried.values())
    assert validation_metric(model, SPLIT, "ndcg@20") == pytest.approx(max(tried.values()))


def test_without_order_nothing_fades() -> None:
    notes = Notes()
    model = fitted("item-knn", Task(replace(SPLIT, ordered=False), journal=notes), decay=DECAY)
    assert model.decay == 1.0
    assert "no order" in notes.events["decay-ignored"]["reason"]


def test_without_validation_part_the_usual_decay_is_taken() -> None:
    empty = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    assert fitted("item-knn", Task(replace(SPLIT, valid=empty))).decay == 0.7


def test_tuning_users_are_a_fixed_sample() -> None:
    sample = tuning_users(SPLIT, seed=1, limit=5)
    assert len(sample) == 5
    assert np.array_equal(sample, np.unique(sample))
    assert np.array_equal(sample, tuning_users(SPLIT, seed=1, limit=5))
    assert len(tuning_users(SPLIT, seed=1)) == USERS


# --- z-sum ---


def z(scores: np.ndarray) -> np.ndarray:
    out = np.zeros_like(scores)
    for row, values in enumerate(scores):
        if values.std() > 0:
            out[row] = (values - values.mean()) / values.std()
    return out


def test_z_scores_have_mean_0_and_deviation_1_and_a_constant_row_is_0() -> None:
    rows = torch.tensor([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1], [1e6, 1e6, 1e6 + 8]])
    np.testing.assert_allclose(zscores(rows)[:2].numpy(), z(rows[:2].double().numpy()) * [[1], [0]], atol=1e-6)
    assert zscores(rows)[2].std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_z_sum_is_the_weighted_sum_of_its_experts() -> None:
    model = fitted("z-sum")
    assert model.branches == ("ease", "text-knn", "transitions")
    assert float(model.weights.sum()) == pytest.approx(1)
    assert (model.weights >= 0).all()
    expected = np.zeros((len(QUERY), ITEMS))
    for name, weight in zip(model.branches, model.weights, strict=True):
        alone = fitted(name, decay=model.experts[name].decay).scores(QUERIES).double().numpy()
        expected += float(weight) * z(alone)
        np.testing.assert_allclose(model.branch_scores(QUERIES, name).numpy(), z(alone), atol=1e-5)
    assert_scores(model, expected, 1e-5)


def test_the_board_ranks_like_a_loop_over_all_items() -> None:
    variants = [Variant(fitted(name, decay=DECAY), decay) for name in ("ease", "text-knn") for decay in (1.0, 0.5)]
    users = np.array([0, 2, 3, 7, 11])
    two_targets = Interactions.sort(
        np.concatenate([SPLIT.valid.user, SPLIT.test.user]), np.concatenate([SPLIT.valid.item, SPLIT.test.item])
    )
    split = replace(SPLIT, valid=two_targets)
    weights = torch.tensor([0.3, 0.7])
    gains = []
    for user in users:
        queries = Queries.of(SPLIT.known("valid"), np.array([user]))
        scores = 0.3 * variants[1].zscores(queries)[0] + 0.7 * variants[2].zscores(queries)[0]
        gain, targets = 0.0, split.targets("valid")[user]
        for target in targets:
            rank = sum(
                1 for item in range(ITEMS)
                if item != target and item not in TRAIN[user] and scores[item] >= scores[target]
            )  # fmt: skip
            gain += 1 / math.log2(rank + 2)
        gains.append(gain / sum(1 / math.log2(place + 2) for place in range(len(targets))))
    board = collect(variants, split, users)
    assert board.ndcg([1, 2], weights) == pytest.approx(np.mean(gains), abs=1e-6)


def test_the_search_never_ends_below_equal_weights_or_a_single_model() -> None:
    variants = [Variant(fitted(name, decay=DECAY), decay) for name in ("ease", "transitions") for decay in (1.0, 0.5)]
    board = collect(variants, SPLIT, tuning_users(SPLIT, 0))
    found = search(board, [[0, 1], [2, 3]])
    assert found.ndcg == pytest.approx(board.ndcg(found.chosen, found.weights))
    assert found.ndcg >= max(found.alone)
    assert found.ndcg >= board.ndcg(found.chosen, torch.tensor([0.5, 0.5]))


def test_the_search_gives_a_useless_model_no_weight() -> None:
    world = block_world()
    good, useless = fitted("transitions", world.task()), fitted("popularity", world.task())
    board = collect([Variant(useless, None), Variant(good, 0.5)], world.split, tuning_users(world.split, 0))
    found = search(board, [[0], [1]])
    assert found.ndcg == pytest.approx(1)
    assert found.weights[1] > 0.49


def test_z_sum_leaves_out_experts_that_the_data_cannot_feed() -> None:
    notes = Notes()
    model = fitted("z-sum", Task(SPLIT, journal=notes))
    assert model.branches == ("ease", "transitions")
    assert notes.events["expert-left-out"] == {"expert": "text-knn", "reason": "the items have no text"}
    model = fitted("z-sum", Task(replace(SPLIT, ordered=False), TEXT, journal=notes))
    assert model.branches == ("ease", "text-knn")
    assert notes.events["expert-left-out"] == {"expert": "transitions", "reason": "the interactions have no order"}
    restored = build("z-sum")
    restored.restore(model.state())
    assert restored.branches == ("ease", "text-knn")


def test_z_sum_refuses_when_no_expert_is_left() -> None:
    with pytest.raises(RecipeError, match="none of text-knn can use this data"):
        fitted("z-sum", Task(SPLIT), experts=["text-knn"])


def test_z_sum_without_validation_part_weighs_equally() -> None:
    empty = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    model = fitted("z-sum", Task(replace(SPLIT, valid=empty), TEXT))
    assert model.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert {expert.decay for expert in model.experts.values()} == {0.7}


def test_z_sum_keeps_settings_of_an_expert_and_any_untrained_model_can_be_one() -> None:
    model = fitted("z-sum", experts=["popularity", "item-knn", "ease"], settings={"ease": {"l2": 5.0, "decay": 0.9}})
    assert model.experts["ease"].config.l2 == 5.0
    assert model.experts["ease"].decay == 0.9
    assert set(model.readable()) == {"popularity", "item-knn", "ease"}
    assert torch.isfinite(model.scores(QUERIES)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": ["ease", "neural"]}, "unknown expert 'neural'; known: popularity, item-knn"),
        ({"experts": ["z-sum"]}, "unknown expert 'z-sum'"),
        ({"experts": ["ease", "ease"]}, "expert 'ease' is given twice"),
        ({"experts": []}, "at least 1 item"),
        ({"settings": {"item-knn": {}}}, "settings.item-knn: not one of the experts"),
        ({"settings": {"ease": {"l2": -1}}}, "settings.ease.l2: Input should be greater than 0"),
        ({"settings": {"ease": {"l3": 1}}}, "settings.ease.l3: Extra inputs are not permitted"),
    ],
)
def test_z_sum_refuses_impossible_experts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build("z-sum", settings)


def test_z_sum_explains_a_score_by_its_experts() -> None:
    model = fitted("z-sum")
    first = Queries(QUERIES.users[:1], QUERIES.histories.take(np.array([0])))
    found = model.explain(first, 4)
    assert found.score == pytest.approx(float(model.scores(first)[0, 4]), abs=1e-5)
    assert sum(found.shares.values()) == pytest.approx(found.score)
    assert found.gate == pytest.approx(model.readable()["text-knn"]["weight"], abs=1e-4)
