"""Tables in memory: the same checks and results as files, with rows in place of lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from graphllmrec import Recommender
from graphllmrec.data import load_data
from graphllmrec.data.new_items import new_item_table
from graphllmrec.errors import ArgumentError, DataError

CLICKS = {"user_id": ["a", "a", "b", "b"], "item_id": [1, 2, 2, 3], "timestamp": [5, 6, 7, 8]}
ITEMS = {"item_id": [1, 2, 3], "title": ["Lamp", None, "Pot"]}


def test_frames_give_what_their_files_give(tmp_path: Path) -> None:
    clicks, items = pl.DataFrame(CLICKS), pl.DataFrame(ITEMS)
    clicks.write_csv(tmp_path / "interactions.csv")
    items.write_csv(tmp_path / "items.csv")
    read = load_data(tmp_path)
    mixed = (tmp_path / "interactions.csv", items), (clicks, str(tmp_path / "items.csv"))
    for given in ((clicks, items), (clicks.lazy(), items.lazy()), *mixed):
        data = load_data(*given)
        assert data.users.ids.to_list() == read.users.ids.to_list()
        assert data.items.table.equals(read.items.table)
        for column in ("user", "item", "order"):
            np.testing.assert_array_equal(getattr(data.interactions, column), getattr(read.interactions, column))


def test_fit_takes_two_frames_and_checks_arguments() -> None:
    many = pl.DataFrame([(f"u{u}", f"i{(u + step) % 7}", step) for u in range(9) for step in range(5)], orient="row")
    many.columns = ["user", "item", "time"]
    items = pl.DataFrame({"item_id": [f"i{number}" for number in range(7)], "title": list("abcdefg")})
    fitted = Recommender.from_recipe("popularity").fit(many, items)
    assert fitted.recommend(users=["u1"], k=1)[0][0].title in "abcdefg"
    assert fitted.evaluate(data=many).overall.keys() == fitted.evaluate().overall.keys()
    with pytest.raises(ArgumentError, match="a Dataset has its items already"):
        Recommender.from_recipe("popularity").fit(fitted.dataset, items)


def test_a_dict_is_a_ready_made_split() -> None:
    train, test = pl.DataFrame(CLICKS), pl.DataFrame({"user_id": ["a"], "item_id": [3], "timestamp": [9]})
    data = load_data({"train": train, "test": test}, pl.DataFrame(ITEMS))
    assert {part: len(rows) for part, rows in data.ready.items()} == {"train": 4, "test": 1}
    with pytest.raises(DataError, match="test, row 1, column 'item_id': missing id"):
        load_data({"train": train, "test": test.with_columns(item_id=pl.lit(None))})


@pytest.mark.parametrize(
    "wrong", [5, None, [1, 2], [{"user_id": 1}], pl.Series([1]), np.zeros((2, 2)), b"x", pl.DataFrame]
)
def test_what_is_no_table_is_refused_with_what_is_wanted(wrong: object) -> None:
    with pytest.raises(ArgumentError, match="wanted a data folder, one file, a DataFrame of polars or pandas"):
        load_data(wrong)
    with (
        pytest.raises(ArgumentError, match="items: wanted a file or a DataFrame")
        if wrong is not None
        else pytest.raises(DataError, match="no such file")
    ):
        load_data(pl.DataFrame(CLICKS), wrong if wrong is not None else "nowhere.csv")


def test_a_dict_of_columns_is_refused_with_the_way_out() -> None:
    with pytest.raises(ArgumentError, match=r"not 'user_id', 'item_id'.*polars\.DataFrame\(columns\)"):
        load_data({"user_id": [1], "item_id": [2]})


def test_rows_are_counted_from_one_and_named_as_rows() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", None], "item_id": ["x", "y", "z"]})
    with pytest.raises(DataError, match="interactions, row 3, column 'user_id': missing id") as caught:
        load_data(frame)
    assert (caught.value.line, caught.value.counted) == (3, "row")
    with pytest.raises(DataError, match=r"^interactions: no column 'item_id'"):
        load_data(frame.select("user_id"))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (pl.Series([timedelta(seconds=1)]), "a length of time, not a time"),
        (pl.Series([1], dtype=pl.Int64).cast(pl.Time), "a time of day without a date"),
        (pl.Series([[1.0]]), "not a time"),
        (pl.Series([-(2**62)]).cast(pl.Datetime("us")), "date before 1970"),
    ],
)
def test_columns_of_other_types_are_no_times(values: pl.Series, what: str) -> None:
    with pytest.raises(DataError, match=what):
        load_data(pl.DataFrame({"user_id": ["a"], "item_id": ["x"], "timestamp": values}))


def test_types_that_hold_ids_times_and_ratings() -> None:
    data = load_data(
        pl.DataFrame({
            "user_id": pl.Series(["a", "b"], dtype=pl.Categorical),
            "item_id": pl.Series(["1.00", "2.00"]).cast(pl.Decimal(10, 2)),
            "timestamp": pl.Series([datetime(2024, 1, 1, 1, tzinfo=UTC)] * 2).dt.convert_time_zone("Asia/Tokyo"),
            "rating": pl.Series(["3.5", "4"]).cast(pl.Decimal(10, 2)),
        })
    )  # fmt: skip
    assert data.items.ids.ids.to_list() == ["1", "2"]
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [1704070800] * 2
    with pytest.raises(DataError, match="not lengths of time"):
        load_data(pl.DataFrame({"user_id": [timedelta(1)], "item_id": [1]}))


def test_objects_of_polars_and_half_pairs() -> None:
    frame = pl.DataFrame({"user_id": pl.Series([1, "b", np.int64(3)], dtype=pl.Object), "item_id": [1, 2, 3]})
    assert load_data(frame).users.ids.to_list() == ["1", "3", "b"]
    titles = pl.Series(["Pot \ud83d", None, "Lamp"], dtype=pl.Object)
    data = load_data(frame, pl.DataFrame({"item_id": [1, 2, 3], "title": titles}))
    assert data.items.titles == ["Pot \ufffd", None, "Lamp"]
    assert "items: 1 texts of title have half a surrogate pair, replaced by \ufffd" in data.notes


def test_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    times = pandas.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"]).tz_localize("Europe/Berlin")
    clicks = pandas.DataFrame(
        {
            "user_id": pandas.Categorical(["a", "b", "a"]),
            "item_id": pandas.array([1, 2, 3], dtype="Int64"),
            "time": times,
        }
    )
    items = pandas.DataFrame({"item_id": [1.0, 2.0, 3.0], "title": ["Lamp", np.nan, None]}).set_index("item_id")
    data = load_data(clicks, items)
    assert data.items.table.to_dicts()[:2] == [{"item_id": "1", "title": "Lamp"}, {"item_id": "2", "title": None}]
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [1704063600, 1704236400, 1704150000]
    assert "items: the index 'item_id' is read as a column" in data.notes
    assert "interactions: the index 'row' is not read" in load_data(clicks.rename_axis("row")).notes
    items.reset_index().to_csv(tmp_path / "items.csv")  # with the numbers of the rows, in a column without a name
    assert load_data(clicks, tmp_path / "items.csv").items.table.columns == ["item_id", "title"]
    clicks.loc[1, "user_id"] = np.nan
    with pytest.raises(DataError, match="interactions, row 2, column 'user_id': missing id"):
        load_data(clicks)


def test_row_numbers_of_pandas_are_left_out_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("Unnamed: 0,item_id,title\n0,1,Lamp\n1,2,Pot\n")
    data = load_data(pl.DataFrame(CLICKS), tmp_path / "items.csv")
    assert data.items.table.columns == ["item_id", "title"]
    assert "items.csv: column Unnamed: 0 numbers the rows, left out" in data.notes


@pytest.mark.parametrize("word", ["NaN", "nan", "<NA>", "NaT", "None", "null", "NULL", r"\N", " NaN ", ""])
def test_a_word_for_a_missing_text_is_missing_from_every_door(tmp_path: Path, word: str) -> None:
    clicks = pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "y"]})
    items = pl.DataFrame(
        {"item_id": ["x", "y", "z"], "title": [word, "Nan of Lahore", "Nan"], "blurb": ["b c", word, "d"]}
    )
    clicks.write_csv(tmp_path / "interactions.csv")
    items.write_csv(tmp_path / "items.csv")
    for data in (load_data(tmp_path), load_data(clicks, items), load_data(clicks, pandas_of(items))):
        assert data.items.titles == [None, "Nan of Lahore", "Nan"]
        assert data.items.table["blurb"].to_list() == ["b c", None, "d"]
    added = new_item_table([{"item_id": "new", "title": word}], data.items, needs_text=False)
    assert added["title"].to_list() == [None]
    with pytest.raises(DataError, match="has no text"):
        new_item_table([{"item_id": "new", "title": word}], data.items, needs_text=True)


def pandas_of(table: pl.DataFrame) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(table.to_dict(as_series=False))
