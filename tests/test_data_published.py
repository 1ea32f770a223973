"""Folders as they are published: MovieLens, RecBole, Amazon reviews."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from graphllmrec.data import load_data
from graphllmrec.errors import DataError


def put(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def test_movielens_100k(tmp_path: Path) -> None:
    flags = "|0" * 8 + "|1" + "|0" * 9 + "|1"
    films = f"2|Café (1990)|01-Jan-1990||http://imdb/2{flags}\n3|Lamp (1991)|||http://imdb/3{'|0' * 19}\n"
    put(tmp_path, **{"u.data": b"1\t2\t3\t881250949\n1\t3\t4\t881250950\n", "u.item": films.encode("latin-1")})
    put(tmp_path, **{"u.user": b"1|24|M|technician|85711\n", "README": b"..."})
    data = load_data(tmp_path)
    assert data.items.titles == ["Café (1990)", "Lamp (1991)"]
    assert data.items.table["genres"].to_list() == [["Drama", "Western"], None]
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [881250949, 881250950]
    assert load_data(tmp_path / "u.data").num_items == 2


def test_movielens_1m_and_10m(tmp_path: Path) -> None:
    put(tmp_path, **{
        "ratings.dat": b"1::2::5::978300760\n1::3::4.5::978300761\n",
        "movies.dat": "2::Café; \"the\" (1990)::Drama|War\n3::Lamp (1991)::Comedy\n".encode("latin-1"),
        "tags.dat": b"1::2::slow::978300762\n",
    })  # fmt: skip
    data = load_data(tmp_path)
    assert data.items.titles == ['Café; "the" (1990)', "Lamp (1991)"]
    assert data.items.table["genres"].to_list() == [["Drama", "War"], ["Comedy"]]
    assert data.items.table["tags"].to_list() == [["slow"], None]
    put(tmp_path, **{"ratings.dat": b"1::2::5::978300760\n1::3::4.5::978300761::7\n"})
    with pytest.raises(DataError, match=r"ratings\.dat, line 2: 5 values where the header names 4"):
        load_data(tmp_path)


def test_recbole_split(tmp_path: Path) -> None:
    head = b"user_id:token\titem_id:token\n"
    put(
        tmp_path,
        **{"z.train.inter": head + b"a\t1\n", "z.valid.inter": head + b"a\t2\n", "z.test.inter": head + b"a\t3\n"},
    )
    put(tmp_path, **{"z.item": b"item_id:token\ttitle:token_seq\n1\tLamp\n2\tPot\n", "z.user": b"user_id:token\na\n"})
    data = load_data(tmp_path)
    assert list(data.ready) == ["train", "valid", "test"]
    assert data.items.titles == ["Lamp", "Pot", None]


TOY = {"title": "Kid's toy", "categories": ["Toys", "Cars", "Gifts"]}
REVIEW = {"overall": 5.0, "reviewerID": "A1", "asin": "B1", "reviewText": "Good", "unixReviewTime": 1500000000}
NEW = {"rating": 5.0, "user_id": "A1", "asin": "B0", "parent_asin": "B1", "timestamp": 1500000000000, "title": "Yes"}
PATHS = {"asin": "B1", "title": "Kid's toy", "categories": [["Toys", "Cars"], ["Gifts"]], "salesRank": {"Toys": 1}}
RANKED = [{"asin": "B1", **TOY, "rank": "3 in Toys ("}, {"asin": "B2", "title": "Bow", "rank": [">#4 in Toys"]}]


@pytest.mark.parametrize(
    ("reviews", "review", "meta", "items"),
    [
        ("reviews_Toys_5.json.gz", REVIEW, "meta_Toys.json.gz", [repr(PATHS)]),
        ("Toys_5.json.gz", {**REVIEW, "style": {"Color:": " red"}}, "meta_Toys.json.gz", map(json.dumps, RANKED)),
        ("Toys.jsonl.gz", NEW, "meta_Toys.jsonl.gz", [json.dumps({"parent_asin": "B1", **TOY, "details": {"a": {}}})]),
    ],
    ids=["2014", "2018", "2023"],
)
def test_amazon_reviews(
    tmp_path: Path, reviews: str, review: dict[str, object], meta: str, items: Iterable[str]
) -> None:
    put(tmp_path, **{reviews: json.dumps(review).encode() + b"\n", meta: "\n".join(items).encode() + b"\n"})
    data = load_data(tmp_path)
    assert data.users.ids.to_list() == ["A1"]
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [1500000000]
    assert data.items.table.row(0, named=True)["title"] == "Kid's toy"
    assert data.items.table["categories"].to_list()[0] == ["Toys", "Cars", "Gifts"]


def test_python_literals_are_data_never_code(tmp_path: Path) -> None:
    put(tmp_path, **{"reviews_Z.json": b'{"reviewerID": "a", "asin": "b"}\n'})
    put(tmp_path, **{"meta_Z.json": b"{'asin': 'b', 'title': 'x'}\n{'asin': __import__('os').getcwd()}\n"})
    with pytest.raises(DataError, match=r"meta_Z\.json, line 2: not a JSON object"):
        load_data(tmp_path)


def test_meta_of_something_else_is_no_table(tmp_path: Path) -> None:
    put(tmp_path, **{"interactions.csv": b"user_id,item_id\na,b\n", "meta_run.json": b'{"seed": 3}\n'})
    assert load_data(tmp_path).num_items == 1
