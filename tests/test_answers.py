"""What lists may hold, whom they are for, and the form they come in: filter, unknown users, tables."""

from __future__ import annotations

import importlib

import numpy as np
import polars as pl
import pytest

from front_door_world import write_world
from graphllmrec.arguments import id_list
from graphllmrec.data.item_filter import matching
from graphllmrec.data.tables import IdMap, Items
from graphllmrec.errors import ArgumentError, UnknownIdError
from graphllmrec.recommendation import Explanation, percentages
from graphllmrec.recommender import Recommender

TABLE = pl.DataFrame({
    "item_id": ["a", "b", "c", "d"],
    "title": ["Red pot", None, "Blue tent", "Lego set"],
    "price": [5.0, 25.0, None, 19.5],
    "brand": ["Lego", "Lego", None, "O'Neill"],
    "categories": [["Garden", "Toys"], ["Toys"], None, []],
})  # fmt: skip
ITEMS = Items(IdMap(TABLE["item_id"]), TABLE)


@pytest.fixture(scope="module")
def ease(tmp_path_factory):
    folder = write_world(tmp_path_factory.mktemp("world"))
    items = pl.read_csv(folder / "items.csv")
    items = items.with_columns(price=pl.int_range(len(items)) % 10, brand=pl.col("title").str.slice(0, 5))
    items.write_csv(folder / "items.csv")
    return Recommender.from_recipe("ease").fit(folder)


def ids(lists):
    return [[entry.item_id for entry in each] for each in lists]


# filter


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("price < 20", "ad"),
        ("price < 20 AND brand = 'Lego'", "a"),
        ("brand = 'O''Neill'", "d"),
        ("price IS NULL OR price > 20", "bc"),
        ("array_contains(categories, 'Garden')", "a"),
        ("'Toys' = ANY(categories)", "ab"),
        ("array_length(categories) >= 1", "ab"),
        ("item_id IN ('a', 'd')", "ad"),
        ("title LIKE '%pot'", "a"),
        ("1 = 1", "abcd"),
        ("price > 1000", ""),
        (pl.col("categories").list.contains("Toys"), "ab"),
        (pl.col("price").is_between(5, 20), "ad"),
        (pl.col("price") > pl.col("price").mean(), "bd"),
        (pl.lit(True), "abcd"),
        pytest.param(["price > 5", pl.col("categories").list.contains("Toys")], "b", id="a list"),
        ([], "abcd"),
    ],
    ids=str,
)
def test_a_condition_keeps_the_items_for_which_it_is_true(condition, expected):
    kept = matching(ITEMS, condition)
    assert kept.dtype == bool
    assert "".join(TABLE["item_id"].filter(pl.Series(kept.copy()))) == expected


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ("cost < 20", r'filter \'cost < 20\': unable to find column "cost"; the columns of the items are item_id'),
        ('brand = "Lego"', r"text stands in single quotes"),
        ("price <", "unable to parse"),
        ("", "unable to parse"),
        ("price", "it gives Float64, not true or false"),
        ("brand < 3", "cannot compare"),
        ("price < 20; DROP TABLE x", "found unexpected token"),
        ("nosuch(price)", "unsupported function"),
        (pl.col("price").drop_nulls() > 1, "it gives 3 values for 4 items"),
        (pl.col("nope"), "unable to find column"),
        (True, "filter is a condition such as .* not True"),
        ({"brand": "Lego"}, "filter is a condition"),
        pytest.param(lambda item: True, "filter is a condition", id="function"),
    ],
    ids=str,
)
def test_what_is_no_condition_on_the_columns_is_refused(condition, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        matching(ITEMS, condition)
    assert "\n" not in str(caught.value)


def test_lists_hold_what_passes_the_filter(ease):
    free = ids(ease.recommend(users=["u0", "u1"], k=48))
    table = ease.dataset.items.table
    cheap = set(table.filter(pl.col("price") < 3)["item_id"])
    assert ids(ease.recommend(users=["u0", "u1"], k=48, filter="price < 3")) == [
        [item for item in each if item in cheap] for each in free
    ]
    assert ease.recommend(users=["u0"], filter="price > 99") == [[]]
    assert ids([ease.similar("i3", k=48, filter=pl.col("price") < 3)])[0] == [
        item for item in ids([ease.similar("i3", k=48)])[0] if item in cheap
    ]


def test_all_limits_hold_together(ease):
    [found] = ids(
        ease.recommend(
            history=["i1"],
            k=48,
            filter="price < 3",
            exclude=["i2"],
            candidates=["i0", "i1", "i2", "i5"],
            allow_seen=True,
        )
    )
    assert sorted(found) == ["i0", "i1"]


def test_each_candidate_gets_the_score_it_has_among_all_items(ease):
    every = {entry.item_id: entry.score for entry in ease.recommend(users=["u0"], k=48, allow_seen=True)[0]}
    wanted = ["i7", "i30", "i0", "i12"]
    [found] = ease.recommend(users=["u0"], candidates=wanted, k=len(wanted), allow_seen=True)
    assert {entry.item_id: entry.score for entry in found} == {item: every[item] for item in wanted}


def test_similar_items_can_be_limited(ease):
    best = ids([ease.similar("i3", k=4)])[0]
    assert ids([ease.similar("i3", k=3, exclude=best[:1])])[0] == best[1:4]
    assert ids([ease.similar("i3", candidates=[best[2], "i3", best[0]])])[0] == [best[0], best[2]]


# unknown users


def test_skipped_users_have_an_empty_list_in_their_place(ease):
    with pytest.warns(UserWarning, match="unknown users get an empty list: nobody, 7"):
        found = ease.recommend(users=["u0", "nobody", "u1", 7], k=3, unknown="skip")
    assert [len(each) for each in found] == [3, 0, 3, 0]
    assert found[::2] == ease.recommend(users=["u0", "u1"], k=3)


def test_unknown_users_get_what_is_popular_in_training(ease):
    with pytest.warns(UserWarning, match="unknown users get the most popular items, scored by their clicks: nobody"):
        found = ease.recommend(users=["nobody", "u1"], k=5, unknown="popular", exclude=["i0"])
    clicks = dict(zip(ease.dataset.items.ids.ids, ease.split.item_degree().tolist(), strict=True))
    best = sorted((count for item, count in clicks.items() if item != "i0"), reverse=True)[:5]
    assert [clicks[entry.item_id] for entry in found[0]] == [entry.score for entry in found[0]] == best
    assert found[1] == ease.recommend(users=["u1"], k=5, exclude=["i0"])[0]


def test_a_history_of_unknown_items_is_an_unknown_user_too(ease):
    with (
        pytest.warns(UserWarning, match="are ignored: nope"),
        pytest.warns(UserWarning, match="a history without any item that ease knows gets"),
    ):
        assert ease.recommend(history=["nope"], unknown="skip") == [[]]
    with pytest.warns(UserWarning, match="most popular"):
        assert len(ease.recommend(history=[], unknown="popular", k=4)[0]) == 4


def test_one_unknown_user_is_an_error_that_names_the_ways_out(ease):
    with pytest.raises(UnknownIdError, match=r"unknown user 'nobody'.*history.*unknown='skip' or 'popular'"):
        ease.recommend(users=["u0", "nobody"])
    for user in (None, float("nan"), ""):
        with pytest.raises(UnknownIdError, match="unknown user"):
            ease.recommend(users=[user])


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.recommend(users=["nobody"], unknown="skip"),
        lambda model: model.recommend(history=["i1", "nobody"]),
        lambda model: model.similar("i1", exclude=["nobody"]),
    ],
)
def test_a_warning_points_to_the_line_of_the_caller(ease, ask):
    with pytest.warns(UserWarning, match="nobody") as caught:
        ask(ease)
    assert [warning.filename for warning in caught] == [__file__]


# tables


def test_a_table_holds_the_lists(ease):
    lists = ease.recommend(users=["u1", "u0"], k=3)
    table = ease.recommend(users=np.array(["u1", "u0"]), k=3, as_frame="polars")
    assert table.columns == ["user_id", "rank", "item_id", "title", "score"]
    assert table["user_id"].to_list() == ["u1"] * 3 + ["u0"] * 3
    assert table["rank"].to_list() == [1, 2, 3] * 2
    for name in ("item_id", "title", "score"):
        assert table[name].to_list() == [getattr(entry, name) for each in lists for entry in each]


def test_a_table_of_similar_items_and_of_a_history(ease):
    table = ease.similar("i3", k=2, as_frame="polars")
    assert table.select("query", "rank").rows() == [("i3", 1), ("i3", 2)]
    assert table["item_id"].to_list() == ids([ease.similar("i3", k=2)])[0]
    assert ease.recommend(history=["i3"], k=2, as_frame="polars").columns[0] == "query"


def test_a_table_of_empty_lists_has_its_columns(ease):
    table = ease.recommend(users=["u0"], filter="price > 99", as_frame="polars")
    assert table.shape == (0, 5)
    assert table.schema == ease.recommend(users=["u0"], as_frame="polars").schema
    assert ease.recommend(users=[]) == []
    assert ease.recommend(users=[], as_frame="polars").shape == (0, 5)


def test_a_table_of_pandas_is_the_same(ease):
    pandas = pytest.importorskip("pandas")
    found = ease.recommend(users=["u1", "u0"], k=3, as_frame="pandas")
    assert isinstance(found, pandas.DataFrame)
    table = ease.recommend(users=["u1", "u0"], k=3, as_frame="polars")
    assert found.to_dict("list") == table.to_dict(as_series=False)


def test_without_pandas_it_says_what_to_do(ease, monkeypatch):
    whole = importlib.import_module

    def without(name, *rest):
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return whole(name, *rest)

    monkeypatch.setattr("graphllmrec.recommendation.import_module", without)
    with pytest.raises(ArgumentError, match='needs pandas: pip install pandas, or take as_frame="polars"'):
        ease.recommend(users=["u0"], as_frame="pandas")


# arguments that cannot be


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"users": ["u0"], "unknown": "ignore"}, "unknown is one of 'error', 'skip', 'popular', not 'ignore'"),
        ({"users": ["u0"], "as_frame": "numpy"}, "as_frame is one of 'polars', 'pandas', not 'numpy'"),
        ({"users": ["u0"], "as_frame": True}, "as_frame is one of"),
        ({"history": [["i1"], ["i2"]]}, r"history is one list of ids; it holds \['i1'\]"),
        ({"users": [("u0",)]}, "users is one list of ids"),
        ({"users": np.array([["u0"], ["u1"]])}, "users is one list of ids"),
        ({"users": np.array("u0")}, "users is a list of ids, not"),
        ({"users": pl.DataFrame({"user_id": ["u0"]})}, "users is a list of ids, e.g. one column of the table"),
        ({"users": ["u0"], "exclude": "i1"}, "exclude is a list of ids"),
        ({"users": ["u0"], "candidates": 5}, "candidates is a list of ids"),
        ({"users": ["u0"], "filter": 5}, "filter is a condition"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_sentence(ease, arguments, match):
    with pytest.raises(ArgumentError, match=match):
        ease.recommend(**arguments)


def test_one_id_is_not_a_list(ease):
    for ask in (lambda: ease.similar(["i1"]), lambda: ease.explain("u0", ["i1"]), lambda: ease.explain(["u0"], "i1")):
        with pytest.raises(ArgumentError, match=r"is one id, not \["):
            ask()
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ArgumentError, match="not a DataFrame"):
        id_list(pandas.DataFrame({"user_id": ["u0"]}), "users")


def test_a_length_beyond_memory_ends_where_the_catalogue_ends(ease, tmp_path):
    for k in (10**12, 10**30):
        assert ease.recommend(users=["u0"], k=k) == ease.recommend(users=["u0"], k=48)
        assert ease.similar("i1", k=k) == ease.similar("i1", k=47)
        ease.recommend_all(tmp_path / "r.csv", k=k, users=["u0"], overwrite=True)
    with pytest.raises(ArgumentError, match="out is the path of a file, not None"):
        ease.recommend_all(None)


# shares


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.95, 0.045, 0.005], [95, 5, 0]),
        ([0.944, 0.0505, -0.0055], [94, 5, 1]),
        ([1, 1, 1], [34, 33, 33]),
        ([2.0], [100]),
        ([0, 0], [0, 0]),
        ([], []),
        ([float("nan"), 1], [0, 0]),
    ],
)
def test_shares_add_up_to_a_hundred(values, expected):
    assert percentages(values) == expected


def test_an_explanation_prints_shares_that_add_up():
    shares = {"clicks": 0.9549, "text": 0.0451 - 0.0049, "context": 0.0049}
    shown = str(Explanation("a", "A", 1.0, shares, 0.5, {"cold/tail": 0.333, "warm/tail": 0.333, "new": 0.334}, []))
    assert sum(int(line.split("%")[0]) for line in shown.splitlines() if "% from" in line) == 100
    assert sum(int(line.split("%")[0]) for line in shown.splitlines() if "% as" in line) == 100


# tables of an evaluation


def test_an_evaluation_names_users_and_items(ease, tmp_path):
    found = ease.evaluate()
    users, items = ease.dataset.users, ease.dataset.items.ids
    assert found.per_user["user_id"].to_list() == users.of(found.per_user["user"].to_numpy())
    assert found.targets["item_id"].to_list() == items.of(found.targets["item"].to_numpy())
    kind, rows = next(iter(found.strata.items()))
    stratum = next(name for name, row in rows.items() if row["users"])
    assert found.within(kind, stratum)["user_id"][0].startswith("u")
    found.write(tmp_path)
    assert type(found).read(tmp_path).per_user.equals(found.per_user)
    old = found.per_user.drop("user_id")  # as version 0.1 wrote it
    old.with_columns(recommended=pl.Series(found.lists)).write_parquet(tmp_path / "per-user-test.parquet")
    again = type(found).read(tmp_path)
    assert again.within(kind, stratum).columns[0] == "user"
    assert again.overall == found.overall
