"""iALS against its normal equations, written as loops over dense matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import RecipeError
from graphllmrec.models.baselines import ials
from graphllmrec.models.baselines.ials import L2, UNTUNED_L2, IALSConfig, rotate, solve_rows
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, SilentLogger, Task
from tiny import CLICKS, ITEMS, QUERIES, QUERY, SPLIT, TASK, USERS, fitted
from world import block_world

RANDOM = np.random.default_rng(5)


def normal_equations(clicks: np.ndarray, vectors: np.ndarray, config: IALSConfig) -> np.ndarray:
    """The paper's half sweep: one dense system per row."""
    out = np.zeros((len(clicks), vectors.shape[1]))
    for row, clicked in enumerate(clicks):
        penalty = config.l2 * (sum(clicked) + config.unobserved * len(vectors)) ** config.frequency
        matrix, target = penalty * np.eye(vectors.shape[1]), np.zeros(vectors.shape[1])
        for item, vector in enumerate(vectors):
            matrix += (clicked[item] + config.unobserved) * np.outer(vector, vector)
            target += clicked[item] * vector
        out[row] = np.linalg.solve(matrix, target)
    return out


def wide() -> np.ndarray:
    """Clicks (30, 40) of 0 to 40 per row: fewer, as many and more than the dimensions."""
    clicks = np.zeros((30, 40))
    for row in range(30):
        clicks[row, RANDOM.permutation(40)[: row if row < 29 else 40]] = 1.0
    return clicks


@pytest.mark.parametrize("dim", [1, 8, 64])
@pytest.mark.parametrize(
    "settings", [{}, {"unobserved": 1.5, "l2": 0.1, "frequency": 0.5}, {"frequency": 0.0, "l2": 2}]
)
def test_a_half_sweep_solves_the_normal_equations(dim: int, settings: dict[str, float]) -> None:
    config, clicks, vectors = IALSConfig(**settings), wide(), RANDOM.normal(size=(40, dim)) * 0.3
    expected = normal_equations(clicks, vectors, config)
    rotated, spectrum = rotate(torch.from_numpy(vectors))
    found = solve_rows(sp.csr_array(clicks), rotated, spectrum, config, 40)
    assert found.dtype == torch.float64
    scores = found @ rotated.T  # the same in every basis
    torch.testing.assert_close(scores, torch.from_numpy(expected @ vectors.T), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(spectrum.diag(), rotated.T @ rotated, rtol=1e-6, atol=1e-9)


def test_batches_of_one_system_give_what_large_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = sp.csr_array(wide())
    rotated, spectrum = rotate(torch.from_numpy(RANDOM.normal(size=(40, 16))))
    whole = solve_rows(clicks, rotated, spectrum, IALSConfig(), 40)
    monkeypatch.setattr(ials, "_BLOCK", 1)
    torch.testing.assert_close(solve_rows(clicks, rotated, spectrum, IALSConfig(), 40), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dim", [3, 6])
def test_sweeps_from_the_same_start_are_the_loops(dim: int) -> None:
    settings = {"embedding_dim": dim, "unobserved": 0.2, "l2": 0.05, "frequency": 0.8}
    start = fitted("ials", sweeps=1, **settings)
    users = normal_equations(CLICKS, start.items.double().numpy(), start.config)
    items = normal_equations(CLICKS.T, users, start.config)  # the second sweep
    expected = normal_equations(CLICKS, items, start.config) @ items.T  # everybody folded in
    scores = fitted("ials", sweeps=2, **settings).scores(Queries.of(SPLIT.known("valid"), np.arange(USERS)))
    np.testing.assert_allclose(scores.numpy(), expected, atol=3e-6)


def test_a_sweep_lowers_the_papers_loss() -> None:
    def loss(sweeps: int) -> float:
        model = fitted("ials", embedding_dim=4, sweeps=sweeps, l2=0.01)
        items = model.items.double().numpy()
        users = normal_equations(CLICKS, items, model.config)
        scores, total = users @ items.T, 0.0
        for user in range(USERS):
            for item in range(ITEMS):
                total += CLICKS[user, item] * (scores[user, item] - 1) ** 2 + 0.01 * scores[user, item] ** 2
        for side, clicks in ((users, CLICKS), (items, CLICKS.T)):
            for vector, clicked in zip(side, clicks, strict=True):
                total += 0.01 * (sum(clicked) + 0.01 * len(clicked)) * sum(vector**2)
        return total

    losses = [loss(sweeps) for sweeps in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 1e-3


def test_strangers_are_folded_in_like_users_and_order_and_repeats_do_not_count() -> None:
    model = fitted("ials", embedding_dim=4)
    expected = np.zeros((len(QUERY), ITEMS))
    for row, history in enumerate(QUERY):
        expected[row, history] = 1.0
    items = model.items.double().numpy()
    folded = normal_equations(expected, items, model.config)
    np.testing.assert_allclose(model.query_vectors(QUERIES).numpy(), folded, atol=1e-6)
    assert not folded[3].any()  # an empty history
    known = Queries(np.array([2, 2]), Histories.from_lists([[1, 4, 7], [7, 7, 4, 1, 7]]))
    scores = model.scores(known)
    assert torch.equal(scores[0], scores[1])


def test_a_repeated_click_of_the_training_part_counts_once() -> None:
    train = SPLIT.train
    twice = Interactions(np.tile(train.user, 2), np.tile(train.item, 2)).sorted()
    model = fitted("ials", Task(replace(SPLIT, train=twice)), embedding_dim=4)
    assert torch.equal(model.items, fitted("ials", embedding_dim=4).items)


def test_items_without_clicks_are_zero_and_added_ones_change_nothing() -> None:
    train = SPLIT.train.where(SPLIT.train.item != 5)
    model = fitted("ials", Task(replace(SPLIT, train=train)), embedding_dim=4)
    assert not model.items[5].any()
    before = model.scores(QUERIES)
    model = model.with_items(TASK.text)
    scores = model.scores(QUERIES)
    torch.testing.assert_close(scores[:, :ITEMS], before, rtol=0, atol=1e-6)
    assert not scores[:, ITEMS:].any()
    asked = [np.append(history, ITEMS + 1) for history in QUERY]
    assert torch.equal(model.scores(Queries.anonymous(Histories.from_lists(asked))), scores)


def test_the_seed_decides_the_start_and_progress_is_told() -> None:
    class Bar(SilentLogger):
        def __init__(self) -> None:
            self.told: list[object] = []

        def begin(self, name: str, total: int | None = None) -> None:
            self.told.append((name, total))

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.told.append(steps)

    bar = Bar()
    first = fitted("ials", replace(TASK, logger=bar), embedding_dim=4, sweeps=3)
    assert bar.told == [("ials", 3), 1, 1, 1]
    assert torch.equal(first.items, fitted("ials", embedding_dim=4, sweeps=3).items)
    assert not torch.equal(first.items, fitted("ials", replace(TASK, seed=1), embedding_dim=4, sweeps=3).items)


def test_a_penalty_too_small_for_float32_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model\.l2: 1e-15 is too small for this data.*raise it"):
        fitted("ials", embedding_dim=4, l2=1e-15, unobserved=1e-9, init_scale=100.0)


def test_a_tuned_penalty_is_the_best_of_those_tried_and_is_kept() -> None:
    logged: dict[str, dict[str, Any]] = {}

    class Notes(SilentLogger):
        def log(self, event: str, **values: Any) -> None:
            logged[event] = values

    world = block_world()
    model = fitted("ials", Task(world.split, logger=Notes()), embedding_dim=8, sweeps=3, l2="tune")
    event = logged["l2-tuned"]
    assert list(event["tried"]) == [str(l2) for l2 in L2]
    best = max(L2, key=lambda l2: event["tried"][str(l2)])
    assert event["l2"] == best
    alone = fitted("ials", Task(world.split), embedding_dim=8, sweeps=3, l2=best)
    queries = Queries.of(world.split.known("test"), np.arange(10))
    assert torch.equal(model.scores(queries), alone.scores(queries))
    again = build("ials", model.config.model_dump())
    again.restore(model.state())
    assert torch.equal(again.scores(queries), model.scores(queries))  # strangers are folded in with the same penalty


def test_without_validation_the_usual_penalty_is_taken() -> None:
    nobody = replace(SPLIT, valid=SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool)))
    tuned, usual = (fitted("ials", Task(nobody), embedding_dim=4, l2=l2) for l2 in ("tune", UNTUNED_L2))
    assert torch.equal(tuned.item_vectors(), usual.item_vectors())
