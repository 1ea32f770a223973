"""What a folder of data becomes, format by format and rule by rule."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard

from graphllmrec.data import Dataset, demo_data, load_data
from graphllmrec.data.split import make_split
from graphllmrec.data.tables import Interactions
from graphllmrec.errors import DataError

CLICKS = "user_id,item_id,timestamp,rating\nb,x,20,5\na,y,30,1\nb,y,10,3\na,x,40,4\n"


def folder(path: Path, **files: str) -> Path:
    """A data folder; `interactions_csv="…"` becomes interactions.csv."""
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def clicks(dataset: Dataset) -> list[tuple[str, str]]:
    users, items = dataset.users.of(dataset.interactions.user), dataset.items.ids.of(dataset.interactions.item)
    return list(zip(users, items, strict=True))


def test_users_are_sorted_by_id_and_their_clicks_by_time(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, interactions_csv=CLICKS))
    assert data.users.ids.to_list() == ["a", "b"]
    assert clicks(data) == [("a", "y"), ("a", "x"), ("b", "y"), ("b", "x")]
    assert data.order == "timestamp"
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [30, 40, 10, 20]
    assert data.interactions.rating is not None
    assert data.interactions.rating.tolist() == [1, 4, 3, 5]
    assert (data.name, data.source) == (tmp_path.name, str(tmp_path))


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separator_is_found_out(tmp_path: Path, separator: str, newline: str) -> None:
    text = "\ufeff" + CLICKS.replace(",", separator).replace("\n", newline)
    (tmp_path / "interactions.csv").write_bytes(text.encode())
    assert clicks(load_data(tmp_path)) == [("a", "y"), ("a", "x"), ("b", "y"), ("b", "x")]


def test_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(CLICKS.encode()))
    items = b'{"item_id": "y", "title": "Why"}\n'
    frames = zstandard.compress(items) + zstandard.compress(b'{"item_id": "z", "title": "Zed"}\n')
    (tmp_path / "items.jsonl.zst").write_bytes(frames)
    data = load_data(tmp_path)
    assert data.items.ids.ids.to_list() == ["x", "y", "z"]
    assert data.items.titles == [None, "Why", "Zed"]


def test_a_single_file_will_do(tmp_path: Path) -> None:
    folder(tmp_path, clicks_csv=CLICKS)
    data = load_data(tmp_path / "clicks.csv")
    assert (data.name, len(data.interactions), data.items.titles) == ("clicks", 4, [None, None])


@pytest.mark.parametrize(
    "header",
    [
        "userId,movieId,timestamp",
        "User ID,asin,unixReviewTime",
        "reviewerID,parent_asin,time",
        "user_id:token,item_id:token,timestamp:float",
        "user,item,date",
    ],
)
def test_other_names_for_the_columns(tmp_path: Path, header: str) -> None:
    data = load_data(folder(tmp_path, interactions_csv=f"{header}\nu,i,5\nu,j,4\n"))
    assert (clicks(data), data.order) == ([("u", "j"), ("u", "i")], "timestamp")


def test_exact_name_and_parent_id_win(tmp_path: Path) -> None:
    text = "user,user_id,asin,parent_asin\nwrong,u,child,parent\n"
    assert clicks(load_data(folder(tmp_path, interactions_csv=text))) == [("u", "parent")]


def test_recbole_folder(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t20.0\n1\t11\t3\t10.0\n"
    item = 'item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tThe "Big\tDrama Crime\n11\tHeat\t\n'
    data = load_data(folder(tmp_path, **{"ml.inter": inter, "ml.item": item}))
    assert clicks(data) == [("1", "11"), ("1", "10")]
    assert data.items.table.rows() == [("10", 'The "Big', ["Drama", "Crime"]), ("11", "Heat", None)]


def test_movielens_folder_with_tags(tmp_path: Path) -> None:
    data = load_data(
        folder(
            tmp_path,
            ratings_csv="userId,movieId,rating,timestamp\n1,2,4.0,5\n",
            movies_csv='movieId,title,genres\n2,"Heat, the (1995)",Action|Crime\n3,Big,(no genres listed)\n',
            tags_csv="userId,movieId,tag,timestamp\n1,2,slow,1\n1,2,Pacino,2\n2,2,pacino,3\n",
        )
    )
    assert data.items.table.to_dicts() == [
        {"item_id": "2", "title": "Heat, the (1995)", "genres": ["Action", "Crime"], "tags": ["pacino", "slow"]},
        {"item_id": "3", "title": "Big", "genres": None, "tags": None},
    ]


def test_demo_is_movielens_latest_small_with_its_licence() -> None:
    data = demo_data()
    assert (data.num_users, data.num_items, len(data.interactions)) == (610, 9742, 100_836)
    assert (data.order, data.items.text_columns) == ("timestamp", ["title", "genres", "tags"])
    assert data.items.titles[data.items.ids.row("1")] == "Toy Story (1995)"
    import graphllmrec.data.read as read

    licence = (Path(read.__file__).parent / "demo" / "README.txt").read_text()
    assert "redistribute" in licence


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([5, 7]), ["5", "7"]),
        (pl.Series([5.0, 7.0]), ["5", "7"]),
        (pl.Series([2**60 + 1, 3]), [str(2**60 + 1), "3"]),
        (pl.Series(["5.0", "7.0"]), ["5", "7"]),
        (pl.Series(["5.0", "x"]), ["5", "x"]),
        (pl.Series(["007", " a "]), ["007", "a"]),
        (pl.Series(["p", "q"], dtype=pl.Categorical), ["p", "q"]),
    ],
)
def test_ids_of_any_type_become_strings(tmp_path: Path, values: pl.Series, expected: list[str]) -> None:
    pl.DataFrame({"user_id": values, "item_id": values}).write_parquet(tmp_path / "interactions.parquet")
    assert load_data(tmp_path).users.ids.to_list() == expected


def test_json_ids_may_mix_numbers_and_text(tmp_path: Path) -> None:
    text = '{"user_id": 12345678901234567890, "item_id": 1}\n\n{"user_id": "a", "item_id": "b"}\n'
    data = load_data(folder(tmp_path, interactions_jsonl=text))
    assert clicks(data) == [("12345678901234567890", "1"), ("a", "b")]
    assert data.order is None


def test_float_ids_of_interactions_meet_integer_ids_of_items(tmp_path: Path) -> None:
    data = load_data(
        folder(tmp_path, interactions_csv="user_id,item_id\n1.0,5.0\n", items_csv="item_id,title\n5,Five\n")
    )
    assert data.items.titles == ["Five"]


def test_catalogue_is_the_items_table_and_unknown_items(tmp_path: Path) -> None:
    items = "item_id,title,brand\nz,Zed,B\nx,Ex,\n"
    data = load_data(folder(tmp_path, interactions_csv=CLICKS, items_csv=items))
    assert data.items.table.rows() == [("x", "Ex", None), ("y", None, None), ("z", "Zed", "B")]
    assert data.interactions.item_degree(data.num_items).tolist() == [2, 2, 0]


def test_item_columns_keep_their_types(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "brand": ["B", " "],
            "item_id": ["x", "y"],
            "name": ["Ex", None],
            "year": [1999, None],
            "categories": [["a", "", None], []],
            "sizes": [[1, 2], [3]],
            "details": [{"weight": 1}, {"weight": 2}],
        }
    ).write_parquet(tmp_path / "items.parquet")
    data = load_data(folder(tmp_path, interactions_csv=CLICKS))
    assert data.items.table.columns == ["item_id", "title", "brand", "year", "categories", "sizes"]
    assert data.items.table.rows() == [
        ("x", "Ex", "B", 1999, ["a"], [1, 2]),
        ("y", None, None, None, None, [3]),
    ]
    assert data.notes == (
        "items.parquet: column details holds objects or bytes, left out",
        "items.parquet: read as attributes, not as text: year, sizes",
    )


def test_items_repeated_word_for_word_are_one(tmp_path: Path) -> None:
    items = "item_id,title\nx,Ex\nx,Ex\n"
    data = load_data(folder(tmp_path, interactions_csv=CLICKS, items_csv=items))
    assert data.items.titles == ["Ex", None]
    assert data.notes == ("items.csv: 1 rows repeat an item word for word, first kept",)


def test_repeated_pairs_keep_their_first_occurrence_in_time(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,rating\nu,i,30,3\nu,j,20,2\nu,i,10,1\n"
    data = load_data(folder(tmp_path, interactions_csv=text))
    assert clicks(data) == [("u", "i"), ("u", "j")]
    assert data.interactions.rating is not None
    assert data.interactions.rating.tolist() == [1, 2]
    assert data.repeats == 1


@pytest.mark.parametrize(
    ("times", "seconds", "note"),
    [
        (["1700000001", "1700000000"], [1700000000, 1700000001], None),
        (["1700000000900", "1700000000100"], [1700000000, 1700000000], "milliseconds"),
        (["1700000001000000", "1700000000000000"], [1700000000, 1700000001], "microseconds"),
        (["1700000001000000001", "1700000001000000000"], [1700000001, 1700000001], "nanoseconds"),
        (["1700000000.75", "1700000000.25"], [1700000000, 1700000000], None),
        (["2023-11-15", "2023-11-14"], [1699920000, 1700006400], "dates"),
        (["2023-11-14T22:13:21Z", "2023-11-14T23:13:20+01:00"], [1700000000, 1700000001], "dates"),
        (["2023/11/14 22:13:21", "2023-11-14 22:13"], [1699999980, 1700000001], "dates"),
        (["2023-11-14 22:13:21 UTC", "2023-11-14 22:13:20+00"], [1700000000, 1700000001], "dates"),
        (["2023-11-14T22:14Z", "2023-11-14 23:13:20+0100"], [1700000000, 1700000040], "dates"),
        (["20231114T221321Z", "14 Nov 2023 22:13:20 GMT"], [1700000000, 1700000001], "dates"),
        (["15-Nov-2023", "Nov 14 2023"], [1699920000, 1700006400], "dates"),
        (["20231115", "20231114"], [1699920000, 1700006400], "YYYYMMDD"),
        (["20231114221321", "20231114221320"], [1700000000, 1700000001], "YYYYMMDDhhmmss"),
    ],
)
@pytest.mark.parametrize("quote", ["", '"'])
def test_times_of_any_unit_become_seconds(
    tmp_path: Path, times: list[str], seconds: list[int], note: str | None, quote: str
) -> None:
    text = f"user_id,item_id,timestamp\nu,late,{quote}{times[0]}{quote}\nu,early,{quote}{times[1]}{quote}\n"
    data = load_data(folder(tmp_path, interactions_csv=text))
    assert clicks(data) == [("u", "early"), ("u", "late")]  # within a second too
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == seconds
    assert (note in data.notes[0]) if note else not data.notes


def test_nanosecond_integers_and_dates_of_parquet(tmp_path: Path) -> None:
    from datetime import datetime

    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["b", "a"]})
    ticks = pl.Series("timestamp", [1_700_000_000_000_000_001, 1_700_000_000_000_000_000])  # equal as floats
    frame.with_columns(ticks).write_parquet(tmp_path / "interactions.parquet")
    assert clicks(load_data(tmp_path)) == [("u", "a"), ("u", "b")]
    dates = pl.Series("timestamp", [datetime(2024, 1, 2), datetime(2024, 1, 1)])
    frame.with_columns(dates).write_parquet(tmp_path / "interactions.parquet")
    order = load_data(tmp_path).interactions.order
    assert order is not None
    assert order.tolist() == [1704067200, 1704153600]


def test_position_orders_and_timestamp_comes_first(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, interactions_csv="user_id,item_id,position\nu,b,1\nu,a,0\n"))
    assert (clicks(data), data.order) == ([("u", "a"), ("u", "b")], "position")
    both = load_data(folder(tmp_path, interactions_csv="user_id,item_id,position,timestamp\nu,b,1,5\nu,a,0,6\n"))
    assert (clicks(both), both.order) == ([("u", "b"), ("u", "a")], "timestamp")
    assert "position is not used" in both.notes[0]


def test_min_rating_drops_rows_before_repeats_and_users_left_empty(tmp_path: Path) -> None:
    text = "user_id,item_id,rating\na,x,2\na,x,4\nb,y,3.9\n"
    data = load_data(folder(tmp_path, interactions_csv=text, items_csv="item_id,title\ny,Why\n"), min_rating=4)
    assert clicks(data) == [("a", "x")]
    assert (data.users.ids.to_list(), data.items.ids.ids.to_list(), data.repeats) == (["a"], ["x", "y"], 0)


CORE = "user_id,item_id\nu1,x\nu1,y\nu1,z\nu2,x\nu2,y\nu3,z\nu3,p\n"  # p and u3 fall, then z; u1 keeps x and y


def test_k_core_iterates_until_stable(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, interactions_csv=CORE), k_core=2)
    assert sorted(clicks(data)) == [("u1", "x"), ("u1", "y"), ("u2", "x"), ("u2", "y")]
    assert data.items.ids.ids.to_list() == ["x", "y"]
    assert data.notes == ("2-core: 1 users and 2 items left out",)


def test_items_outside_the_k_core_stay_candidates_where_the_items_table_has_them(tmp_path: Path) -> None:
    items = "item_id,title\nz,Zed\nq,Queue\ny,Why\n"
    data = load_data(folder(tmp_path, interactions_csv=CORE, items_csv=items), k_core=2)
    assert sorted(clicks(data)) == [("u1", "x"), ("u1", "y"), ("u2", "x"), ("u2", "y")]
    assert data.items.table.rows() == [("q", "Queue"), ("x", None), ("y", "Why"), ("z", "Zed")]
    expected = "2-core: 1 users and 1 items left out; 2 items of the items table outside of it stay, without clicks"
    assert data.notes == (expected,)
    assert make_split(data, "user-ratio", test_ratio=0.5).num_items == 4  # q and z are ranked, and are nobody's target


def test_ready_made_split_keeps_unseen_users_and_items(tmp_path: Path) -> None:
    data = load_data(
        folder(
            tmp_path,
            train_csv="user_id,item_id\n0,1\n0,2\n",
            test_tsv="user_id\titem_id\n7\t9\n",
            valid_csv="uid,iid\n0,3\n",
        )
    )
    assert list(data.ready) == ["train", "valid", "test"]
    assert (data.users.ids.to_list(), data.items.ids.ids.to_list()) == (["0", "7"], ["1", "2", "3", "9"])
    assert [len(part) for part in data.ready.values()] == [2, 1, 1]
    assert sorted(clicks(data)) == [("0", "1"), ("0", "2"), ("0", "3"), ("7", "9")]


def test_blank_lines_and_quoted_line_breaks(tmp_path: Path) -> None:
    items = 'item_id,title\n\nx,"two\nlines, ""quoted"""\n\ny,Why\n\n'
    data = load_data(folder(tmp_path, interactions_csv=CLICKS.replace("\nb,y", "\n\nb,y"), items_csv=items))
    assert data.items.titles == ['two\nlines, "quoted"', "Why"]
    assert len(data.interactions) == 4


def test_far_apart_orders_sort_without_overflow() -> None:
    user = np.array([1, 0, 0, 1], dtype=np.int64)
    order = np.array([2**61, 5, 0, 1], dtype=np.int64)
    table = Interactions(user + 5, np.arange(4, dtype=np.int64), order).sorted()
    assert table.item.tolist() == [2, 1, 3, 0]


def test_columns_of_any_name_are_kept(tmp_path):
    """Names that reading uses for itself belong to the user."""
    names = ["line", "row", "row0", "id", "text", "index"]
    rows = [
        {"item_id": "1", "title": "a"} | dict.fromkeys(names, "x"),
        {"item_id": "2", "title": "b"} | dict.fromkeys(names, "y"),
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "items.csv")
    (tmp_path / "interactions.csv").write_text("user_id,item_id\nu,1\nu,2\n")
    assert load_data(tmp_path).items.table.columns == ["item_id", "title", *names]


def test_bytes_are_left_out_of_items_and_refused_as_ids(tmp_path):
    folder(tmp_path, interactions_csv="user_id,item_id\nu,1\nu,2\n")
    items = {"item_id": ["1", "2"], "title": ["a", "b"], "thumbnail": [b"\xff", b"\x00"], "parts": [[b"\xff"], []]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    data = load_data(tmp_path)
    assert data.items.table.columns == ["item_id", "title"]
    assert [note for note in data.notes if "holds objects or bytes, left out" in note] == [
        "items.parquet: column thumbnail holds objects or bytes, left out",
        "items.parquet: column parts holds objects or bytes, left out",
    ]
    (tmp_path / "interactions.csv").unlink()
    pl.DataFrame({"user_id": [b"\xff"], "item_id": ["1"]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="ids must be text or whole numbers, not bytes"):
        load_data(tmp_path)


def test_two_columns_of_one_name_are_named(tmp_path):
    folder(tmp_path, interactions_csv="user_id,item_id\nu,1\n", items_csv="item_id,brand,brand:token\n1,a,b\n")
    with pytest.raises(DataError, match=r"the columns 'brand' and 'brand:token' are both named 'brand' here"):
        load_data(tmp_path)
