"""Every metric against a transcription of its definition with loops, on hand-made rankings."""

from __future__ import annotations

import doctest
import math
from types import ModuleType

import numpy as np
import pytest
import torch

from graphllmrec.data.tables import Histories
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation import metrics, rank
from graphllmrec.evaluation.metrics import (
    METRICS,
    catalogue_metrics,
    discounts,
    gains,
    gini,
    hit_matrix,
    ideal_dcg,
    ideal_gains,
    mean_interval,
    parse_metric,
    user_metrics,
)
from graphllmrec.evaluation.rank import rank_of_target, rank_targets

LISTS = np.array([[3, 1, 4, 0, 5], [2, 7, 1, 8, 6], [0, 1, 2, 3, 4], [6, 2, -1, -1, -1], [9, 8, 7, 6, 5]])
TARGETS = [[1], [8, 9, 2], [7], [2], [5, 6, 7, 8, 9, 0, 1]]  # one, several, missed, in a short list, more than places
K = 5


def looped(metric: str, ranking: list[int], targets: list[int], k: int) -> float:
    """One user, the definition word by word."""
    hits_so_far, first, precisions, gain = 0, 0, 0.0, 0.0
    for place in range(1, k + 1):
        if ranking[place - 1] in targets:
            hits_so_far += 1
            first = first or place
            precisions += hits_so_far / place
            gain += 1 / math.log2(place + 1)
    possible = min(k, len(targets))
    return {
        "hr": 1.0 if hits_so_far else 0.0,
        "recall": hits_so_far / len(targets),
        "precision": hits_so_far / k,
        "mrr": 1 / first if first else 0.0,
        "map": precisions / possible,
        "ndcg": gain / sum(1 / math.log2(place + 1) for place in range(1, possible + 1)),
    }[metric]


def hits_of(lists: np.ndarray, targets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    histories = Histories.from_lists(targets)
    ranks = rank_targets(lists, histories)
    return hit_matrix(histories.row_of_entry, ranks, len(lists), lists.shape[1]), histories.lengths


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_golden(metric, k):
    hits, counts = hits_of(LISTS, TARGETS)
    expected = [looped(metric, LISTS[user].tolist(), TARGETS[user], k) for user in range(len(LISTS))]
    np.testing.assert_allclose(user_metrics(hits, counts, [k])[f"{metric}@{k}"], expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_golden_on_random_rankings(metric):
    random = np.random.default_rng(5)
    lists = np.stack([random.permutation(30)[:10] for _ in range(40)])
    targets = [random.permutation(30)[: random.integers(1, 15)].tolist() for _ in range(40)]
    hits, counts = hits_of(lists, targets)
    expected = [looped(metric, lists[user].tolist(), targets[user], 10) for user in range(40)]
    np.testing.assert_allclose(METRICS[metric](hits, counts), expected, atol=1e-12)


def test_perfect_and_empty_lists():
    hits, counts = hits_of(np.array([[1, 2, 3], [-1, -1, -1]]), [[1, 2, 3, 4], [0]])
    best = {name: metric(hits, counts) for name, metric in METRICS.items()}
    assert best["ndcg"][0] == best["map"][0] == best["precision"][0] == best["mrr"][0] == best["hr"][0] == 1.0
    assert best["recall"][0] == 0.75
    assert all(values[1] == 0.0 for values in best.values())


def test_with_one_target_names_coincide():
    random = np.random.default_rng(1)
    lists = np.stack([random.permutation(12)[:5] for _ in range(50)])
    hits, counts = hits_of(lists, [[int(random.integers(12))] for _ in range(50)])
    values = user_metrics(hits, counts, [5])
    np.testing.assert_array_equal(values["hr@5"], values["recall@5"])
    np.testing.assert_array_equal(values["map@5"], values["mrr@5"])


def test_golden_catalogue_metrics():
    degree = np.array([4, 0, 2, 1, 1])
    lists = np.array([[0, 2, 1], [0, 3, -1]])
    values = catalogue_metrics(lists, degree, [2, 3])
    assert values["coverage@3"] == 4 / 5
    assert values["coverage@2"] == 3 / 5
    bits = [-math.log2(4 / 8), -math.log2(2 / 8), -math.log2(1 / 8), -math.log2(4 / 8), -math.log2(1 / 8)]
    assert values["novelty@3"] == pytest.approx(sum(bits) / 5)
    counts = [2, 1, 1, 1, 0]  # Gini = mean absolute difference of all pairs / (2 · mean)
    differences = sum(abs(a - b) for a in counts for b in counts) / 25
    assert values["gini@3"] == pytest.approx(differences / (2 * sum(counts) / 5))


def test_novelty_without_clicks_or_without_recommendations_is_zero():
    assert metrics.novelty(np.array([[0, 1]]), degree=np.array([0, 0, 0])) == 0
    assert metrics.novelty(np.array([[-1, -1]]), degree=np.array([4, 2, 1])) == 0


def test_gini_ends():
    assert gini(np.arange(10).reshape(5, 2), np.ones(10)) == pytest.approx(0.0)
    assert gini(np.zeros((5, 1), dtype=np.int64), np.ones(1000)) == pytest.approx(0.999)
    assert gini(np.full((2, 2), -1), np.ones(3)) == 0.0


def test_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        low, high = mean_interval((random.random(300) < 0.2).astype(float))
        inside += low <= 0.2 <= high
    assert 0.92 <= inside / 400 <= 0.98


@pytest.mark.parametrize("values", [[0.2, 0.6], [0.4, 0.5, 0.7, 0.4], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
def test_interval_by_hand(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = 1.959964 * math.sqrt(variance / len(values))
    expected = (max(mean - half, 0), min(mean + half, 1))
    assert mean_interval(np.array(values)) == pytest.approx(expected, abs=1e-12)


def test_interval_of_one_user_says_nothing():
    assert mean_interval(np.array([1.0])) == (0.0, 1.0)


def test_metric_names():
    assert parse_metric("ndcg@20") == ("ndcg", 20)
    assert parse_metric("hr@1") == ("hr", 1)
    for wrong in ("ndcg", "auc@10", "ndcg@0", "ndcg@x", "@5"):
        with pytest.raises(EvaluationError, match=r"unknown metric .*hr, recall, ndcg, mrr, map, precision"):
            parse_metric(wrong)


@pytest.mark.parametrize("module", [metrics, rank], ids=["metrics", "rank"])
def test_the_worked_examples_in_the_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_a_metric_without_a_worked_example_is_noticed() -> None:
    functions = [*METRICS.values(), *metrics.CATALOGUE_METRICS.values()]
    assert [each.__name__ for each in functions if ">>>" not in (each.__doc__ or "")] == []


@pytest.mark.parametrize("k", [1, 3, 20])
def test_gains_from_ranks_are_the_discounts_of_lists(k: int) -> None:
    places = torch.arange(1, 2 * k + 1)
    expected = np.concatenate([discounts(k), np.zeros(k)])
    np.testing.assert_allclose(gains(places, k).numpy(), expected, rtol=1e-6)
    counts = np.arange(1, 2 * k + 1)
    np.testing.assert_allclose(ideal_gains(torch.from_numpy(counts), k).numpy(), ideal_dcg(counts, k), rtol=1e-6)


def test_equal_scores_count_against_a_target_that_is_ranked_without_a_list() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.5, 0.1], [3.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    own = torch.tensor([[0.5], [4.0], [0.0]])
    assert rank_of_target(scores, own).tolist() == [2, 1, 4]
    rivals = torch.tensor([[True, True, True, True], [True, True, True, False], [False, False, True, True]])
    assert rank_of_target(scores, own, rivals).tolist() == [3, 1, 3]  # the first one's target is none of the columns
    assert rank_of_target(scores - own, 0.0, rivals).tolist() == [3, 1, 3]
