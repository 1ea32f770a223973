"""Properties that hold for any data: every format gives the same dataset, every split divides without a leak."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphllmrec.data import Dataset, check_leakage, load_data, make_split
from graphllmrec.data.filters import k_core
from graphllmrec.data.tables import Interactions
from graphllmrec.errors import DataError

ids = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
ids = ids.filter(lambda text: text.strip() == text and text.lower() not in ("nan", "null", "none", "inf", "-inf"))
ids = ids.filter(lambda text: text != "\ufeff" and not text.endswith(".0"))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
clicks = st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 10**10), st.sampled_from([0.5, 1.0, 4.5]))


def same(first: Dataset, second: Dataset) -> None:
    assert first.users.ids.to_list() == second.users.ids.to_list()
    assert first.items.table.rows() == second.items.table.rows()
    assert first.items.table.columns == second.items.table.columns
    for column in ("user", "item", "order", "rating"):
        np.testing.assert_array_equal(getattr(first.interactions, column), getattr(second.interactions, column))
    assert (first.order, first.repeats) == (second.order, second.repeats)


def written(folder: Path, suffix: str, interactions: pl.DataFrame, items: pl.DataFrame) -> Dataset:
    folder = folder / suffix
    folder.mkdir()
    for name, frame in (("interactions", interactions), ("items", items)):
        path = folder / f"{name}.{suffix}"
        if suffix == "parquet":
            frame.write_parquet(path)
        elif suffix == "jsonl":
            frame.write_ndjson(path)
        else:
            frame.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    return load_data(folder, name="same")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ids, min_size=6, max_size=6, unique=True),
    st.lists(ids, min_size=9, max_size=9, unique=True),
    st.lists(clicks, min_size=1, max_size=30),
    st.lists(texts, min_size=5, max_size=5),
)
def test_every_format_gives_the_same_dataset(
    users: list[str], items: list[str], rows: list[tuple[int, int, int, float]], titles: list[str]
) -> None:
    interactions = pl.DataFrame(
        {
            "user_id": [users[user] for user, *_ in rows],
            "item_id": [items[item] for _, item, *_ in rows],
            "timestamp": [time for *_, time, _ in rows],
            "rating": [rating for *_, rating in rows],
        }
    )
    described = list(dict.fromkeys([items[rows[0][1]], *items[:4]]))  # no table that meets no click at all
    catalogue = pl.DataFrame({"item_id": described, "title": titles[: len(described)]})
    with tempfile.TemporaryDirectory() as folder:
        first, *others = (
            written(Path(folder), suffix, interactions, catalogue) for suffix in ("parquet", "csv", "tsv", "jsonl")
        )
    for other in others:
        same(first, other)
    expected = dict.fromkeys((user, item) for user, item, *_ in rows)
    assert len(first.interactions) == len(expected) == len(rows) - first.repeats


def toy(rows: list[tuple[int, int, int, float]], folder: Path) -> Dataset:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    frame.write_parquet(folder / "interactions.parquet")
    return load_data(folder)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(clicks, min_size=3, max_size=40),
    st.sampled_from(["auto", "leave-last-out", "user-ratio", "global-time", "cold-item"]),
    st.integers(0, 3),
)
def test_a_split_is_a_partition_without_leak(rows: list[tuple[int, int, int, float]], kind: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = toy(rows, Path(folder))
    try:
        split = make_split(data, kind, seed=seed)
    except DataError:
        assume(False)
    check_leakage(split)
    parts = [split.train, split.valid, split.test]
    keys = np.concatenate([part.user * data.num_items + part.item for part in parts])
    whole = data.interactions.user * data.num_items + data.interactions.item
    np.testing.assert_array_equal(np.sort(keys), np.sort(whole))
    known = split.known("test")
    assert [
        len(set(known[user].tolist()) & set(split.targets("test")[user].tolist())) for user in range(data.num_users)
    ] == [0] * data.num_users


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1), st.integers(1, 4))
def test_k_core_is_the_largest_set_that_holds(pairs: set[tuple[int, int]], k: int) -> None:
    user, item = np.array(sorted(pairs), dtype=np.int64).T
    keep = k_core(Interactions(user, item), 7, 7, k)
    rest = set(pairs)  # the definition, one removal at a time
    while bad := next(
        (
            pair
            for pair in sorted(rest)
            if sum(pair[0] == u for u, _ in rest) < k or sum(pair[1] == i for _, i in rest) < k
        ),
        None,
    ):
        rest.remove(bad)
    assert set(zip(user[keep].tolist(), item[keep].tolist(), strict=True)) == rest


@pytest.mark.parametrize("junk_type", ["csv", "jsonl", "parquet", "csv.gz", "csv.zst", "inter"])
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_junk_is_refused_with_a_data_error(junk_type: str, junk: bytes, header: bool) -> None:
    content = (b"user_id,item_id,timestamp\n" if header else b"") + junk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"interactions.{junk_type}").write_bytes(content)
        with contextlib.suppress(DataError):  # any other exception fails the test
            assert len(load_data(folder).interactions)
