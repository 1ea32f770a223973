"""Arguments of the front door: ids in any iterable, limits of lists, new items; each refusal says what is wanted."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from front_door_world import encode_first_word, write_world
from graphllmrec.data.ids import clean_id, clean_ids, id_text
from graphllmrec.errors import ArgumentError, DataError, EvaluationError, GraphLLMRecError, UnknownIdError
from graphllmrec.recommender import Recommender

NAN = float("nan")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ease(world):
    return Recommender.from_recipe("ease").fit(world)


@pytest.fixture
def text(world, monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    return Recommender.from_recipe("text-knn", model={"text_dim": 3, "decay": 1.0}).fit(world)


def ids(lists):
    return [[entry.item_id for entry in each] for each in lists]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, "5"), (5.0, "5"), (np.int64(5), "5"), (np.float32(5), "5"), (" 5 ", "5"), ("5.0", "5"), ("0007", "0007"),
     (1.5, "1.5"), ("1.5", "1.5"), ("\x1c", "\x1c"), (None, None), (NAN, None),
     ("", None), ("NaN", None), (math.inf, None)],
)  # fmt: skip
def test_an_id_is_the_same_whatever_holds_it(value, expected):
    assert clean_id(value) == expected


@given(st.one_of(st.text(max_size=6), st.integers(-9, 9).map(str), st.floats(-9, 9).map(str)))
def test_files_and_api_read_ids_alike(value):
    assert clean_ids(pl.Series([value])).to_list() == [clean_id(value)]


@given(st.lists(st.one_of(st.floats(allow_infinity=False), st.integers(-(2**40), 2**40).map(float)), min_size=1))
def test_columns_of_floats_and_single_floats_are_read_alike(values):
    assert clean_ids(id_text(pl.Series(values, dtype=pl.Float64)).fill_null("nan")).to_list() == [
        *map(clean_id, values)
    ]


@pytest.mark.parametrize("kind", [list, tuple, np.array, pl.Series, iter])
def test_a_history_comes_in_any_iterable(ease, kind):
    wanted = ease.recommend(history=["i1", "i3"], k=3)
    assert ease.recommend(history=kind(["i1", "i3"]), k=3) == wanted
    assert ease.recommend(users=kind(["u0"]), k=3) == ease.recommend(users=["u0"], k=3)


def test_a_history_of_the_first_item_alone_is_no_empty_history(ease):
    assert ease.recommend(history=np.array(["i0"]), k=2) == ease.recommend(history=["i0"], k=2)


def test_a_repeated_item_of_a_history_counts_once_as_in_the_data(ease):
    assert ease.recommend(history=["i1", "i3", "i3", "i3"], k=3) == ease.recommend(history=["i1", "i3"], k=3)


@pytest.mark.parametrize("k", [0, -3, 1.5, "5", None, True, np.float64(2)])
def test_an_impossible_length_is_refused_everywhere(ease, k):
    for ask in (lambda: ease.recommend(users=["u0"], k=k), lambda: ease.similar("i1", k=k)):
        with pytest.raises(ArgumentError, match=r"k is the length of the list, a whole number of at least 1, not"):
            ask()


def test_a_length_of_numpy_is_a_length(ease):
    assert len(ease.recommend(users=["u0"], k=np.int32(2))[0]) == 2


@pytest.mark.parametrize("wrong", ["u0", b"u0", 5, {"u0": 1}])
def test_what_is_no_list_of_ids_is_refused(ease, wrong):
    with pytest.raises(ArgumentError, match="users is a list of ids, not"):
        ease.recommend(users=wrong)


def test_excluded_items_are_in_no_list(ease):
    best = ids(ease.recommend(users=["u0", "u1"], k=3))
    found = ids(ease.recommend(users=["u0", "u1"], k=3, exclude=[best[0][0], best[1][1]]))
    assert found[0][:2] == best[0][1:]
    assert found[1][:2] == [best[1][0], best[1][2]]


def test_candidates_are_ranked_and_nothing_else(ease):
    found = ids(ease.recommend(users=["u0"], k=10, candidates=["i47", "i0", "i4", "i8"]))
    seen = {item for item in ("i47", "i0", "i4", "i8") if item in ids(ease.recommend(users=["u0"], k=48))[0]}
    assert set(found[0]) == seen
    assert found[0] == [item for item in ids(ease.recommend(users=["u0"], k=48))[0] if item in seen]


def test_seen_items_are_recommended_on_demand(ease):
    every = ids(ease.recommend(users=["u0"], k=48, allow_seen=True))[0]
    assert len(every) == 48
    assert set(ids(ease.recommend(users=["u0"], k=48))[0]) < set(every)


def test_unknown_candidates_are_named(ease):
    with pytest.warns(UserWarning, match="unknown items of candidates are ignored: nope"):
        ease.recommend(users=["u0"], candidates=["nope", "i1"])
    with pytest.warns(UserWarning, match="nope"), pytest.raises(UnknownIdError, match="no item of candidates is known"):
        ease.recommend(users=["u0"], candidates=["nope"])


@pytest.mark.parametrize("part", ["Valid", "train", "tset", ""])
def test_an_unknown_part_is_never_measured_as_another(ease, part):
    with pytest.raises(EvaluationError, match=rf"unknown part '{part}' of a split; write one of 'valid', 'test'"):
        ease.evaluate(part)


def test_explaining_nothing_is_refused(ease):
    for ask in (
        lambda: ease.explain(None, None),
        lambda: ease.explain("u0"),
        lambda: ease.explain("u0", "i1", history=[]),
    ):
        with pytest.raises(ArgumentError):
            ask()


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (5, "new items are not int"),
        ("i9", "new items are not str"),
        ({"item_id": "x", "title": "gears"}, "new items are not dict"),
        ([5], "new item 1 is not a mapping"),
        ([], "no items to add"),
        ([{"item_id": NAN, "title": "gears"}], "has no item_id"),
        ([{"item_id": "n1", "title": NAN}], "has no text"),
        ([{"item_id": " i5 ", "title": "gears"}], "already in the catalogue"),
    ],
)
def test_new_items_that_cannot_be_are_refused(text, rows, match):
    with pytest.raises(DataError, match=match):
        text.add_items(rows)
    assert len(text.dataset.items) == 48


def test_new_items_come_in_frames(text):
    text.add_items(pl.DataFrame({"item_id": ["n1"], "title": ["gears new"]}))
    pandas = pytest.importorskip("pandas")
    text.add_items(pandas.DataFrame({"item_id": [7.0], "title": ["poems new"]}))
    assert text.dataset.items.ids.of([48, 49]) == ["n1", "7"]


def test_every_refusal_is_an_error_of_ours_and_of_python(ease):
    for kind in (GraphLLMRecError, ValueError, TypeError):
        with pytest.raises(kind):
            ease.similar("i1", k=0)
