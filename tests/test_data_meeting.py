"""Ids of the interactions and of the items table that do not meet."""

from __future__ import annotations

import polars as pl
import pytest

from graphllmrec import Recommender
from graphllmrec.data import load_data
from graphllmrec.errors import DataError


def clicks(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ["a"] * len(ids), "item_id": ids})


def items(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": ids, "title": [f"title {value}" for value in ids]})


@pytest.mark.parametrize(
    ("clicked", "known", "what"),
    [
        (["0007", "0012"], ["7", "12"], "zeros in front"),
        (["B00A", "B00B"], ["b00a", "b00b"], "upper and lower case"),
        (["7-US", "12-US"], ["7", "12"], "what follows a separator"),
        (["item_7", "item_12"], ["7", "12"], "what stands before a separator"),
        (["7 ' ", "[12]"], ["7", "12"], "quotes, brackets or spaces"),
        (["a-b", "c-d"], ["a_b", "c_d"], "hyphens, underscores or other marks"),
        (["p7", "p12"], ["7", "12"], "letters around the number"),
    ],
)
def test_no_clicked_item_in_the_table(clicked: list[str], known: list[str], what: str) -> None:
    data = load_data(clicks(clicked), items(known))  # can be looked at
    (note,) = data.notes
    assert note.startswith("items: no clicked item is in this table")
    assert f"they differ in {what}" in note
    assert repr(clicked[0].strip()) in note
    assert repr(known[0]) in note
    with pytest.raises(DataError, match="no clicked item is in this table"):  # but not learned from
        Recommender.from_recipe("popularity").fit(data)


def test_some_that_differ_are_a_note_and_stay_different() -> None:
    data = load_data(clicks(["0007", "8", "9"]), items(["7", "8", "9"]))
    assert data.items.ids.ids.to_list() == ["0007", "7", "8", "9"]
    assert data.notes == (
        "items: 1 of 3 clicked items are not in the table, e.g. '0007' (the table has '7'); "
        "they differ in zeros in front, so these are different items",
    )


def test_few_that_meet_are_a_note_and_many_are_none() -> None:
    few = load_data(clicks(["u", "v", "w", "x"]), items(["x", "y"]))
    assert few.notes == ("items: 3 of 4 clicked items are not in the table, e.g. 'u', 'v', 'w'",)
    assert not load_data(clicks(["u", "v", "w", "x"]), items(["x", "v", "w"])).notes


def test_dropped_repeats_are_a_note() -> None:
    assert load_data(clicks(["x", "y", "x"])).notes == ("1 repeated (user, item) pairs: the first of each is kept",)
