"""Which columns of the items table are text and which are attributes, and that attributes keep their types."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from graphllmrec import Recommender, load_data
from graphllmrec.cli.app import app
from graphllmrec.data.roles import read_column
from graphllmrec.data.stats import column_statistics, columns_table
from graphllmrec.errors import DataError, TextError
from graphllmrec.text.clean import catalogue_texts

DAY = dt.date(2024, 3, 1)
NOON = dt.datetime(2024, 3, 1, 12)
CLICKS = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},{(u + step) % 6},{step}\n" for u in range(8) for step in range(4)
)


def series(values: list[Any], dtype: Any = None) -> pl.Series:
    return pl.Series("x", values, dtype)


@pytest.mark.parametrize(
    ("name", "values", "dtype", "expected"),
    [
        ("year", series([1999, None]), pl.Int64, [1999, None]),
        ("year", series([1999], pl.Int16), pl.Int64, [1999]),
        ("weight", series([1.5, float("nan")]), pl.Float64, [1.5, None]),
        ("weight", series(["1.50"]).cast(pl.Decimal(10, 2)), pl.Float64, [1.5]),
        ("price", series(["19.99", " 5 ", "N/A", ""]), pl.Float64, [19.99, 5.0, None, None]),
        ("price", series(["$1,299.00", "$5"]), pl.Float64, [1299.0, 5.0]),
        ("price", series(["1.299,00 €", "19,99 €", "5 €"]), pl.Float64, [1299.0, 19.99, 5.0]),
        ("price", series(["$5", "€5"]), pl.String, ["$5", "€5"]),  # not to be compared
        ("price", series(["12.50", "on request"]), pl.String, ["12.50", "on request"]),
        ("views", series(["1,299", "7"]), pl.Int64, [1299, 7]),
        ("zip", series(["0123", "4567"]), pl.String, ["0123", "4567"]),
        ("barcode", series(["12345678901234567890123"]), pl.String, ["12345678901234567890123"]),
        ("in_stock", series([True, None]), pl.Boolean, [True, None]),
        ("sale", series(["True", "false", ""]), pl.Boolean, [True, False, None]),
        ("sale", series(["Y", "N"]), pl.Boolean, [True, False]),
        ("released", series([DAY]), pl.Date, [DAY]),
        ("released", series(["2024-03-01"]), pl.Date, [DAY]),
        ("released", series(["01-Mar-2024", "unknown"]), pl.Date, [DAY, None]),
        ("released", series(["March 1, 2024"]), pl.Date, [DAY]),
        ("released", series(["01/03/2024"]), pl.String, ["01/03/2024"]),  # the first of March, or the third of January
        ("seen", series(["2024-03-01T12:00:00Z", "2024-03-01 13:00+01"]), pl.Datetime("us"), [NOON, NOON]),
        ("seen", series([NOON]).dt.replace_time_zone("UTC"), pl.Datetime("us"), [NOON]),
        ("seen", series([NOON]).cast(pl.Datetime("ns")), pl.Datetime("us"), [NOON]),
        ("opens", series([dt.time(9)]), pl.Time, [dt.time(9)]),
        ("length", series([dt.timedelta(minutes=90)]), pl.Duration("us"), [dt.timedelta(minutes=90)]),
        ("sizes", series([[1, 2], [3]]), pl.List(pl.Int64), [[1, 2], [3]]),
        ("page", series(["https://a.b/c", "http://d"]), pl.String, ["https://a.b/c", "http://d"]),
        ("pictures", series([["a.jpg"], []]), pl.List(pl.String), [["a.jpg"], None]),
        ("also_bought", series([["B00004OCKR", "B000LGPD64"]]), pl.List(pl.String), [["B00004OCKR", "B000LGPD64"]]),
        ("part", series(["B00004OCKR", "B000LGPD64"]), pl.String, ["B00004OCKR", "B000LGPD64"]),
        ("sku", series(["red", "blue"]), pl.String, ["red", "blue"]),
        ("parentId", series(["red", "blue"]), pl.String, ["red", "blue"]),
        ("availability", series(["in stock", "sold out"]), pl.String, ["in stock", "sold out"]),
        ("phone", series(["+1 555-0100"]), pl.String, ["+1 555-0100"]),
        ("seller", series(["one shop"] * 12), pl.String, ["one shop"] * 12),
        ("model", series([f"x{n}-{n}" for n in range(12)]), pl.String, [f"x{n}-{n}" for n in range(12)]),
        ("details", series(["{'a': 'lamp'}"]), pl.String, ["{'a': 'lamp'}"]),
    ],
)
def test_attributes_keep_or_get_a_type(name: str, values: pl.Series, dtype: Any, expected: list[Any]) -> None:
    found, role = read_column(values, name)
    assert role.role == "attribute", role
    assert found is not None
    assert (found.dtype, found.to_list()) == (dtype, expected)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("brand", series(["3M", "Lego1"] * 10), ["3M", "Lego1"] * 10),
        ("brand", series(["Acme"] * 20), ["Acme"] * 20),
        ("genres", series([["Drama", " "], []]), [["Drama"], None]),
        ("categories", series([[["Home", "Light"], ["Lamp"]]]), [["Home", "Light", "Lamp"]]),
        ("categories", series([["a"]], pl.List(pl.Categorical)), [["a"]]),
        ("colour", series(["red"], pl.Categorical), ["red"]),
        ("note", series([b"a lamp"]), ["a lamp"]),  # parquet without the mark for text
        ("note", series([None], pl.Null), [None]),
        ("size", series(["12 oz", "5 oz"]), ["12 oz", "5 oz"]),
        ("image_description", series(["a lamp on a table by a window"]), ["a lamp on a table by a window"]),
        ("説明", series(["常滑焼", "急須"]), ["常滑焼", "急須"]),
        ("description", series(["12", "13"]), ["12", "13"]),
        ("title", series([1984.0, 1.5]), ["1984", "1.5"]),
        ("title", series([["The", "Ring"]]), ["The Ring"]),
        ("title", series(["https://a.b", "1"]), ["https://a.b", "1"]),
    ],
)
def test_text_stays_text(name: str, values: pl.Series, expected: list[Any]) -> None:
    found, role = read_column(values, name)
    assert role.role == "text", role
    assert found is not None
    assert found.to_list() == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (series([{"a": 1}]), "holds objects or bytes"),
        (series([[{"a": 1}]]), "holds objects or bytes"),
        (series([b"\xff\xd8"]), "holds objects or bytes"),
        (series([[b"\xff"]]), "holds objects or bytes"),
        (series([[0.1, 0.2]]), "holds vectors"),
        (series([[1.0, 2.0]], pl.Array(pl.Float32, 2)), "holds vectors"),
    ],
)
def test_what_neither_text_nor_filters_can_use_is_left_out(values: pl.Series, reason: str) -> None:
    found, role = read_column(values, "thing")
    assert (found, role.role, role.reason) == (None, "left out", reason)


def test_types_of_recbole_are_followed() -> None:
    found, role = read_column(series(["a b", "c"]), "genre", "token_seq")
    assert (found.to_list() if found is not None else None, role.role) == ([["a", "b"], ["c"]], "text")
    assert read_column(series(["0.1 0.2"]), "x", "float_seq")[1].role == "left out"
    assert read_column(series(["1.5"]), "x", "float")[1].role == "attribute"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "interactions.csv").write_text(CLICKS)
    titles = ["red lamp", "blue lamp", "old chair", "new chair", "", "tall lamp"]
    rows = [f"{n},{title},{n}.50,{'yes' if n % 2 else 'no'},2024-03-0{n + 1},{n}.jpg" for n, title in enumerate(titles)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,price,in_stock,released,image", *rows, ""]))
    return folder


def test_attributes_are_no_text_and_an_item_without_text_has_none(shop: Path) -> None:
    items = load_data(shop).items
    assert (items.text_columns, items.attribute_columns) == (["title"], ["price", "in_stock", "released", "image"])
    assert catalogue_texts(items).to_list() == ["red lamp", "blue lamp", "old chair", "new chair", None, "tall lamp"]
    cheap = items.table.filter((pl.col("price") < 3) & pl.col("in_stock") & (pl.col("released") > DAY))
    assert cheap["item_id"].to_list() == ["1"]


def test_columns_of_the_recipe_make_an_attribute_text(shop: Path) -> None:
    items = load_data(shop).items
    texts = catalogue_texts(items, ["title", "price", "in_stock", "released"])
    assert texts[1] == "blue lamp. 1.5. true. 2024-03-02"
    with pytest.raises(TextError, match=r"no text column 'colour'; columns: title, price, in_stock, released, image"):
        catalogue_texts(items, ["colour"])


def test_a_note_names_the_attributes(shop: Path) -> None:
    note = "items.csv: read as attributes, not as text: price, in_stock, released, image"
    assert note in load_data(shop).notes


def test_the_same_table_has_the_same_types_in_any_format(shop: Path) -> None:
    expected = load_data(shop).items
    table = pl.read_csv(shop / "items.csv", try_parse_dates=True)
    (shop / "items.csv").unlink()
    for name, write in (("items.parquet", table.write_parquet), ("items.jsonl", table.write_ndjson)):
        write(shop / name)
        found = load_data(shop).items
        assert found.table.schema == expected.table.schema | ({"in_stock": pl.Boolean})
        assert found.table.rows() == expected.table.rows()
        (shop / name).unlink()


def test_attributes_survive_the_run_folder_and_new_items_have_them(shop: Path, tmp_path: Path) -> None:
    pl.read_csv(shop / "items.csv").with_columns(vector=pl.lit([0.5])).write_parquet(shop / "items.parquet")
    (shop / "items.csv").unlink()
    first = Recommender.from_recipe("popularity").fit(shop)
    first.save(tmp_path / "run")
    found = Recommender.load(tmp_path / "run")
    items = found.dataset.items
    assert items.table.schema == first.dataset.items.table.schema
    assert items.roles == first.dataset.items.roles
    assert ("vector", "left out") in [(role.column, role.role) for role in items.roles]
    assert items.text_columns == ["title"]
    found.add_items([{"item_id": "n1", "price": 7, "in_stock": "yes", "released": "2024-05-01"}, {"item_id": "n2"}])
    found.save(tmp_path / "again")
    table = Recommender.load(tmp_path / "again").dataset.items.table
    assert table.schema == items.table.schema
    assert table.rows()[-2:] == [
        ("n1", None, 7.0, True, dt.date(2024, 5, 1), None),
        ("n2", None, None, None, None, None),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"price": "cheap"}, r"column 'price': new item 2 does not fit the catalogue \(found 'cheap'\)"),
        ({"price": [1]}, "price holds numbers"),
        ({"in_stock": 3}, "in_stock holds true or false"),
        ({"released": 7}, r"released holds dates or times \(Date\)"),
        ({"released": "soon"}, "column 'released': new item 2"),
        ({"title": True}, "title holds text"),
        ({"title": object()}, "title holds text"),
        ({"image": ["a.jpg"]}, "image holds text"),
    ],
)
def test_values_of_new_items_that_do_not_fit_are_named(shop: Path, row: dict[str, Any], message: str) -> None:
    found = Recommender.from_recipe("popularity").fit(shop)
    with pytest.raises(DataError, match=message):
        found.add_items([{"item_id": "n1", "price": 1}, {"item_id": "n2", **row}])
    assert found.dataset.num_items == 6


def test_whole_numbers_meet_fractions(shop: Path) -> None:
    (shop / "items.csv").write_text("item_id,title,price\n" + "".join(f"{n},lamp,{n}\n" for n in range(6)))
    found = Recommender.from_recipe("popularity").fit(shop)
    assert found.dataset.items.table["price"].dtype == pl.Int64
    found.add_items([{"item_id": "n1", "price": 2.5}])
    assert found.dataset.items.table["price"].to_list()[-2:] == [5.0, 2.5]


def test_stats_say_what_each_column_is_and_why(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pl.read_csv(shop / "items.csv").with_columns(v=pl.lit([0.5])).write_parquet(shop / "items.parquet")
    (shop / "items.csv").unlink()
    app(["stats", str(shop), "--json"], standalone_mode=False)
    columns = {row["column"]: row for row in json.loads(capsys.readouterr().out)["columns"]}
    assert columns["price"] == {
        "column": "price", "role": "attribute", "reason": "numbers", "filled": 1.0, "example": "0.5",
    }  # fmt: skip
    assert (columns["title"]["role"], columns["title"]["filled"]) == ("text", 5 / 6)
    assert columns["v"] == {
        "column": "v", "role": "left out", "reason": "holds vectors", "filled": None, "example": None,
    }  # fmt: skip
    page = io.StringIO()
    Console(width=100, file=page).print(columns_table(load_data(shop)))
    assert "links, by its name" in page.getvalue()
    assert column_statistics(load_data(shop).items)[0]["reason"] == "the title"


def test_a_title_of_any_type_is_told_or_none() -> None:
    titles, role = read_column(series([dt.timedelta(minutes=90), None]), "title", "")
    assert titles is not None
    assert titles.to_list() == ["1h 30m", None]
    assert role.role == "text"
