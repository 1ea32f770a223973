"""What a notebook shows of data, recommenders, figures and lists: complete, escaped, short."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import asdict
from html.parser import HTMLParser

import polars as pl
import pytest

from front_door_world import write_world
from graphllmrec import Dataset, Recommender, evaluate, load_data
from graphllmrec.recommendation import Explanation, RankedLists, Recommendation

BAD = "<script>alert(1)</script> & \x1b[31m"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Dataset:
    """A world whose name, ids and titles hold markup."""
    folder = write_world(tmp_path_factory.mktemp("data") / "books")
    for name in ("items", "interactions"):
        path = folder / f"{name}.csv"
        table = pl.read_csv(path).with_columns(pl.concat_str(pl.col("item_id"), pl.lit("<b>")))
        if name == "items":
            table = table.with_columns(title=pl.concat_str(pl.col("title"), pl.lit(f" {BAD}")))
        else:
            table = table.with_columns(pl.concat_str(pl.col("user_id"), pl.lit("<i>")))
        table.write_csv(path)
    return load_data(folder, name=f"books {BAD}")


@pytest.fixture(scope="module")
def fitted(world) -> Recommender:
    return Recommender.from_recipe("item-knn").fit(world)


class Well(HTMLParser):
    """Checks that every element is closed, and collects the visible text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if "style" in self.open else f"{data}\n"


def text_of(shown) -> str:
    """The visible text of the HTML form, which is well-formed, holds no markup of the data and nothing from outside."""
    html = shown._repr_html_()
    parser = Well()
    parser.feed(html)
    assert parser.open == []
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "\x1b" not in html
    assert not re.search(r"https?:|@import|url\(", html)
    return parser.text


def test_a_dataset(world):
    text = text_of(world)
    for said in ("40", "48", "320", "timestamp", "title", "Dataset books <script>"):
        assert said in text
    assert repr(world).startswith("Dataset('books <script>")
    assert repr(world).endswith("40 users, 48 items, 320 interactions, ordered by timestamp)")


def test_a_recommender_before_and_after_fit(fitted):
    assert "not fitted" in text_of(Recommender.from_recipe("item-knn"))
    assert repr(Recommender.from_recipe("item-knn")) == "Recommender(item-knn, not fitted)"
    text = text_of(fitted)
    assert "240 / 40 / 40" in text
    assert "not used" in text
    assert repr(fitted).startswith("Recommender(item-knn, fitted on Dataset(")


def test_an_evaluation(fitted):
    found = evaluate(fitted)
    text = text_of(found)
    low, high = found.overall_ci["ndcg@20"]
    assert f"{found.overall['ndcg@20']:.4f}" in text
    assert f"{low:.4f}–{high:.4f}" in text
    assert "all 48 items ranked" in text
    assert repr(found).startswith(f"Evaluation(item-knn, test part: ndcg@20 {found.overall['ndcg@20']:.4f}, recall@20 ")
    assert len(repr(found)) < 120


def test_lists_are_lists_and_are_shown_with_their_users(fitted):
    lists = fitted.recommend(users=["u0<i>", "u1<i>"], k=3)
    assert isinstance(lists, list)
    assert all(isinstance(entries, list) for entries in lists)
    assert lists == [list(entries) for entries in lists]
    assert pickle.loads(pickle.dumps(lists)) == lists == copy.deepcopy(lists)
    assert pickle.loads(pickle.dumps(lists))._repr_html_() == lists._repr_html_()
    assert len(json.loads(json.dumps([[asdict(entry) for entry in entries] for entries in lists]))) == 2
    text = text_of(lists)
    assert "user u0<i>" in text
    assert "user u1<i>" in text
    for entry in lists[0]:
        assert entry.item_id in text
        assert f"{entry.score:.4f}" in text
    assert lists[0][0].item_id in text_of(lists[0])
    assert "the history" in text_of(fitted.recommend(history=["i0<b>"], k=3))
    assert text_of(fitted.similar("i0<b>", k=3)).count("i") > 2


def test_of_many_lists_the_first_are_shown():
    lists = [[Recommendation("a", None, 1.0)]] * 100
    text = text_of(RankedLists(lists, [f"user {n}" for n in range(100)]))
    assert "user 5" in text
    assert "user 6" not in text
    assert "94 more lists are not shown." in text


def test_an_empty_list():
    assert "user 1" in text_of(RankedLists([[]], ["user 1"]))
    assert "Recommendations" in text_of(RankedLists([], []))


def test_an_explanation(fitted):
    text = text_of(fitted.explain("u0<i>", "i5<b>"))
    assert "nearest items of the history" in text
    near = [Recommendation(BAD, BAD, 0.5)]
    full = Explanation(
        "i5",
        BAD,
        -0.5,
        {"clicks": 0.25, "text": -0.75},
        0.9,
        {"cold/tail": 0.8, "warm/tail": 0.199, "new": 0.001},
        near,
    )
    text = text_of(full)
    assert "0.90" in text
    assert "80%" in text
    assert "as new" not in text
    assert [float(width) for width in re.findall(r"width:([\d.]+)%", full._repr_html_())] == [25.0, 75.0]
    assert full._repr_html_().count("class=negative") == 1
    assert repr(full).endswith("score -0.5000 = +0.2500 clicks -0.7500 text, gate 0.90)")
