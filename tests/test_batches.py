"""Examples and batches: functions of their arguments, negatives without a click, histories without their target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphllmrec.data.tables import Histories
from graphllmrec.nn.examples import NextClicks, Places, UnclickedItems, UserClicks, uniform_items
from graphllmrec.nn.histories import Averages
from graphllmrec.train.batches import epoch_order

KNOWN = Histories.from_lists([[4, 1, 3, 0], [], [2], [0, 4], [1, 1, 2]])
ITEMS = 6
lists_of_items = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=10), min_size=1, max_size=6)


def everything(lists: list[list[int]]) -> np.ndarray:
    return np.arange(len(lists), dtype=np.int64)


# draws


def test_an_epoch_visits_every_example_once() -> None:
    order = epoch_order(1000, 3, "graph", 0)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert order.dtype == np.int64


@pytest.mark.parametrize("other", [(4, "graph", 5), (3, "text", 5), (3, "graph", 6)])
def test_an_order_depends_on_seed_purpose_and_epoch_and_on_nothing_else(other: tuple[int, str, int]) -> None:
    first = epoch_order(1000, 3, "graph", 5)
    np.random.default_rng().random(10)
    epoch_order(17, 3, "graph", 5)
    assert np.array_equal(epoch_order(1000, 3, "graph", 5), first)
    assert not np.array_equal(epoch_order(1000, *other), first)


@pytest.mark.parametrize("other", [(1, "a", 2, 3), (0, "b", 2, 3), (0, "a", 1, 3), (0, "a", 2, 4)])
def test_uniform_items_are_a_function_of_their_arguments(other: tuple[int, str, int, int]) -> None:
    drawn = uniform_items(500, 40, 0, "a", 2, 3)
    assert np.array_equal(drawn, uniform_items(500, 40, 0, "a", 2, 3))
    assert not np.array_equal(drawn, uniform_items(500, 40, *other))
    assert set(drawn.tolist()) == set(range(40))


@pytest.mark.parametrize("other", [(1, "a", 2, 3), (0, "b", 2, 3), (0, "a", 1, 3), (0, "a", 2, 4)])
def test_unclicked_items_are_a_function_of_their_arguments(other: tuple[int, str, int, int]) -> None:
    users, unclicked = np.zeros(300, dtype=np.int64), UnclickedItems(KNOWN, 50)
    drawn = unclicked.draw(users, 0, "a", 2, 3)
    assert np.array_equal(drawn, unclicked.draw(users, 0, "a", 2, 3))
    assert np.array_equal(drawn, UnclickedItems(KNOWN, 50).draw(users, 0, "a", 2, 3))
    assert not np.array_equal(drawn, unclicked.draw(users, *other))


@settings(max_examples=200, deadline=None)
@given(lists_of_items, st.integers(0, 2**40))
def test_an_unclicked_item_was_not_clicked_unless_all_were(lists: list[list[int]], seed: int) -> None:
    unclicked = UnclickedItems(Histories.from_lists(lists), ITEMS)
    users = np.repeat(everything(lists), 3)
    drawn = unclicked.draw(users, seed, "test", 0, 0)
    assert drawn.shape == users.shape
    for user, item in zip(users, drawn, strict=True):
        assert 0 <= item < ITEMS
        assert item not in lists[user] or len(set(lists[user])) == ITEMS


def test_unclicked_items_are_uniform_over_the_unclicked() -> None:
    drawn = UnclickedItems(KNOWN, ITEMS).draw(np.full(20_000, 4), 0, "test", 0, 0)  # user 4 clicked 1 and 2
    share = np.bincount(drawn, minlength=ITEMS) / len(drawn)
    np.testing.assert_allclose(share, [0.25, 0, 0, 0.25, 0.25, 0.25], atol=0.015)  # five standard errors


def test_nobody_to_draw_for() -> None:
    assert UnclickedItems(KNOWN, ITEMS).draw(np.empty(0, dtype=np.int64), 0, "test", 0, 0).shape == (0,)


# averages


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_averages_are_recency_weighted_means(decay: float) -> None:
    averages = Averages.of(KNOWN, ITEMS, decay)
    expected = np.zeros((len(KNOWN), ITEMS))
    for row in range(len(KNOWN)):
        history = KNOWN[row].tolist()
        weights = [decay ** (len(history) - 1 - position) for position in range(len(history))]
        for item, weight in zip(history, weights, strict=True):
            expected[row, item] += weight / sum(weights)
    np.testing.assert_allclose(averages.matrix.to_dense().numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(averages.transposed.to_dense().numpy(), expected.T, atol=1e-7)


def test_averages_of_a_very_long_history_do_not_vanish() -> None:
    averages = Averages.of(Histories.from_lists([list(range(5000))]), 5000, 0.5)
    assert float(averages.matrix.values().sum()) == pytest.approx(1)


# next clicks


def examples(clicks: NextClicks) -> list[tuple[int, list[int], int]]:
    """(user, history, target) of every example."""
    histories = clicks.histories(np.arange(len(clicks)))
    return [(int(clicks.user[row]), histories[row].tolist(), int(clicks.target[row])) for row in range(len(clicks))]


def test_with_an_order_the_history_is_what_came_before() -> None:
    assert examples(NextClicks(KNOWN, ordered=True, max_history=50)) == [
        (0, [4], 1),
        (0, [4, 1], 3),
        (0, [4, 1, 3], 0),
        (3, [0], 4),
        (4, [1], 1),  # a repeat: the second click of the same item is a next click like any other
        (4, [1, 1], 2),
    ]


def test_without_an_order_the_history_is_everything_else() -> None:
    assert examples(NextClicks(KNOWN, ordered=False, max_history=50)) == [
        (0, [1, 3, 0], 4),
        (0, [4, 3, 0], 1),
        (0, [4, 1, 0], 3),
        (0, [4, 1, 3], 0),
        (3, [4], 0),
        (3, [0], 4),
        (4, [2], 1),
        (4, [2], 1),
        (4, [1, 1], 2),
    ]


def test_the_newest_clicks_are_kept_where_a_history_is_too_long() -> None:
    long = Histories.from_lists([[7, 7, 7], list(range(10, 20))])
    assert examples(NextClicks(long, ordered=True, max_history=2))[-1] == (1, [17, 18], 19)
    assert max(len(history) for _, history, _ in examples(NextClicks(long, ordered=True, max_history=4))) == 4


@settings(max_examples=200, deadline=None)
@given(lists_of_items, st.booleans(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_history_never_holds_the_future_nor_the_target(lists, ordered, max_history, random) -> None:
    clicks = NextClicks(Histories.from_lists(lists), ordered, max_history)
    picked = np.array([random.randrange(len(clicks)) for _ in range(5 if len(clicks) else 0)], dtype=np.int64)
    histories = clicks.histories(picked)  # any examples in any order, repeats included
    assert len(histories) == len(picked)
    for row, example in enumerate(picked):
        user, target = int(clicks.user[example]), int(clicks.target[example])
        place = int(clicks.entry[example]) - sum(len(entry) for entry in lists[:user])
        assert lists[user][place] == target
        if ordered:
            assert histories[row].tolist() == lists[user][max(0, place - max_history) : place]
        else:
            assert histories[row].tolist() == [item for item in lists[user] if item != target]


def test_users_with_a_single_click_teach_nothing() -> None:
    alone = Histories.from_lists([[3], [], [1]])
    for ordered in (True, False):
        clicks = NextClicks(alone, ordered, 50)
        assert len(clicks) == 0
        assert len(clicks.histories(np.empty(0, dtype=np.int64))) == 0


# users with all their clicks


def test_an_example_is_a_user_with_all_clicks() -> None:
    examples = UserClicks(KNOWN)
    assert examples.user.tolist() == [0, 2, 3, 4]
    assert len(examples) == 4
    clicks = examples.clicks(np.array([3, 0, 3]))
    assert [clicks[row].tolist() for row in range(3)] == [[1, 1, 2], [4, 1, 3, 0], [1, 1, 2]]
    assert len(UserClicks(Histories.from_lists([[], []]))) == 0


# places


def test_places_with_an_order_are_learned_from_all_but_the_first() -> None:
    places = Places.of(KNOWN, ordered=True, max_history=50)
    assert places.position.tolist() == [0, 1, 2, 3, 0, 0, 1, 0, 1, 2]
    assert places.target.tolist() == [1, 2, 3, 6, 8, 9]


def test_places_without_an_order_are_all_of_those_who_clicked_twice() -> None:
    places = Places.of(KNOWN, ordered=False, max_history=50)
    assert places.position.tolist() == [0, 1, 2, 3, 0, 0, 1, 0, 1, 2]
    assert places.target.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("ordered", [True, False])
def test_places_keep_the_newest_clicks(ordered: bool) -> None:
    long = Histories.from_lists([[7, 7], [], list(range(10, 20)), [5]])
    places = Places.of(long, ordered, max_history=3)
    assert [places.clicks[row].tolist() for row in range(4)] == [[7, 7], [], [16, 17, 18, 19], [5]]
    assert places.target.tolist() == ([1, 3, 4, 5] if ordered else [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("ordered", [True, False])
def test_of_long_histories_places_may_draw_what_they_keep(ordered: bool) -> None:
    lists, seen = [[7, 7], [], list(range(10, 20)), [5]], set()
    for seed in range(60):
        places = Places.of(Histories.from_lists(lists), ordered, 3, np.random.default_rng(seed))
        [two, none, drawn, one] = (places.clicks[row].tolist() for row in range(4))
        assert (two, none, one) == ([7, 7], [], [5])
        assert len(drawn) == len(set(drawn)) == 4
        assert drawn == sorted(drawn)  # oldest first
        assert not ordered or drawn[-1] - drawn[0] == 3  # one after the other
        seen.update(drawn)
    assert seen == set(range(10, 20))  # the oldest and the newest too


@settings(max_examples=200, deadline=None)
@given(lists_of_items, st.booleans(), st.integers(1, 12), st.sampled_from([0.0, 0.6, 1.0]))
def test_sums_over_the_histories_of_all_places(lists, ordered, max_history, decay) -> None:
    places = Places.of(Histories.from_lists(lists), ordered, max_history)
    lengths = [min(len(entry), max_history + 1) for entry in lists]
    vectors = np.random.default_rng(3).normal(size=(sum(lengths), 2)).astype(np.float32)
    expected, start = np.zeros((sum(lengths), 2)), 0
    for length in lengths:
        for place in range(length):
            for other in range(place if ordered else length):
                if other != place:
                    weight = decay ** (place - other - 1) if ordered else 1.0
                    expected[start + place] += weight * vectors[start + other]
        start += length
    found = places.weighted(torch.from_numpy(vectors), decay)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("lists", [[[3], [], [1]], [[]], []], ids=["single-clicks", "nothing", "nobody"])
def test_places_without_targets(lists: list[list[int]], ordered: bool) -> None:
    places = Places.of(Histories.from_lists(lists), ordered, 50)
    assert len(places.target) == 0
    vectors = torch.ones(len(places.clicks.items), 2)
    assert torch.equal(places.weighted(vectors, 0.5), torch.zeros_like(vectors))
