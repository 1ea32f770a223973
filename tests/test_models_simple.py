"""The untrained models against their equations, written out as loops over a tiny world, and what they refuse."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from graphllmrec.data.tables import Histories
from graphllmrec.errors import RecipeError, TextError
from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.models.baselines import ease
from graphllmrec.models.baselines.item_knn import neighbours
from graphllmrec.models.baselines.transitions import REACH, Followers
from graphllmrec.models.scoring import empty_csr
from graphllmrec.nn.examples import Places
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.train.validation import tuning_users
from tiny import (
    CLICKS,
    DECAY,
    DIM,
    ITEMS,
    QUERIES,
    QUERY,
    SPLIT,
    TASK,
    TEXT,
    TRAIN,
    USERS,
    Notes,
    assert_scores,
    faded,
    fitted,
    interactions,
)  # fmt: skip
from world import block_world

# --- popularity ---


def test_popularity_counts_training_clicks() -> None:
    assert_scores(fitted("popularity"), np.tile(CLICKS.sum(0), (len(QUERY), 1)))


def test_popularity_halves_a_click_every_half_life() -> None:
    day, newest = 86_400, 1_500_000_000
    ages = np.random.default_rng(5).integers(0, 100, len(SPLIT.train)) * day
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


@pytest.mark.parametrize(
    ("keep", "shrink", "alpha"), [(3, 2.5, 0.5), (ITEMS, 0.0, 0.5), (3, 2.5, 0.7), (ITEMS, 1.0, 1.0), (ITEMS, 0.0, 0.2)]
)
def test_item_knn_is_the_shrunk_cosine_of_its_nearest(keep: int, shrink: float, alpha: float) -> None:
    expected = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        row = np.zeros(ITEMS)
        for j in range(ITEMS):
            if i != j and CLICKS[:, i].any() and CLICKS[:, j].any():
                norms = CLICKS[:, i].sum() ** alpha * CLICKS[:, j].sum() ** (1 - alpha)
                row[j] = (CLICKS[:, i] * CLICKS[:, j]).sum() / (norms + shrink)
        for j in sorted(range(ITEMS), key=lambda j: (-row[j], j))[:keep]:
            expected[i, j] = row[j]
    model = fitted("item-knn", neighbours=keep, shrink=shrink, alpha=alpha, decay=DECAY)
    assert_scores(model, faded(expected))


def test_without_shrinkage_a_rare_neighbour_can_be_first_and_a_prior_moves_it_behind() -> None:
    """Item 1 was clicked by one of the two users of item 0 and nobody else, item 2 by both and by eight others."""
    clicks = np.zeros((10, 3), dtype=np.float32)
    clicks[:2, 0], clicks[0, 1], clicks[:, 2] = 1, 1, 1
    first = {
        (shrink, alpha): int(neighbours(sp.csr_array(clicks), 3, shrink, alpha)[[0]].toarray().argmax())
        for shrink, alpha in ((0.0, 0.5), (10.0, 0.5), (0.0, 1.0))
    }
    assert first == {(0.0, 0.5): 1, (10.0, 0.5): 2, (0.0, 1.0): 2}


def test_item_knn_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted("item-knn", neighbours=4, decay=DECAY).scores(QUERIES)
    monkeypatch.setattr("graphllmrec.models.baselines.item_knn._BLOCK", 2)
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
    random = np.random.default_rng(6)
    for _ in range(20):
        nudge = random.normal(0, 0.01, weights.shape)
        np.fill_diagonal(nudge, 0)
        assert objective(weights + nudge) > objective(weights)


def test_ease_repeats_an_inaccurate_solve_in_float64() -> None:
    users = 3_000  # two items that everybody has: nearly singular, beyond float32
    lists = [np.array([0, 1] + ([2] if user % 2 else [])) for user in range(users)]
    split = replace(SPLIT, num_users=users, num_items=3, train=interactions(lists, 0), ordered=False)
    notes = Notes()
    model = fitted("ease", Task(split, logger=notes), l2=1e-5, decay=1.0)
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
    with pytest.raises(RecipeError, match=r"ease needs 160\.0 GB for 200,000 items.*20\.0 GB are free; use item-knn"):
        fitted("ease", huge)


def test_ease_says_what_it_needs_and_works_in_one_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    num_items = 900
    lists = [random.permutation(num_items)[:5] for _ in range(300)]
    split = replace(SPLIT, num_users=300, num_items=num_items, train=interactions(lists, 0), ordered=False)
    notes = Notes()
    task = Task(split, logger=notes)
    fitted("ease", task, l2=5.0)  # imports and caches are not counted
    tracemalloc.start()
    fitted("ease", task, l2=5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    matrix = num_items**2 * 4
    assert matrix <= peak < 1.5 * matrix
    assert notes.events["ease-memory"]["gb"] == pytest.approx(matrix / 1e9, abs=0.01)


def test_ease_tunes_its_penalty_on_validation() -> None:
    notes = Notes()
    model = fitted("ease", Task(block_world().split, logger=notes), l2="tune", decay=1.0)
    tried = notes.events["l2-tuned"]["tried"]
    best = notes.events["l2-tuned"]["l2"]
    assert tried[str(best)] == max(tried.values())
    assert torch.equal(model.weights, fitted("ease", Task(block_world().split), l2=best, decay=1.0).weights)
    unvalidated = replace(SPLIT, valid=SPLIT.valid.where(np.zeros(len(SPLIT.valid), bool)))
    assert torch.equal(
        fitted("ease", Task(unvalidated), l2="tune").weights, fitted("ease", Task(unvalidated), l2=100.0).weights
    )


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
    assert_scores(fitted("text-knn", text_dim=dims, decay=DECAY), expected)


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


FOLLOWED = [
    np.random.default_rng(length).permutation(20)[:length] for length in (1, 2, 3, 5, 8, 13, 14, 0, 2, 6, 12)
]  # past REACH, too


def steps_of(walks: list[np.ndarray], window: int = 3) -> np.ndarray:
    """T of these histories, entry by entry."""
    counts = np.zeros((20, 20))
    for walk in walks:
        for p in range(len(walk)):
            for q in range(p + 1, min(p + window, len(walk) - 1) + 1):
                counts[walk[p], walk[q]] += 1 / (q - p)
    return counts


def share(counts: np.ndarray, i: int, j: int) -> float:
    """S_ij."""
    return counts[i, j] / math.sqrt(counts[i].sum() * counts[:, j].sum()) if counts[i, j] > 1e-9 else 0.0


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("max_history", [50, 1, 4], ids=["whole", "one", "four"])
def test_what_follows_does_not_hear_of_the_users_own_steps(max_history: int, decay: float) -> None:
    followers = Followers.of(Histories.from_lists(FOLLOWED), 20)
    expected = []
    for user, walk in enumerate(FOLLOWED):
        kept = walk[-max_history - 1 :]
        counts = steps_of(FOLLOWED) - steps_of([kept])
        if len(kept) == len(walk):
            np.testing.assert_allclose(counts, steps_of(FOLLOWED[:user] + FOLLOWED[user + 1 :]), atol=1e-12)
        for place in range(1, len(kept)):
            reach = range(1, min(place, REACH) + 1)
            expected.append(sum(decay ** (back - 1) * share(counts, kept[place - back], kept[place]) for back in reach))
    places = Places.of(Histories.from_lists(FOLLOWED), True, max_history)
    found = followers.score_targets(places, decay, leave_one_out=True).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert found.dtype == np.float32
    assert (found > 0).any()


def test_what_follows_with_the_users_own_steps() -> None:
    followers, counts = Followers.of(Histories.from_lists(FOLLOWED), 20), steps_of(FOLLOWED)
    drawn, of_targets, of_items = np.array([3, 0, 19, 3]), [], []
    for walk in FOLLOWED:
        for place in range(1, len(walk)):
            reach = range(1, min(place, REACH) + 1)
            of_targets.append(
                sum(DECAY ** (back - 1) * share(counts, walk[place - back], walk[place]) for back in reach)
            )
            of_items.append(
                [sum(DECAY ** (back - 1) * share(counts, walk[place - back], item) for back in reach) for item in drawn]
            )
    places = Places.of(Histories.from_lists(FOLLOWED), True, 50)
    np.testing.assert_allclose(followers.score_targets(places, DECAY, False).numpy(), of_targets, rtol=0, atol=1e-6)
    np.testing.assert_allclose(followers.score_items(places, DECAY, drawn).numpy(), of_items, rtol=0, atol=1e-6)


def test_nobody_else_went_there() -> None:
    walks = Histories.from_lists([[0, 1, 2], [3, 4]])
    followers, places = Followers.of(walks, 5), Places.of(walks, True, 50)
    assert followers.score_targets(places, DECAY, leave_one_out=True).tolist() == [0.0, 0.0, 0.0]
    assert (followers.score_targets(places, DECAY, leave_one_out=False) > 0).all()


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_what_follows_repeated_clicks_stays_within_its_bounds(leave_one_out: bool) -> None:
    walks = Histories.from_lists([[0, 0, 1, 0, 1, 1], [1, 0, 0], [0, 1, 2]])
    found = Followers.of(walks, 3).score_targets(Places.of(walks, True, 50), 0.0, leave_one_out)
    assert ((found >= 0) & (found <= 1)).all()


def test_nothing_follows_nothing() -> None:
    alone = Histories.from_lists([[3], [], [1]])
    followers, places = Followers.of(alone, 5), Places.of(alone, True, 50)
    assert followers.score_targets(places, DECAY, True).shape == (0,)
    assert followers.score_items(places, DECAY, np.arange(5)).shape == (0, 5)
    assert followers.weights.nnz == empty_csr(5, 5).nnz == 0
    assert empty_csr(5, 5).shape == (5, 5)


# --- recency decay ---


def test_a_tuned_decay_is_the_best_of_those_tried() -> None:
    notes = Notes()
    model = fitted("item-knn", replace(TASK, logger=notes))
    tried = notes.events["decay-tuned"]["tried"]
    assert tried[str(model.decay)] == max(tried.values())
    assert validation_metric(model, SPLIT, "ndcg@20") == pytest.approx(max(tried.values()))


def test_without_order_nothing_fades() -> None:
    notes = Notes()
    model = fitted("item-knn", Task(replace(SPLIT, ordered=False), logger=notes), decay=DECAY)
    assert model.decay == 1.0
    assert "no order" in notes.events["decay-ignored"]["reason"]


@pytest.mark.parametrize("decay", ["tune", 1.0])
def test_without_order_a_decay_that_fades_nothing_is_not_ignored(decay: str | float) -> None:
    notes = Notes()
    assert fitted("item-knn", Task(replace(SPLIT, ordered=False), logger=notes), decay=decay).decay == 1.0
    assert "decay-ignored" not in notes.events


def test_without_validation_part_the_usual_decay_is_taken() -> None:
    empty = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    assert fitted("item-knn", Task(replace(SPLIT, valid=empty))).decay == 0.7


def test_tuning_users_are_a_fixed_sample() -> None:
    sample = tuning_users(SPLIT, seed=1, limit=5)
    assert len(sample) == 5
    assert np.array_equal(sample, np.unique(sample))
    assert np.array_equal(sample, tuning_users(SPLIT, seed=1, limit=5))
    assert len(tuning_users(SPLIT, seed=1)) == USERS
    assert len(set(tuning_users(SPLIT, seed=1, limit=USERS - 1))) == USERS - 1  # nobody twice
