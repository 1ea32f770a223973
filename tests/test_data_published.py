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


def lines(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_amazon_2023_as_published(tmp_path: Path) -> None:
    """Variants of a product are one item; a review's title is its headline; prices are numbers, words, dashes, null."""
    review = {"rating": 5.0, "title": "Lovely", "text": "Soft.", "images": [], "asin": "B1", "parent_asin": "B1",
              "user_id": "A1", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True}  # fmt: skip
    photo = {"small_image_url": "https://a/s.jpg", "large_image_url": "https://a/l.jpg", "attachment_type": "IMAGE"}
    second = review | {"asin": "B7", "parent_asin": "B2", "images": [photo], "text": "", "timestamp": 1588687728999}
    item = {"main_category": "All Beauty", "title": "Cream", "average_rating": 4.2, "rating_number": 15,
            "features": ["For the face"], "description": ["Mild.", "Rich."], "price": None, "store": "Shop",
            "images": [{"thumb": "https://a/t.jpg", "large": "https://a/l.jpg", "variant": "MAIN", "hi_res": None}],
            "videos": [], "categories": [], "details": {"Brand": "B"}, "parent_asin": "B1", "bought_together": None,
            "subtitle": None, "author": None}  # fmt: skip
    items = [
        item,
        item | {"parent_asin": "B2", "price": 69.0, "author": {"name": "X", "about": ["y"]}, "store": None},
        item | {"parent_asin": "B3", "price": "from 14.99", "videos": [{"title": "v", "url": "https://v"}]},
        item | {"parent_asin": "B4", "price": "—", "details": {}, "features": [], "description": []},
        item | {"parent_asin": "B5", "price": "None"},
    ]
    put(tmp_path, **{"All_Beauty.jsonl.gz": lines([review, second]), "meta_All_Beauty.jsonl.gz": lines(items)})
    data = load_data(tmp_path)
    assert data.items.ids.ids.to_list() == ["B1", "B2", "B3", "B4", "B5"]
    assert data.items.ids.of(data.interactions.item) == ["B1", "B2"]  # in milliseconds the first one is older
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [1588687728] * 2
    assert data.interactions.review is not None
    assert data.interactions.review.to_list() == ["Lovely. Soft.", "Lovely"]
    assert data.items.table["price"].to_list() == [None, 69.0, 14.99, None, None]
    assert data.items.table["description"].to_list()[0] == ["Mild.", "Rich."]
    assert {"title", "main_category", "store", "features", "description"} <= set(data.items.text_columns)
    assert not {"average_rating", "rating_number", "price", "details"} & set(data.items.text_columns)


def test_amazon_2018_as_published(tmp_path: Path) -> None:
    """Several rows of one product, prices that are style sheets, sales ranks as text or lists."""
    review = {"overall": 5.0, "vote": "2", "verified": True, "reviewTime": "01 1, 2018", "reviewerID": "A1",
              "asin": "B1", "style": {"Size:": "Large"}, "reviewerName": "Abbey", "reviewText": "Fits",
              "summary": "Comfy.", "unixReviewTime": 1514764800, "image": ["https://i/1.jpg"]}  # fmt: skip
    second = {key: value for key, value in review.items() if key not in ("style", "vote", "image", "reviewText")}
    item = {"category": [], "tech1": "", "description": ["Loud amplifier"], "fit": "", "title": "Amplifier",
            "also_buy": ["B000Z96JDI", "B00006IGL8"], "tech2": "", "brand": "Idea Village", "feature": [],
            "rank": "2,938,573 in Beauty (", "also_view": [], "details": {"ASIN: ": "B1"}, "main_cat": "All Beauty",
            "similar_item": " class=\"comparison_table\">\n <tr>", "date": "", "price": "$1,162.25", "asin": "B1",
            "imageURL": ["https://i/1.jpg"], "imageURLHighRes": []}  # fmt: skip
    items = [
        item,
        item | {"asin": "B2", "price": "$14.02 - $79.04", "rank": [">#3 in Toys", ">#1 in Toys > Cars"], "details": {}},
        item | {"asin": "B3", "price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget", "rank": []},
        item | {"asin": "B1", "price": "", "title": "Amplifier, used"},
    ]
    clicks = [review, second | {"asin": "B2"}]
    put(tmp_path, **{"All_Beauty_5.json.gz": lines(clicks), "meta_All_Beauty.json.gz": lines(items)})
    data = load_data(tmp_path)
    assert data.items.titles == ["Amplifier"] * 3
    assert data.items.table["price"].to_list() == [1162.25, 14.02, None]
    assert not {"rank", "similar_item", "price", "also_buy", "imageURL", "details"} & set(data.items.text_columns)
    assert data.interactions.review is not None
    assert sorted(data.interactions.review.to_list()) == ["Comfy", "Comfy. Fits"]
    assert "meta_All_Beauty.json.gz: 1 rows repeat an item, first kept" in data.notes


def test_python_literals_are_data_never_code(tmp_path: Path) -> None:
    put(tmp_path, **{"reviews_Z.json": b'{"reviewerID": "a", "asin": "b"}\n'})
    put(tmp_path, **{"meta_Z.json": b"{'asin': 'b', 'title': 'x'}\n{'asin': __import__('os').getcwd()}\n"})
    with pytest.raises(DataError, match=r"meta_Z\.json, line 2: not a JSON object"):
        load_data(tmp_path)


def test_meta_of_something_else_is_no_table(tmp_path: Path) -> None:
    put(tmp_path, **{"interactions.csv": b"user_id,item_id\na,b\n", "meta_run.json": b'{"seed": 3}\n'})
    assert load_data(tmp_path).num_items == 1
