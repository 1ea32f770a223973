"""Damaged recipes and studies are read, or refused with one readable message; thousands: benchmarks/fuzz_recipes.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from graphllmrec.errors import RecipeError
from graphllmrec.recipe import load_recipe
from graphllmrec.study.loading import load_study

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "fuzz_recipes.py"


def test_damaged_recipes_and_studies_end_in_no_other_error() -> None:
    found = runpy.run_path(str(BENCHMARK))["fuzz"](rounds=60, studies=15, seed=1)
    assert found["first"] == []
    assert found["refused"] > found["read"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"name": "ease", "l2": 10**5000}}, "model.l2: a whole number of more than 64 bits"),
        ({"model": {"name": "ease", "l2": float("nan")}}, "model.l2: Input should be a finite number"),
        ({"model": {"name": "ease"}, "data": {"min_rating": float("inf")}}, "data.min_rating: .*finite number"),
        ({"model": {"name": "ease", 1: 2}}, "the keys of a table are strings, not 1"),
        ({"model": {"name": "ease"}, "title": "\ud800"}, "title: half a character"),
        ({"model": {"name": "ease"}, "title": object()}, "title: settings are strings, numbers, lists .* not object"),
        ({"model": {"name": "ease"}, "title": "x" * 2_000_000}, "title: 2,000,000 characters; there may be 1,000,000"),
        ({"model": {"name": "ease"}, "evaluate": {"ks": [0]}}, "every k must be from 1 to 1,000,000"),
        ({"model": {"name": "ease"}, "unordered": {"name": {}}}, "model.name"),
    ],
)
def test_values_beyond_any_setting_name_their_place(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(values)


def test_nesting_without_an_end_is_refused() -> None:
    values: dict = {"name": "ease"}
    values["model"] = values
    with pytest.raises(RecipeError, match="nested more than 16 deep"):
        load_recipe(values)


def test_thousands_of_problems_are_one_short_message() -> None:
    with pytest.raises(RecipeError, match="and 1,980 more") as caught:
        load_recipe({"model": {"name": "ease", **{f"\x1b[31m{n}": n for n in range(2_000)}}})
    assert len(caught.value.problems) == 2_000
    assert len(str(caught.value)) < 6_000
    assert "\x1b" not in str(caught.value)


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("x" * 10_000, "a\x00b", ".", "/dev/null"):
        with pytest.raises(RecipeError, match="no such file"):
            load_recipe(name)


def test_a_study_is_bounded_in_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f"seeds = [{'9' * 5_000}]\n[[models]]\nrecipe = 'ease'\n")
    with pytest.raises(RecipeError, match=r"study\.toml has 1 problem"):
        load_study(path)
    with pytest.raises(RecipeError, match="at most 1000 items"):
        load_study({"models": [{"recipe": "ease", "tune": {"model.l2": [1.0] * 2_000}}]})
