"""Splits: who goes where, what is known when, and that leaks are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from graphllmrec.data import Dataset, IdMap, Interactions, Items, Split, check_leakage, load_data, make_split
from graphllmrec.errors import DataError


def dataset(
    user: list[int], item: list[int], order: list[int] | None = None, kind: str | None = "timestamp"
) -> Dataset:
    users, items = (
        IdMap([f"u{row}" for row in range(max(user) + 1)]),
        IdMap([f"i{row}" for row in range(max(item) + 1)]),
    )
    table = Interactions(
        np.array(user, dtype=np.int64),
        np.array(item, dtype=np.int64),
        None if order is None else np.array(order, dtype=np.int64),
    ).sorted()
    rows = pl.DataFrame({"item_id": items.ids})
    return Dataset("toy", users, Items(items, rows), table, order=None if order is None else kind, source="toy")


def world(num_users: int = 50, clicks: int = 20, kind: str | None = "timestamp") -> Dataset:
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(num_users), clicks)
    item = np.concatenate([draw.permutation(100)[:clicks] for _ in range(num_users)])
    order = draw.integers(1, 500, len(user)).tolist() if kind else None
    return dataset(user.tolist(), item.tolist(), order, kind)


def pairs(part: Interactions) -> set[tuple[int, int]]:
    return set(zip(part.user.tolist(), part.item.tolist(), strict=True))


def test_leave_last_out_on_a_history_known_by_heart() -> None:
    # user 0: items 3, 1, 2 in time; user 1: two clicks only; user 2: ties keep their place in the file
    data = dataset([0, 0, 0, 1, 1, 2, 2, 2, 2], [1, 2, 3, 0, 1, 4, 3, 2, 1], [20, 30, 10, 1, 2, 7, 7, 7, 7])
    split = make_split(data, "leave-last-out")
    assert pairs(split.train) == {(0, 3), (1, 0), (1, 1), (2, 4), (2, 3)}
    assert pairs(split.valid) == {(0, 1), (2, 2)}
    assert pairs(split.test) == {(0, 2), (2, 1)}
    assert (split.kind, split.valid_in_history, split.ordered) == ("leave-last-out", True, True)
    assert split.known("valid")[0].tolist() == [3]
    assert split.known("test")[0].tolist() == [3, 1]
    assert split.targets("test")[1].tolist() == []
    check_leakage(split)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (world(), "leave-last-out"),
        (world(kind="position"), "leave-last-out"),
        (world(kind=None), "user-ratio"),
    ],
)
def test_auto_follows_the_data(data: Dataset, kind: str) -> None:
    assert make_split(data).kind == kind


@pytest.mark.parametrize("kind", ["leave-last-out", "user-ratio", "global-time", "cold-item"])
def test_every_interaction_is_in_exactly_one_part(kind: str) -> None:
    data = world()
    split = make_split(data, kind)
    parts = [split.train, split.valid, split.test]
    assert sum(map(len, parts)) == len(data.interactions)
    assert set.union(*map(pairs, parts)) == pairs(data.interactions)
    assert all(len(part) for part in parts)
    check_leakage(split)


@pytest.mark.parametrize("kind", ["user-ratio", "cold-item"])
def test_random_splits_are_functions_of_the_seed(kind: str) -> None:
    data = world()
    first, again, other = (make_split(data, kind, seed=seed) for seed in (1, 1, 2))
    assert pairs(first.test) == pairs(again.test) != pairs(other.test)
    assert first.settings["seed"] == 1


def test_user_ratio_takes_its_share_of_every_user_and_leaves_one() -> None:
    split = make_split(world(), "user-ratio", valid_ratio=0.1, test_ratio=0.2)
    assert set(split.test.histories(50).lengths.tolist()) == {4}
    assert set(split.valid.histories(50).lengths.tolist()) == {2}
    assert not split.valid_in_history
    few = make_split(dataset([0, 1, 1], [0, 0, 1]), "user-ratio", test_ratio=0.5, valid_ratio=0.4)
    assert few.train.histories(2).lengths.tolist() == [1, 1]


def test_user_ratio_draws_evenly_from_a_history() -> None:
    share = np.zeros(20)
    data = dataset([0] * 20, list(range(20)), list(range(20)))
    for seed in range(400):
        share[make_split(data, "user-ratio", seed=seed).test.item] += 1 / 400
    assert np.abs(share - 0.2).max() < 0.08  # four standard deviations


def test_global_time_cuts_at_one_moment_and_keeps_ties_together() -> None:
    data = dataset([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], list(range(10)), [1, 2, 5, 5, 1, 3, 4, 5, 5, 2])
    split = make_split(data, "global-time", valid_ratio=0.2, test_ratio=0.2)
    assert split.test.order is not None
    assert split.train.order is not None
    assert set(split.test.order.tolist()) == {5}
    assert len(split.test) == 4
    assert split.train.order.max() < 5
    assert split.valid_in_history


def test_global_time_gives_every_part_its_share() -> None:
    data = dataset([0] * 100, list(range(100)), list(range(100)))
    split = make_split(data, "global-time", valid_ratio=0.1, test_ratio=0.2)
    assert [part.item.tolist() for part in (split.train, split.valid, split.test)] == [
        list(range(70)), list(range(70, 80)), list(range(80, 100)),
    ]  # fmt: skip


def test_as_many_items_may_be_cold_as_leave_one_to_train_on() -> None:
    data = dataset([0, 1] * 11, [item for item in range(11) for _ in range(2)], kind=None)
    split = make_split(data, "cold-item", cold_ratio=0.45)
    assert [len(np.unique(part.item)) for part in (split.train, split.valid, split.test)] == [1, 5, 5]


def test_cold_items_have_no_training_click() -> None:
    split = make_split(world(), "cold-item", cold_ratio=0.1)
    degree = split.item_degree()
    assert len(np.unique(split.test.item)) == len(np.unique(split.valid.item)) == 10
    assert not degree[split.test.item].any()
    assert not degree[split.valid.item].any()


def test_ready_made_is_taken_as_published(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("user_id,item_id\n0,1\n0,2\n1,1\n")
    (tmp_path / "test.csv").write_text("user_id,item_id\n1,2\n2,9\n")
    split = make_split(load_data(tmp_path))
    assert (split.kind, split.valid_in_history, split.ordered) == ("ready-made", False, False)
    assert (len(split.train), len(split.valid), len(split.test)) == (3, 0, 2)
    assert (split.num_users, split.num_items) == (3, 3)
    assert split.known("test").lengths.tolist() == [2, 1, 0]
    (tmp_path / "test.csv").write_text("user_id,item_id\n1,2\n0,2\n")
    with pytest.raises(DataError, match="1 test interactions of the same user stand in train as well"):
        make_split(load_data(tmp_path))


def test_a_ready_made_set_can_be_divided_anew(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("user_id,item_id\n0,1\n0,2\n0,3\n0,4\n")
    (tmp_path / "test.csv").write_text("user_id,item_id\n0,5\n")
    split = make_split(load_data(tmp_path), "user-ratio")
    assert (len(split.train), len(split.valid), len(split.test)) == (3, 1, 1)


def leaking(kind: str, **parts: tuple[list[int], list[int], list[int]]) -> Split:
    tables = {
        name: Interactions(*(np.array(column, dtype=np.int64) for column in columns)) for name, columns in parts.items()
    }
    return Split(kind, 3, 5, tables["train"], tables["valid"], tables["test"], True, True)


@pytest.mark.parametrize(
    ("kind", "parts", "message"),
    [
        (
            "user-ratio",
            (([0], [1], [1]), ([], [], []), ([0], [1], [2])),
            "1 test interactions of the same user stand in",
        ),
        ("user-ratio", (([0], [1], [1]), ([0], [1], [2]), ([], [], [])), "1 valid interactions of the same user stand"),
        ("user-ratio", (([0], [1], [1]), ([0], [2], [2]), ([0], [2], [3])), "of the same user stand in valid as well"),
        ("leave-last-out", (([0], [1], [9]), ([], [], []), ([0], [2], [5])), "1 test interactions are older than"),
        ("global-time", (([0], [1], [9]), ([1], [2], [5]), ([], [], [])), "1 valid interactions are older than"),
        ("cold-item", (([0], [1], [1]), ([], [], []), ([2], [1], [2])), "1 test interactions are of items with"),
    ],
)
def test_leaks_are_found(kind: str, parts: tuple[tuple[list[int], list[int], list[int]], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_leakage(leaking(kind, **dict(zip(("train", "valid", "test"), parts, strict=True))))


def test_different_pairs_are_never_taken_for_one() -> None:
    """Two items and three users: user 2 with item 0 is another pair than user 0 with item 1, and so are all others."""
    every = [(user, item) for user in range(3) for item in range(2)]
    for one in every:
        for other in every:
            parts = {"train": ([one[0]], [one[1]], [1]), "valid": ([], [], []), "test": ([other[0]], [other[1]], [2])}
            if one != other:
                check_leakage(replace(leaking("user-ratio", **parts), num_items=2))
            else:
                with pytest.raises(DataError, match="of the same user stand in train"):
                    check_leakage(replace(leaking("user-ratio", **parts), num_items=2))


def test_other_users_may_be_later_in_leave_last_out() -> None:
    check_leakage(leaking("leave-last-out", train=([0, 1], [1, 1], [1, 99]), valid=([], [], []), test=([0], [2], [5])))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (world(), {"kind": "random"}, "unknown split 'random'"),
        (world(kind=None), {"kind": "leave-last-out"}, "leave-last-out needs an order"),
        (world(kind="position"), {"kind": "global-time"}, "global-time needs timestamps"),
        (world(), {"kind": "ready-made"}, "the data is not split"),
        (world(), {"kind": "user-ratio", "test_ratio": 0.9}, "leave no room for training"),
        (world(), {"kind": "cold-item", "cold_ratio": 0.5}, "cold_ratio 0.5 of 100 clicked items"),
        (world(), {"kind": "cold-item", "cold_ratio": 0.001}, "cold_ratio 0.001 of 100 clicked items"),
        (dataset([0, 0, 1, 1], [0, 1, 0, 1], [1, 2, 1, 2]), {}, "leaves 4 interactions to train and 0 to test"),
        (dataset([0, 0], [0, 1], [1, 1]), {"kind": "global-time"}, "leaves 0 interactions to train and 2 to test"),
    ],
)
def test_splits_that_cannot_be_made(data: Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_split(data, **options)  # type: ignore[arg-type]


def test_global_time_tests_at_least_the_newest() -> None:
    split = make_split(dataset([0, 0], [0, 1], [1, 2]), "global-time", test_ratio=0.01, valid_ratio=0)
    assert (pairs(split.train), pairs(split.test)) == ({(0, 0)}, {(0, 1)})
