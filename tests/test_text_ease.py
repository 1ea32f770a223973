"""Text-EASE against the equations of L3AE, solved directly by NumPy, and what it does with items without clicks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphllmrec.data.tables import Histories
from graphllmrec.errors import RecipeError, TextError
from graphllmrec.models.baselines import ease
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, Task, TextVectors
from tiny import CLICKS, DECAY, DIM, ITEMS, SPLIT, TASK, TEXT, TRAIN, Notes, assert_scores, faded, fitted, interactions
from world import block_world

L2, WEIGHT, TEXT_L2 = 3.0, 5.0, 0.7
SETTINGS = {"l2": L2, "text_weight": WEIGHT, "text_l2": TEXT_L2, "directed": 0.0, "decay": DECAY}
MORE = TextVectors(torch.randn(2, DIM, generator=torch.Generator().manual_seed(8)), torch.ones(2, dtype=torch.bool))
UNCLICKED = 4
COLD_TRAIN = [walk[walk != UNCLICKED] for walk in TRAIN]
COLD_TASK = Task(replace(SPLIT, train=interactions(COLD_TRAIN, 0)), TEXT)


def unit_rows(text: TextVectors) -> np.ndarray:
    rows = text.vectors.double().numpy()
    return np.array([row / np.linalg.norm(row) if row.any() else row for row in rows])


def regressed(rows: np.ndarray, target: int) -> np.ndarray:
    """One column of C: the text of an item by ridge regression on those of all others; 0 for itself."""
    others = [item for item in range(len(rows)) if item != target]
    inputs = rows[others].T  # (text_dim, num_items - 1)
    found = np.linalg.solve(inputs.T @ inputs + TEXT_L2 * np.eye(len(others)), inputs.T @ rows[target])
    column = np.zeros(len(rows))
    column[others] = found
    return column


def text_weights(rows: np.ndarray) -> np.ndarray:
    return np.stack([regressed(rows, target) for target in range(len(rows))], axis=1)


def weights_of(clicks: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """B by L3AE, equation by equation."""
    inverse = np.linalg.inv(clicks.T @ clicks + L2 * np.eye(len(pull)))
    product = inverse @ pull
    weights = np.zeros_like(pull)
    for i in range(len(pull)):
        for j in range(len(pull)):
            if i != j:
                quotient = (1 + WEIGHT * product[j, j]) / inverse[j, j]
                weights[i, j] = WEIGHT * product[i, j] - inverse[i, j] * quotient
    return weights


def test_weights_are_the_closed_form() -> None:
    model = fitted("text-ease", **SETTINGS)
    assert_scores(model, faded(weights_of(CLICKS, text_weights(unit_rows(TEXT)))))


def test_directed_weights_regress_each_click_on_the_faded_past() -> None:
    """Column by column: the normal equations without the item itself, instead of the closed form."""
    share, past, following = 0.4, np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for walk in TRAIN:
        for place in range(1, len(walk)):
            source = np.zeros(ITEMS)
            for step, item in enumerate(reversed(walk[:place])):
                source[item] = 0.7**step
            past += np.outer(source, source)
            following[:, walk[place]] += source
    pull = text_weights(unit_rows(TEXT))
    gram = (1 - share) * CLICKS.T @ CLICKS + share * past + L2 * np.eye(ITEMS)
    moment = (1 - share) * CLICKS.T @ CLICKS + share * following + WEIGHT * pull
    expected = np.zeros((ITEMS, ITEMS))
    for target in range(ITEMS):
        others = [item for item in range(ITEMS) if item != target]
        expected[others, target] = np.linalg.solve(gram[np.ix_(others, others)], moment[others, target])
    assert_scores(fitted("text-ease", **SETTINGS | {"directed": share}), faded(expected))


def test_clicks_without_an_order_have_no_past() -> None:
    split = replace(SPLIT, train=replace(SPLIT.train, order=None), ordered=False)
    notes = Notes()
    model = fitted("text-ease", Task(split, TEXT, logger=notes), **SETTINGS | {"directed": 0.4, "decay": 1.0})
    assert notes.events["directed-ignored"]["reason"] == "the interactions have no order"
    assert torch.equal(model.weights, fitted("text-ease", **SETTINGS).weights)
    tuned = fitted("text-ease", Task(split, TEXT), l2=L2, text_weight=WEIGHT, text_l2=TEXT_L2, directed="tune")
    assert torch.equal(model.weights, tuned.weights)


def test_weights_minimise_the_objective() -> None:
    weights = fitted("text-ease", **SETTINGS).weights.double().numpy()
    pull = text_weights(unit_rows(TEXT))

    def objective(candidate: np.ndarray) -> float:  # λx = l2 - λe is negative here
        ridge = (L2 - WEIGHT) * (candidate**2).sum() + WEIGHT * ((candidate - pull) ** 2).sum()
        return float(((CLICKS - CLICKS @ candidate) ** 2).sum() + ridge)

    random = np.random.default_rng(6)
    for _ in range(20):
        nudge = random.normal(0, 0.01, weights.shape)
        np.fill_diagonal(nudge, 0)
        assert objective(weights + nudge) > objective(weights)


def test_without_weight_of_the_text_it_is_ease() -> None:
    model = fitted("text-ease", l2=L2, text_weight=0.0, directed=0.0, decay=DECAY)
    torch.testing.assert_close(model.weights, fitted("ease", l2=L2, decay=DECAY).weights, rtol=1e-5, atol=1e-6)


def test_an_item_without_clicks_has_the_weights_of_its_text() -> None:
    clicks = CLICKS.copy()
    clicks[:, UNCLICKED] = 0
    pull = text_weights(unit_rows(TEXT))
    expected = weights_of(clicks, pull)
    np.testing.assert_allclose(  # its row is that of its text already
        expected[UNCLICKED], WEIGHT / L2 * pull[UNCLICKED], atol=1e-12
    )
    expected[:, UNCLICKED] = WEIGHT / L2 * pull[:, UNCLICKED]
    assert_scores(fitted("text-ease", COLD_TASK, **SETTINGS), faded(expected))


def test_a_new_item_scores_as_if_it_had_been_in_the_catalogue() -> None:
    """Its column is exact; in its row, the texts of the others are those that the fit knew."""
    one = TextVectors(MORE.vectors[:1], MORE.present[:1])
    model = fitted("text-ease", **SETTINGS).with_items(one)
    rows = np.concatenate([unit_rows(TEXT), unit_rows(one)])
    column = WEIGHT / L2 * regressed(rows, ITEMS)  # (ITEMS + 1,)
    histories = [[item] for item in range(ITEMS + 1)]
    scores = model.scores(Queries.anonymous(Histories.from_lists(histories))).numpy()  # B, extended
    np.testing.assert_allclose(scores[:, ITEMS], column, atol=1e-6)
    pull = text_weights(unit_rows(TEXT))
    gram = unit_rows(TEXT).T @ unit_rows(TEXT) + TEXT_L2 * np.eye(DIM)
    for other in range(ITEMS):
        target = unit_rows(TEXT)[other]
        leverage = target @ np.linalg.solve(gram, target)
        expected = rows[ITEMS] @ np.linalg.solve(gram, target) / (1 - leverage)
        assert scores[ITEMS, other] == pytest.approx(WEIGHT / L2 * expected, abs=1e-6)
    np.testing.assert_allclose(scores[:ITEMS, :ITEMS], weights_of(CLICKS, pull), atol=1e-6)


def test_items_can_be_added_one_by_one_or_together() -> None:
    base = fitted("text-ease", **SETTINGS)
    halves = [TextVectors(MORE.vectors[[n]], MORE.present[[n]]) for n in range(2)]
    query = Queries.anonymous(Histories.from_lists([[0, ITEMS, 2], [ITEMS + 1], []]))
    together = base.with_items(MORE).scores(query)
    assert together.shape == (3, ITEMS + 2)
    torch.testing.assert_close(base.with_items(halves[0]).with_items(halves[1]).scores(query), together)
    assert together[1, ITEMS + 1] == pytest.approx(0.0, abs=1e-6)  # an item does not recommend itself
    wrong = TextVectors(torch.ones(1, DIM + 1), torch.ones(1, dtype=torch.bool))
    with pytest.raises(TextError, match=r"fitted on text vectors of 5 dimensions, these have 6: encode"):
        base.with_items(wrong)


def test_every_setting_is_tuned_on_validation() -> None:
    notes, world = Notes(), block_world()
    task = Task(world.split, world.text, logger=notes)
    model = fitted("text-ease", task, l2="tune", text_weight="tune", text_l2="tune", decay=1.0)  # and directed
    found = {name: notes.events[f"{name}-tuned"][name] for name in ("text_weight", "directed", "l2", "text_l2")}
    for name, value in found.items():
        tried = notes.events[f"{name}-tuned"]["tried"]
        assert tried[str(value)] == max(tried.values())
        assert task.findings.settings[f"text-ease/{name}"] == value
    assert torch.equal(model.weights, fitted("text-ease", Task(world.split, world.text), **found, decay=1.0).weights)


def test_a_penalty_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    inverse = ease.ridge_inverse
    monkeypatch.setattr(ease, "ridge_inverse", lambda *args: solved.append(args[1]) or inverse(*args))
    fitted("text-ease", l2=50.0, text_weight="tune", text_l2="tune", directed=0.5)
    assert solved == [50.0]


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "free_memory", lambda: 20_000_000_000)
    text = TextVectors(torch.ones(200_000, 1), torch.ones(200_000, dtype=torch.bool))
    huge = Task(replace(SPLIT, num_items=200_000), text)
    with pytest.raises(RecipeError, match=r"text-ease needs 480\.0 GB for 200,000 items \(12 bytes for every pair\)"):
        fitted("text-ease", huge)
    with pytest.raises(RecipeError, match=r"text-ease needs 320\.0 GB for 200,000 items \(8 bytes for every pair\)"):
        fitted("text-ease", huge, directed=0.0)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="text_l2 has no effect: it needs text_weight above 0"):
        build("text-ease", {"text_weight": 0.0, "text_l2": 3.0})


def test_text_is_needed() -> None:
    with pytest.raises(TextError, match="text-ease needs item text"):
        fitted("text-ease", Task(TASK.split))
