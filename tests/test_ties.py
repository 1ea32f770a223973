"""Equal times: a fixed hash of the ids decides, not the rows of the file."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from graphllmrec import Recommender
from graphllmrec.data import Dataset, load_data, make_split, statistics
from graphllmrec.data.ties import hash_ids, pair_hashes
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation import protocol_line
from graphllmrec.evaluation.compare import compare

Row = tuple[str, str, int, float]


def written(folder: Path, rows: list[Row], items: list[tuple[str, str]], **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    names = ["user_id", "item_id", "timestamp", "rating"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(folder / "interactions.csv")
    pl.DataFrame(items, schema=["item_id", "title"], orient="row").write_csv(folder / "items.csv")
    return folder


def world(seed: int = 0, users: int = 60) -> tuple[list[Row], list[tuple[str, str]]]:
    """Users with baskets: several clicks at one time, one pair repeated with another rating at that time."""
    draw = random.Random(seed)
    rows = [
        (f"u{user}", f"i{item}", 1_600_000_000 + draw.randrange(3), float(draw.randrange(1, 6)))
        for user in range(users)
        for item in [*draw.sample(range(30), 8), 3, 3]
    ]
    return rows, [
        (f"i{item}", f"thing number {item} of {draw.choice(['wood', 'steel', 'glass'])}") for item in range(30)
    ]


def shuffled(values: list, seed: int = 1) -> list:  # type: ignore[type-arg]
    return random.Random(seed).sample(values, len(values))


def everything(data: Dataset) -> list[object]:
    rows = data.interactions
    assert rows.order is not None
    assert rows.rating is not None
    arrays = [rows.user, rows.item, rows.order, rows.rating]
    return [data.users.ids.to_list(), data.items.table.rows(), *(values.tolist() for values in arrays)]


def test_the_hash_is_that_of_its_definition() -> None:
    def one(user: str, item: str) -> int:
        u, i = (
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in (user, item)
        )
        mixed = u ^ ((i << 32 | i >> 32) & (2**64 - 1))
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) % 2**64
        return mixed ^ mixed >> 31

    users, items = ["a", "b", "é", "7"], ["x", "y", "", "7"]
    found = pair_hashes(hash_ids(pl.Series(users)), hash_ids(pl.Series(items)))
    assert found.tolist() == [one(user, item) for user, item in zip(users, items, strict=True)]
    assert one("a", "x") != one("x", "a")


@pytest.mark.parametrize("seed", range(5))
def test_rows_in_any_order_give_the_same_dataset(tmp_path: Path, seed: int) -> None:
    rows, items = world(seed)
    first = load_data(written(tmp_path / "data", rows, items))
    second = load_data(written(tmp_path / "data", shuffled(rows, seed), shuffled(items, seed)))
    assert everything(first) == everything(second)


def test_the_hash_favours_no_item(tmp_path: Path) -> None:
    """Of a user's clicks at one time, each is the newest about equally often."""
    rows = [(f"u{user}", item, 7, 1.0) for user in range(2000) for item in "abcd"]
    split = make_split(load_data(written(tmp_path, rows, [("a", "A")])))
    newest = np.bincount(split.test.item) / 2000
    np.testing.assert_allclose(newest, 0.25, atol=0.04)


def test_ties_may_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [("u", item, 7, 1.0) for item in "qcxab"]
    data = load_data(written(tmp_path, rows, []), ties="file")
    assert "".join(data.items.ids.of(data.interactions.item)) == "qcxab"
    assert "the order of rows in the file decides" in data.notes[-1]


def test_the_share_of_tied_users_is_told(tmp_path: Path) -> None:
    rows = [
        ("tied", "a", 1, 1.0),
        ("tied", "b", 1, 1.0),
        ("one", "a", 1, 1.0),
        ("clear", "a", 1, 1.0),
        ("clear", "b", 2, 1.0),
    ]
    data = load_data(written(tmp_path, rows, []))
    assert data.tied_users == 0.5  # of the two users with more than one click
    assert data.notes[-1].startswith("the newest two interactions of 50% of the users have the same timestamp")
    assert (statistics(data)["tied_users"], statistics(data)["ties"]) == (0.5, "hash")


def test_times_that_differ_within_a_second_are_not_tied(tmp_path: Path) -> None:
    rows = [("u", "b", 1_700_000_000_500, 1.0), ("u", "a", 1_700_000_000_100, 1.0)]
    data = load_data(written(tmp_path, rows, []))
    assert (data.items.ids.of(data.interactions.item), data.tied_users) == (["a", "b"], 0.0)


@pytest.mark.parametrize(
    "recipe",
    ["popularity", "transitions", "item-knn", "z-sum", "lightgcn-fast", pytest.param("hybrid", marks=pytest.mark.slow)],
)
def test_figures_do_not_depend_on_the_order_of_rows(tmp_path: Path, recipe: str) -> None:
    rows, items = world(users=40)
    settings = {"lightgcn-fast": {"model": {"epochs": 2, "embedding_dim": 8}}}.get(recipe, {})
    found = []
    for order in (rows, shuffled(rows)):
        folder = written(tmp_path / "data", order, items if order is rows else shuffled(items))
        fitted = Recommender.from_recipe(recipe, **settings).fit(folder)
        found.append(fitted.evaluate())
    assert found[0].overall == found[1].overall
    assert found[0].lists.tolist() == found[1].lists.tolist()


def test_the_protocol_names_the_rule(tmp_path: Path) -> None:
    rows, items = world()
    evaluation = Recommender.from_recipe("popularity").fit(written(tmp_path, rows, items)).evaluate()
    line = protocol_line(evaluation.protocol)
    assert "of users, sorted by a hash of the ids" in line


def test_a_refused_comparison_names_the_seeds_of_a_random_split(tmp_path: Path) -> None:
    rows, items = world()
    folder = written(tmp_path, rows, items)
    one, two = (
        Recommender.from_recipe("popularity", data={"split": "user-ratio"}, seed=seed).fit(folder).evaluate()
        for seed in (1, 2)
    )
    with pytest.raises(EvaluationError, match="seeds 1 and 2"):
        compare(one, two, "ndcg@20")
    other = Recommender.from_recipe("popularity", data={"ties": "file"}).fit(folder).evaluate()
    hashed = Recommender.from_recipe("popularity").fit(folder).evaluate()
    with pytest.raises(EvaluationError, match="ties: file and hash"):
        compare(other, hashed, "ndcg@20")
