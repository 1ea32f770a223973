"""Ranking losses against their formulas, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dense import cross_entropy, softplus
from graphllmrec.train.losses import bpr_loss, in_batch_softmax_loss, sampled_softmax_loss, softmax_loss

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
    for row in range(BATCH):  # rows 0 and 3 ask for the same item: neither is the other's negative
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
