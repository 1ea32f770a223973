"""What several models share: tuning by validation, newest clicks, negatives, the text they require."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphllmrec.data.tables import Histories
from graphllmrec.errors import TextError
from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.protocol import Task
from graphllmrec.rng import At
from graphllmrec.text.whiten import require_text
from graphllmrec.train.negatives import draw_negatives, mask_targets
from graphllmrec.train.validation import Trials, climb_setting, tune_setting, tuning_users
from tiny import SPLIT, TEXT, Notes, fitted


@pytest.mark.parametrize(
    ("heights", "best", "tried"),
    [
        ([1, 2, 3, 4, 5], 4, {2, 3, 4}),
        ([1, 2, 3, 4, 4], 3, {2, 3, 4}),
        ([5, 6, 3, 2, 9], 1, {2, 3, 1, 0}),  # a single top is what it looks for
        ([9, 3, 3, 3, 3], 2, {2, 3, 1}),
    ],
)
def test_a_setting_climbs_until_it_gets_no_better(heights: list[int], best: int, tried: set[int]) -> None:
    notes, seen = Notes(), []

    def trial(place: int) -> float:
        seen.append(place)
        return float(heights[place])

    found = climb_setting(fitted("item-knn"), Task(SPLIT, logger=notes), "l2", range(5), 2, trial)
    assert found == best
    assert set(seen) == tried
    assert len(seen) == len(tried)
    assert notes.events["l2-tuned"]["tried"] == {str(place): heights[place] for place in tried}


def test_histories_are_followed_by_an_item_and_joined() -> None:
    known = Histories.from_lists([[3, 1], [], [4]])
    longer = known.followed_by(np.array([7, 8, 9]))
    assert [longer[row].tolist() for row in range(3)] == [[3, 1, 7], [8], [4, 9]]
    both = Histories.joined([known, longer])
    assert [both[row].tolist() for row in range(6)] == [[3, 1], [], [4], [3, 1, 7], [8], [4, 9]]


def test_a_setting_is_tuned_by_validation_and_the_first_of_equals_wins() -> None:
    notes, model, kept = Notes(), fitted("item-knn", decay=1.0), []
    task = Task(SPLIT, logger=notes)
    expected = {}
    for decay in (0.4, 1.0, 0.2):
        model.decay = decay
        expected[decay] = validation_metric(model, SPLIT, users=tuning_users(SPLIT, 0))

    def apply(decay: float) -> None:
        model.decay = decay

    best = tune_setting(model, task, "decay", [0.4, 1.0, 0.2], apply, keep=lambda: kept.append(model.decay))
    assert best == max(expected, key=lambda decay: expected[decay])
    assert kept[0] == 0.4
    assert kept[-1] == best
    assert notes.events["decay-tuned"] == {
        "model": "item-knn", "decay": best, "tried": {str(decay): value for decay, value in expected.items()},
    }  # fmt: skip
    flat = fitted("popularity")
    assert tune_setting(flat, task, "none", [3.0, 1.0, 2.0], lambda _: None) == 3.0


def test_trials_measure_the_same_settings_once() -> None:
    model, applied = fitted("item-knn", decay=1.0), []
    trials = Trials(model, SPLIT, tuning_users(SPLIT, 0), lambda *settings: applied.append(settings))
    assert trials(1, 0.5) == trials(2, 0.5) == trials(1, 0.5)
    assert applied == [(1, 0.5), (2, 0.5)]
    assert list(trials.found) == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_newest_entries_of_histories(limit: int) -> None:
    lists = [[3, 1, 4, 1], [], [5], [9, 2, 6]]
    found = Histories.from_lists(lists).newest(limit)
    assert [found[row].tolist() for row in range(len(lists))] == [each[-limit:] for each in lists]


def test_negatives_are_all_items_where_that_many_are_wanted() -> None:
    at = At(0, "test", 1, 2)
    assert draw_negatives(7, 7, at).tolist() == list(range(7))
    some = draw_negatives(6, 7, at)
    assert some.shape == (6,)
    assert bool(((some >= 0) & (some < 7)).all())
    assert torch.equal(some, draw_negatives(6, 7, at))


def test_a_target_is_no_negative_of_its_own_row() -> None:
    found = mask_targets(torch.zeros(2, 3), torch.tensor([4, 5, 4]), torch.tensor([4, 9]))
    assert found.tolist() == [[-np.inf, 0, -np.inf], [0, 0, 0]]


@pytest.mark.parametrize("name", ["text-knn", "textgcn", "alpharec", "alphafuse", "hybrid"])
def test_a_model_of_text_refuses_data_without_it(name: str) -> None:
    with pytest.raises(TextError, match=f"{name} needs item text, and this data has none: add a title column"):
        fitted(name, Task(SPLIT))


def test_text_of_another_catalogue_is_refused() -> None:
    assert require_text(Task(SPLIT, TEXT), "any") is TEXT
    short = replace(TEXT, vectors=TEXT.vectors[:-1], present=TEXT.present[:-1])
    with pytest.raises(TextError, match=f"{len(TEXT) - 1} text vectors for {len(TEXT)} items"):
        require_text(Task(SPLIT, short), "any")
