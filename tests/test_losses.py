"""Ranking losses against their formulas, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dense import cross_entropy, softplus
from graphllmrec.nn import losses
from graphllmrec.nn.losses import (
    bpr_loss,
    click_scores,
    contrast_loss,
    direct_au_loss,
    drawn_softmax_loss,
    grouped_softmax_loss,
    in_batch_softmax_loss,
    log_partition,
    sampled_softmax_loss,
    slk_loss,
    slk_refresh_due,
    slk_thresholds,
    softmax_loss,
)

BATCH, ITEMS = 5, 7
RANDOM = np.random.default_rng(2)
SCORES = RANDOM.normal(0, 2, (BATCH, ITEMS)).astype(np.float32)
TARGETS = [3, 0, 6, 3, 1]


def positives() -> torch.Tensor:
    return torch.from_numpy(SCORES[np.arange(BATCH), TARGETS])


def full_loss(row: int) -> float:
    return cross_entropy(SCORES[row].astype(float).tolist(), TARGETS[row])


def test_bpr_is_minus_log_sigmoid_of_the_difference() -> None:
    positive, negative = torch.from_numpy(SCORES[:, 0]), torch.from_numpy(SCORES[:, 1])
    expected = 0.0
    for row in range(BATCH):
        expected += softplus(float(SCORES[row, 1]) - float(SCORES[row, 0])) / BATCH
    assert float(bpr_loss(positive, negative)) == pytest.approx(expected, abs=1e-6)


def test_bpr_stays_finite_where_the_formula_overflows() -> None:
    positive, negative = torch.tensor([-500.0, 500.0], requires_grad=True), torch.tensor([500.0, -500.0])
    loss = bpr_loss(positive, negative)
    assert float(loss.detach()) == pytest.approx(500)  # 1000 for the first, 0 for the second
    loss.backward()
    assert positive.grad is not None
    assert positive.grad.tolist() == [-0.5, 0.0]


def test_bpr_gradient_is_sigmoid_of_minus_the_difference() -> None:
    positive = torch.from_numpy(SCORES[:, 0]).requires_grad_()
    bpr_loss(positive, torch.from_numpy(SCORES[:, 1])).backward()
    assert positive.grad is not None
    for row in range(BATCH):
        wanted = -1 / (1 + math.exp(float(SCORES[row, 0]) - float(SCORES[row, 1]))) / BATCH
        assert float(positive.grad[row]) == pytest.approx(wanted, abs=1e-6)


def test_softmax_is_the_cross_entropy_among_all_items() -> None:
    found = float(softmax_loss(torch.from_numpy(SCORES), torch.tensor(TARGETS)))
    assert found == pytest.approx(sum(full_loss(row) for row in range(BATCH)) / BATCH, abs=1e-6)


def test_sampled_softmax_weighs_every_draw_by_the_items_it_stands_for() -> None:
    draws = RANDOM.normal(size=(BATCH, 3)).astype(np.float32)
    expected = 0.0
    for row in range(BATCH):
        positive = float(SCORES[row, TARGETS[row]])
        partition = math.exp(positive) + sum(ITEMS / 3 * math.exp(float(draw)) for draw in draws[row])
        expected += (math.log(partition) - positive) / BATCH
    found = float(sampled_softmax_loss(positives(), torch.from_numpy(draws), ITEMS))
    assert found == pytest.approx(expected, abs=1e-6)


def hidden(drawn: list[int]) -> torch.Tensor:
    """Scores of the drawn items for every row, -inf where the draw is the row's own target."""
    scores = torch.from_numpy(SCORES)[:, drawn]
    return scores.masked_fill(torch.tensor(drawn)[None, :] == torch.tensor(TARGETS)[:, None], -torch.inf)


def test_sampled_softmax_is_the_full_one_when_every_item_is_drawn() -> None:
    found = float(sampled_softmax_loss(positives(), hidden(list(range(ITEMS))), ITEMS))
    assert found == pytest.approx(sum(full_loss(row) for row in range(BATCH)) / BATCH, abs=1e-6)


def test_sampled_softmax_estimates_the_partition_function_without_bias() -> None:
    """exp(loss) = Z / exp(s_ui). Its mean over all equally likely draws is that of the full softmax."""
    for row in range(BATCH):
        found = [
            math.exp(sampled_softmax_loss(positives()[row : row + 1], hidden([first, second])[row : row + 1], ITEMS))
            for first in range(ITEMS)
            for second in range(ITEMS)
        ]
        assert sum(found) / len(found) == pytest.approx(math.exp(full_loss(row)), rel=1e-6)


def test_in_batch_softmax_takes_the_other_targets_as_negatives() -> None:
    scores = RANDOM.normal(size=(BATCH, BATCH)).astype(np.float32)
    expected = 0.0
    for row in range(BATCH):  # rows 0 and 3 have the same target: neither is the other's negative
        others = [column for column in range(BATCH) if column == row or TARGETS[column] != TARGETS[row]]
        values = [float(scores[row, column]) for column in others]
        expected += cross_entropy(values, others.index(row)) / BATCH
    found = float(in_batch_softmax_loss(torch.from_numpy(scores), torch.tensor(TARGETS)))
    assert found == pytest.approx(expected, abs=1e-6)


def test_in_batch_softmax_of_one_item_only_is_zero_and_has_a_gradient_of_zero() -> None:
    scores = torch.randn(3, 3, requires_grad=True)
    loss = in_batch_softmax_loss(scores, torch.tensor([4, 4, 4]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0] * 3] * 3


def test_losses_leave_their_arguments_alone() -> None:
    scores, targets = torch.randn(4, 4), torch.tensor([1, 2, 1, 0])
    before = scores.clone()
    in_batch_softmax_loss(scores, targets)
    assert torch.equal(scores, before)
    assert targets.tolist() == [1, 2, 1, 0]


def test_in_batch_softmax_takes_popularity_back_from_the_negatives() -> None:
    """Σ over negatives of exp(s - log clicks): draws in proportion to clicks become draws alike."""
    scores = RANDOM.normal(size=(BATCH, BATCH)).astype(np.float32)
    clicks = np.array([4.0, 1.0, 9.0, 4.0, 2.0])
    expected = 0.0
    for row in range(BATCH):
        partition = math.exp(float(scores[row, row]))
        for column in range(BATCH):
            if column != row and TARGETS[column] != TARGETS[row]:
                partition += math.exp(float(scores[row, column])) / clicks[column]
        expected += (math.log(partition) - float(scores[row, row])) / BATCH
    found = in_batch_softmax_loss(
        torch.from_numpy(scores), torch.tensor(TARGETS), torch.from_numpy(np.log(clicks)).float()
    )
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "held", [1, 40, 5_000_000]
)  # numbers in a block of scores: many blocks, a ragged last one, one
def test_log_partition_and_its_gradients_are_those_of_logsumexp(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(losses, "BLOCK", {"cpu": held})
    queries = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    items = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(50, dtype=torch.float64)
    found = log_partition(queries, items)
    by_hand = [math.log(sum(math.exp(float(q @ v)) for v in items.detach())) for q in queries.detach()]
    np.testing.assert_allclose(found.detach().numpy(), by_hand, atol=1e-12)
    grads = torch.autograd.grad((found * weight).sum(), (queries, items))
    wanted = torch.autograd.grad((torch.logsumexp(queries @ items.T, 1) * weight).sum(), (queries, items))
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_log_partition_stays_finite_where_exp_overflows() -> None:
    queries = torch.tensor([[300.0, 0.0], [-300.0, 0.0], [0.0, 0.0]], requires_grad=True)
    found = log_partition(queries, torch.tensor([[1.0, 0.0], [0.9, 0.0]]))
    assert found.tolist() == pytest.approx([300, -270, math.log(2)])
    found.sum().backward()
    assert queries.grad is not None
    assert queries.grad[:, 0].tolist() == pytest.approx([1.0, 0.9, 0.95])


ROW = torch.tensor([0, 0, 1, 1, 1, 4])  # whose click
ITEM = [3, 1, 0, 2, 6, 5]
WEIGHT = np.array([1.0, 0.5, 2.0, 1.0, 0.25, 3.0])


def of_clicks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = torch.from_numpy(SCORES)
    return torch.logsumexp(scores, 1), scores[ROW, ITEM], ROW, torch.from_numpy(WEIGHT).float()


def test_grouped_softmax_is_the_weighted_mean_over_clicks() -> None:
    each = [
        cross_entropy(SCORES[row].astype(float).tolist(), item) for row, item in zip(ROW.tolist(), ITEM, strict=True)
    ]
    expected = sum(w * value for w, value in zip(WEIGHT, each, strict=True)) / sum(WEIGHT)
    assert float(grouped_softmax_loss(*of_clicks())) == pytest.approx(expected, abs=1e-6)


def test_slk_counts_a_click_by_how_surely_it_is_among_the_best() -> None:
    threshold, expected = RANDOM.normal(size=BATCH).astype(np.float32), 0.0
    for row, item, weight in zip(ROW.tolist(), ITEM, WEIGHT, strict=True):
        within = 1 / (1 + math.exp(-(float(SCORES[row, item]) - float(threshold[row])) / 1.5))
        expected += weight * within * cross_entropy(SCORES[row].astype(float).tolist(), item) / sum(WEIGHT)
    assert float(slk_loss(*of_clicks(), torch.from_numpy(threshold), 1.5)) == pytest.approx(expected, abs=1e-6)


QUERIES, VECTORS = RANDOM.normal(size=(BATCH, 4)), RANDOM.normal(size=(ITEMS, 4))
BIAS = RANDOM.normal(size=ITEMS)


def biased(row: int) -> list[float]:
    """Scores of all items for one query: a product and a bias."""
    return [float(QUERIES[row] @ VECTORS[item] + BIAS[item]) for item in range(ITEMS)]


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries, items, bias = (torch.from_numpy(values).float() for values in (QUERIES, VECTORS, BIAS))
    return queries, items, bias


def test_scores_of_clicks_come_with_the_partition_over_all_items() -> None:
    partition, positive = click_scores(*tensors(), ROW, torch.tensor(ITEM))
    for row in range(BATCH):
        assert float(partition[row]) == pytest.approx(math.log(sum(math.exp(s) for s in biased(row))), abs=1e-6)
    for place, (row, item) in enumerate(zip(ROW.tolist(), ITEM, strict=True)):
        assert float(positive[place]) == pytest.approx(biased(row)[item], abs=1e-6)


@pytest.mark.parametrize("cutoff", [1, 3, 20])
def test_thresholds_of_slk_are_the_kth_largest_scores(monkeypatch: pytest.MonkeyPatch, cutoff: int) -> None:
    monkeypatch.setattr(losses, "SLK_CUTOFF", cutoff)
    monkeypatch.setattr(losses, "_ROWS", 2)  # blocks of queries, the last one smaller
    expected = [sorted(biased(row))[-min(cutoff, ITEMS)] for row in range(BATCH)]
    np.testing.assert_allclose(slk_thresholds(*tensors()).numpy(), expected, atol=1e-6)


def test_thresholds_are_due_before_the_first_step_of_every_twentieth_epoch() -> None:
    assert [epoch for epoch in range(50) if slk_refresh_due(epoch, 0)] == [0, 20, 40]
    assert not slk_refresh_due(20, 1)


def test_drawn_softmax_leaves_out_draws_of_the_target() -> None:
    drawn = [3, 5, 3, 0]
    queries, items, bias = tensors()
    nodes = torch.tensor([*TARGETS, *drawn])
    expected = 0.0
    for row, target in enumerate(TARGETS):
        scores = biased(row)
        others = sum(ITEMS / len(drawn) * math.exp(scores[item]) for item in drawn if item != target)
        expected += (math.log(math.exp(scores[target]) + others) - scores[target]) / BATCH
    found = drawn_softmax_loss(queries, items[nodes], bias[nodes], nodes, ITEMS)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def units(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(RANDOM.normal(size=(count, 3)).astype(np.float32)), dim=1)


def test_direct_au_draws_pairs_together_and_everything_else_apart() -> None:
    queries, targets = units(BATCH), units(BATCH)
    aligned = sum(float(((q - v) ** 2).sum()) for q, v in zip(queries, targets, strict=True)) / BATCH
    spread = 0.0
    for side in (queries, targets):
        pairs = [(a, b) for b in range(BATCH) for a in range(b)]
        spread += (
            math.log(sum(math.exp(-2 * float(((side[a] - side[b]) ** 2).sum())) for a, b in pairs) / len(pairs)) / 2
        )
    assert float(direct_au_loss(queries, targets, 0.7)) == pytest.approx(aligned + 0.7 * spread, abs=1e-5)
    assert float(direct_au_loss(queries[:1], queries[:1])) == 0


def test_direct_au_of_two_has_one_pair() -> None:
    queries, targets = units(2), units(2)
    pair = sum(-float(((side[0] - side[1]) ** 2).sum()) for side in (queries, targets))  # log exp(-2 d²) / 2
    aligned = float(((queries - targets) ** 2).sum()) / 2
    assert float(direct_au_loss(queries, targets, 0.7)) == pytest.approx(aligned + 0.7 * pair, abs=1e-5)


def test_contrast_tells_a_nodes_two_views_from_those_of_others() -> None:
    first, second = units(4), 5 * units(4)  # length plays no part
    expected = 0.0
    for row in range(4):
        cosines = [float(first[row] @ other / other.norm()) / 0.2 for other in second]
        expected += cross_entropy(cosines, row) / 4
    assert float(contrast_loss(first, second)) == pytest.approx(expected, abs=1e-5)
