"""Ranking: exact, without favour in ties, and refusing scores that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphllmrec.data.tables import Histories
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.rank import _tie_order, best, rank_targets, top_k
from graphllmrec.protocol import Queries

NOTHING = Histories.from_lists([[]])


class Fixed:
    """A "model" that answers with rows of a matrix, as a view of its own memory."""

    name = "fixed"

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def scores(self, queries: Queries) -> torch.Tensor:
        return self.matrix[queries.users[0] : queries.users[0] + len(queries)]


class Branched(Fixed):
    branches = ("graph", "text")
    config_class = config = abilities = None

    def branch_scores(self, queries: Queries, branch: str) -> torch.Tensor:
        return self.scores(queries) * (1 if branch == "graph" else -1)

    def fit(self, task): ...
    def state(self): ...
    def restore(self, state): ...
    def with_items(self, text): ...


def plain_ranking(scores: np.ndarray, seen: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, by sorting whole rows."""
    order = _tie_order(scores.shape[1]).numpy()
    items, values = np.full((len(scores), k), -1), np.full((len(scores), k), -np.inf, dtype=np.float32)
    for row in range(len(scores)):
        left = [item for item in range(scores.shape[1]) if item not in seen[row] and scores[row, item] > -np.inf]
        left.sort(key=lambda item: (-scores[row, item], order[item]))
        items[row, : len(left[:k])] = left[:k]
        values[row, : len(left[:k])] = scores[row, left[:k]]
    return items, values


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.sampled_from([1, 5, 63, 700, 1030, 4000]),
    k=st.sampled_from([1, 3, 20]),
    levels=st.sampled_from([1, 2, 4, 50, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_equals_sorting_every_row_with_and_without_ties(num_items, k, levels, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, (4, num_items)).astype(np.float32)
    scores[random.random(scores.shape) < 0.1] = -np.inf
    seen = Histories.from_lists([np.unique(random.integers(0, num_items, random.integers(0, 30))) for _ in range(4)])
    items, values = best(torch.from_numpy(scores), seen, k)
    expected_items, expected_values = plain_ranking(scores, seen, k)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_array_equal(values, expected_values)


def test_large_catalogue_is_exact():
    scores = torch.randn(3, 20_011, generator=torch.Generator().manual_seed(1))
    items, values = best(scores, Histories.from_lists([[], [5], []]), 100)
    expected_items, expected_values = plain_ranking(scores.numpy(), Histories.from_lists([[], [5], []]), 100)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_array_equal(values, expected_values)


def test_the_scores_are_left_as_they_were_also_when_a_model_answers_with_a_view():
    matrix = torch.arange(12.0).reshape(3, 4)
    kept = matrix.clone()
    seen = Histories.from_lists([[3, 3], [0], []])
    items, _ = top_k(Fixed(matrix), Queries(np.arange(3), seen), seen, 2)
    np.testing.assert_array_equal(items, [[2, 1], [3, 2], [3, 2]])
    assert torch.equal(matrix, kept)
    expanded = torch.arange(4.0).expand(3, 4)  # what a popularity model answers: one row seen three times
    np.testing.assert_array_equal(best(expanded, seen, 2)[0], [[2, 1], [3, 2], [3, 2]])
    assert torch.equal(expanded[0], torch.arange(4.0))


def test_k_beyond_what_is_left_is_padded():
    items, values = best(torch.tensor([[1.0, 2.0, 3.0]]), Histories.from_lists([[2]]), 5)
    np.testing.assert_array_equal(items, [[1, 0, -1, -1, -1]])
    np.testing.assert_array_equal(values, np.float32([[2, 1, -np.inf, -np.inf, -np.inf]]))


def test_an_item_with_score_minus_infinity_is_not_recommended():
    items, _ = best(torch.tensor([[1.0, -torch.inf, 3.0]]), NOTHING, 3)
    np.testing.assert_array_equal(items, [[2, 0, -1]])


def test_constant_scores_rank_at_chance():
    num_items, k = 2_000, 20
    items, _ = best(torch.zeros(1, num_items), NOTHING, k)
    popular_first = np.arange(k)  # files are often sorted by popularity or by age: low rows must not profit
    assert len(np.intersect1d(items, popular_first)) <= 2
    assert 700 < items.mean() < 1_300


def test_ties_keep_their_order_when_items_are_appended():
    before = best(torch.zeros(1, 50), NOTHING, 50)[0][0]
    after = best(torch.zeros(1, 60), NOTHING, 60)[0][0]
    np.testing.assert_array_equal(after[after < 50], before)


def test_batch_size_does_not_change_the_answer():
    scores = torch.randn(70, 3_000, generator=torch.Generator().manual_seed(2))
    seen = Histories.from_lists([[row, row + 1] for row in range(70)])
    queries = Queries(np.arange(70), seen)
    whole = top_k(Fixed(scores), queries, seen, 10)
    for size in (1, 33):
        parts = top_k(Fixed(scores), queries, seen, 10, batch_size=size)
        np.testing.assert_array_equal(parts[0], whole[0])
        np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize("num_items", [10, 3_000])
def test_nan_scores_name_model_and_user(num_items):
    scores = torch.zeros(3, num_items)
    scores[1, 7] = torch.nan
    seen = Histories.from_lists([[], [], []])
    with pytest.raises(EvaluationError, match="fixed returned NaN scores for user row 1"):
        top_k(Fixed(scores), Queries(np.arange(3), seen), seen, 2)


def test_impossible_requests_are_refused():
    queries = Queries(np.arange(2), Histories.from_lists([[], []]))
    with pytest.raises(ValueError, match="1 rows of seen items for 2 queries"):
        top_k(Fixed(torch.zeros(2, 3)), queries, NOTHING, 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(Fixed(torch.zeros(2, 3)), queries, queries.histories, 0)
    with pytest.raises(EvaluationError, match=r"shape \(1, 3\) for 2 queries"):
        top_k(Fixed(torch.zeros(1, 3)), queries, queries.histories, 2)
    with pytest.raises(EvaluationError, match="fixed scored 3 items; the catalogue has 4"):
        top_k(Fixed(torch.zeros(2, 3)), queries, queries.histories, 2, num_items=4)


def test_a_branch_is_ranked_alone_and_an_unknown_one_refused():
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    queries = Queries(np.arange(1), NOTHING)
    assert top_k(Branched(scores), queries, NOTHING, 1, branch="graph")[0] == 2
    assert top_k(Branched(scores), queries, NOTHING, 1, branch="text")[0] == 0
    with pytest.raises(EvaluationError, match=r"no branch 'vision' .* \(branches: graph, text\)"):
        top_k(Branched(scores), queries, NOTHING, 1, branch="vision")
    with pytest.raises(EvaluationError, match=r"fixed has no branch 'text' .* \(branches: none\)"):
        top_k(Fixed(scores), queries, NOTHING, 1, branch="text")


def test_rank_of_every_target():
    lists = np.array([[4, 2, 0], [1, -1, -1], [-1, -1, -1]])
    targets = Histories.from_lists([[0, 3, 4], [1, 4], [0]])
    np.testing.assert_array_equal(rank_targets(lists, targets), [3, 0, 1, 1, 0, 0])


def test_an_empty_place_of_a_list_is_no_item():
    """Also not the item that its filler, or a sum with it, would be the number of."""
    lists = np.array([[-1, -1, -1], [3, -1, -1]])
    for item in range(4):
        targets = Histories.from_lists([[item], [item]])
        np.testing.assert_array_equal(rank_targets(lists, targets), [0, int(item == 3)])


def test_items_that_are_not_allowed_are_in_no_list():
    scores, queries = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), Queries(np.arange(1), NOTHING)
    items, values = top_k(Fixed(scores), queries, NOTHING, 3, allowed=np.array([False, True, True, False]))
    assert items.tolist() == [[2, 1, -1]]
    assert values.tolist() == [[2.0, 1.0, -np.inf]]
