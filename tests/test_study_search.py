"""The search for settings: whole small spaces, optuna in large ones, and nothing but the trials so far decides."""

from __future__ import annotations

import builtins
import math

import pytest

from graphllmrec.errors import GraphLLMRecError
from graphllmrec.study.config import Range
from graphllmrec.study.search import Trial, best_trial, budget, needs_optuna, next_settings

PLANE = {
    "model.x": Range.model_validate({"low": 0.01, "high": 100.0, "log": True}),
    "model.n": Range.model_validate({"low": 1, "high": 8, "int": True}),
    "model.kind": (["a"], ["a", "b"], "c"),
}


def value_of(settings):
    """Highest (0) at x = 1, n = 4, kind = ["a", "b"]."""
    return (
        -(math.log10(settings["model.x"]) ** 2)
        - (settings["model.n"] - 4) ** 2
        - (settings["model.kind"] != ["a", "b"])
    )


def search(space, trials, seed=0, done=(), usual=None):
    done = list(done)
    while (settings := next_settings(space, done, trials, seed, usual or {})) is not None:
        done.append(Trial(len(done), settings, value_of(settings) if "model.x" in settings else 0.0))
    return done


def test_a_space_within_the_budget_is_tried_whole_in_order_and_without_optuna(monkeypatch):
    imported = builtins.__import__

    def without_optuna(name, *arguments, **options):
        if name == "optuna":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_optuna)
    space = {"a": (1, 2), "b": ("x", "y")}
    assert budget(space, 10) == 4
    assert not needs_optuna(space, 4)
    assert [trial.settings for trial in search(space, 4)] == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    with pytest.raises(GraphLLMRecError, match=r'tuning needs optuna: pip install "graphllmrec\[tune\]"'):
        search(space, 3)


def test_nothing_to_tune_takes_no_trial():
    assert budget({}, 10) == 0
    assert search({}, 10) == []


def test_a_large_space_takes_the_budget_within_its_bounds_and_finds_more_than_chance():
    done = search(PLANE, 40)
    assert len(done) == budget(PLANE, 40) == 40
    for trial in done:
        assert 0.01 <= trial.settings["model.x"] <= 100
        assert trial.settings["model.n"] in range(1, 9)
        assert trial.settings["model.kind"] in (["a"], ["a", "b"], "c")
    assert best_trial(done).value > -0.5
    late, early = (sorted(t.value for t in part)[len(part) // 2] for part in (done[20:], done[:10]))
    assert late > early


def test_an_interrupted_search_makes_the_trials_of_one_that_was_not():
    whole = search(PLANE, 12)
    for kept in (1, 5, 9):
        assert search(PLANE, 12, done=whole[:kept]) == whole
    assert search(PLANE, 20)[:12] == whole  # a larger budget goes on from there
    assert search(PLANE, 12, seed=1) != whole


def test_the_recipe_as_it_stands_is_tried_first_where_the_space_holds_it():
    usual = {"model.x": 3.0, "model.n": 5, "model.kind": "c"}
    assert search(PLANE, 4, usual=usual)[0].settings == usual
    for outside in ({"model.x": 300.0}, {"model.n": 2.5}, {"model.kind": "d"}, {"model.x": "tune"}, {"model.n": True}):
        assert search(PLANE, 1, usual=usual | outside)[0].settings != usual | outside


def test_a_list_larger_than_the_budget_is_not_tried_twice():
    space = {"model.kind": tuple("abcdefgh")}
    done = search(space, 7)
    assert len({trial.settings["model.kind"] for trial in done}) == 7


def test_failed_trials_count_but_teach_nothing():
    done = [Trial(0, {"model.x": 1.0, "model.n": 4, "model.kind": "c"}, None, "did not work")]
    assert len(search(PLANE, 5, done=done)) == 5
    assert best_trial(done) is None


def test_the_best_trial_is_the_first_of_equals():
    trials = [
        Trial(0, {"a": 1}, -2.0),
        Trial(1, {"a": 2}, -1.0),
        Trial(2, {"a": 3}, -1.0),
        Trial(3, {"a": 4}, None, "x"),
    ]
    assert best_trial(trials).number == 1
