"""Splits: the interactions for training, the known history of each user at evaluation, and the target items."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.tables import Dataset, Histories, Interactions, Ints
from graphllmrec.errors import DataError, EvaluationError
from graphllmrec.rng import rng

Part = Literal["valid", "test"]
KINDS = ("auto", "leave-last-out", "user-ratio", "global-time", "cold-item", "ready-made")
TRAIN, VALID, TEST = 0, 1, 2  # labels of interactions while a split is made


@dataclass(frozen=True)
class Split:
    """Train, validation and test interactions over the same users and items (row numbers)."""

    kind: str  # "leave-last-out", "user-ratio", "global-time", "cold-item", "ready-made"
    num_users: int
    num_items: int
    train: Interactions
    valid: Interactions
    test: Interactions
    valid_in_history: bool  # at test time, the validation part is in the history, and masked
    ordered: bool  # histories have a meaningful order
    settings: dict[str, object] = field(default_factory=dict)

    def known(self, part: Part) -> Histories:
        """The history of each user when `part` is evaluated (num_users rows); its items are masked in the ranking."""
        _require_part(part)
        if part == "valid" or not self.valid_in_history or not len(self.valid):
            return self.train.histories(self.num_users)
        clicks = [Interactions(part.user, part.item) for part in (self.train, self.valid)]  # valid is the later part
        return Interactions.joined(clicks).histories(self.num_users)

    def targets(self, part: Part) -> Histories:
        """The target items of each user (num_users rows). Raises EvaluationError for another part than these two."""
        _require_part(part)
        return (self.valid if part == "valid" else self.test).histories(self.num_users)

    def interactions(self) -> Interactions:
        """Those of all parts: per user by order where there is one, else train, then valid, then test."""
        return Interactions.joined([self.train, self.valid, self.test])

    def item_degree(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Training clicks per item (num_items,): what "cold", "tail" and the strata refer to."""
        return self.train.item_degree(self.num_items)


def _require_part(part: str) -> None:
    if part not in get_args(Part):
        raise EvaluationError(f"unknown part {part!r} of a split; write one of {', '.join(map(repr, get_args(Part)))}")


def make_split(
    dataset: Dataset,
    kind: str = "auto",
    *,
    seed: int = 0,
    valid_ratio: float = 0.1,
    test_ratio: float = 0.2,
    cold_ratio: float = 0.1,
) -> Split:
    """Divide the interactions of a dataset into train, valid and test.

    - auto: ready-made if the dataset is, else leave-last-out if it has an order, else user-ratio.
    - leave-last-out: of users with three or more interactions, the last is in test and the second last in valid; of
      equal times, the one that comes later by data/ties.py.
    - user-ratio: of each user, random shares `test_ratio` and `valid_ratio` (rounded; at least one stays in train).
    - global-time: the newest `test_ratio` of all interactions is test, the newest `valid_ratio` before it valid; equal
      times are in the same part. Needs timestamps, because positions of different users cannot be compared.
    - cold-item: all clicks on a random share `cold_ratio` of the clicked items are test, on as many others valid.
    - ready-made: as published; valid is empty where the dataset has none.

    At test time the validation part is history under leave-last-out and global-time, and unknown under the others.
    Raises DataError when the kind is unknown, the data cannot be split so, or a ready-made split leaks.
    """
    kind = _resolve_kind(dataset, kind)
    if not (valid_ratio >= 0 and test_ratio > 0 and valid_ratio + test_ratio < 1):
        raise DataError(f"valid_ratio {valid_ratio:g} and test_ratio {test_ratio:g} leave no room for training")
    settings: dict[str, object] = {}
    if kind == "ready-made":
        return _ready_made(dataset)
    if kind == "leave-last-out":
        settings = {"ties": dataset.ties, "tied_users": round(dataset.tied_users, 4)}
        label = _leave_last_out(dataset)
    elif kind == "user-ratio":
        settings = {"seed": seed, "valid_ratio": valid_ratio, "test_ratio": test_ratio}
        label = _user_ratio(dataset, seed, valid_ratio, test_ratio)
    elif kind == "global-time":
        settings = {"valid_ratio": valid_ratio, "test_ratio": test_ratio}
        label = _global_time(dataset, valid_ratio, test_ratio)
    else:
        settings = {"seed": seed, "cold_ratio": cold_ratio}
        label = _cold_item(dataset, seed, cold_ratio)
    return _from_labels(dataset, kind, label, settings)


def _resolve_kind(dataset: Dataset, kind: str) -> str:
    """The kind, with "auto" replaced. Raises DataError for an unknown kind and for one that needs other data."""
    if kind not in KINDS:
        raise DataError(f"unknown split {kind!r}", hint=f"known: {', '.join(KINDS)}")
    if kind == "auto":
        if dataset.ready:
            return "ready-made"
        return "user-ratio" if dataset.order is None else "leave-last-out"
    if kind == "ready-made" and not dataset.ready:
        raise DataError("the data is not split", file=dataset.source, hint="give train.* and test.*, or another split")
    if kind == "leave-last-out" and dataset.order is None:
        hint = "add a timestamp or position column, or split by user-ratio"
        raise DataError("leave-last-out needs an order", file=dataset.source, hint=hint)
    if kind == "global-time" and dataset.order != "timestamp":
        hint = "add a timestamp column, or split by leave-last-out or user-ratio"
        raise DataError("global-time needs timestamps", file=dataset.source, hint=hint)
    return kind


def _from_labels(dataset: Dataset, kind: str, label: NDArray[np.int8], settings: dict[str, object]) -> Split:
    train, valid, test = (dataset.interactions.where(label == part) for part in (TRAIN, VALID, TEST))
    if not len(train) or not len(test):
        raise DataError(
            f"{kind} leaves {len(train):,} interactions to train and {len(test):,} to test",
            file=dataset.source,
            hint="there is too little data for this split; choose another one or other ratios",
        )
    return Split(
        kind=kind,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=train,
        valid=valid,
        test=test,
        valid_in_history=kind in ("leave-last-out", "global-time"),
        ordered=dataset.order is not None,
        settings=settings,
    )


def _ready_made(dataset: Dataset) -> Split:
    train = dataset.ready["train"]
    nothing = train.where(np.zeros(len(train), dtype=bool))
    split = Split(
        kind="ready-made",
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=train,
        valid=dataset.ready.get("valid", nothing),
        test=dataset.ready["test"],
        valid_in_history=False,
        ordered=dataset.order is not None,
    )
    check_leakage(split)
    return split


def _user_ends(dataset: Dataset) -> tuple[Ints, Ints]:
    """(number of interactions, index after the last one) per user (num_users,)."""
    lengths = np.bincount(dataset.interactions.user, minlength=dataset.num_users).astype(np.int64)
    return lengths, np.cumsum(lengths)


def _leave_last_out(dataset: Dataset) -> NDArray[np.int8]:
    label = np.zeros(len(dataset.interactions), dtype=np.int8)
    lengths, ends = _user_ends(dataset)
    ends = ends[lengths >= 3]
    label[ends - 1], label[ends - 2] = TEST, VALID
    return label


def _user_ratio(dataset: Dataset, seed: int, valid_ratio: float, test_ratio: float) -> NDArray[np.int8]:
    user = dataset.interactions.user
    lengths, ends = _user_ends(dataset)
    draw = rng(seed, "split/user-ratio").random(len(user))
    shuffled = np.argsort(user + draw)  # rows are sorted by user already: this shuffles within each user
    place = np.arange(len(user), dtype=np.int64) - (ends - lengths)[user]
    num_test = np.minimum(np.floor(lengths * test_ratio + 0.5).astype(np.int64), lengths - 1)
    num_valid = np.minimum(np.floor(lengths * valid_ratio + 0.5).astype(np.int64), lengths - 1 - num_test)
    label = np.zeros(len(user), dtype=np.int8)
    label[shuffled[place < (num_test + num_valid)[user]]] = VALID
    label[shuffled[place < num_test[user]]] = TEST
    return label


def _global_time(dataset: Dataset, valid_ratio: float, test_ratio: float) -> NDArray[np.int8]:
    when = dataset.interactions.order
    assert when is not None  # _resolve_kind() has checked
    by_time = np.sort(when)
    newest = len(by_time) - 1  # always in test
    test_from = by_time[min(round(len(by_time) * (1 - test_ratio)), newest)]
    valid_from = by_time[min(round(len(by_time) * (1 - test_ratio - valid_ratio)), newest)]
    label = np.where(when >= test_from, TEST, np.where(when >= valid_from, VALID, TRAIN))
    return label.astype(np.int8)


def _cold_item(dataset: Dataset, seed: int, cold_ratio: float) -> NDArray[np.int8]:
    clicked = np.flatnonzero(dataset.interactions.item_degree(dataset.num_items))
    cold = round(len(clicked) * cold_ratio)
    if not 1 <= cold * 2 < len(clicked):
        hint = "choose it so that some items are cold in test, as many in valid, and others stay"
        raise DataError(f"cold_ratio {cold_ratio:g} of {len(clicked):,} clicked items", file=dataset.source, hint=hint)
    drawn = rng(seed, "split/cold-item").permutation(clicked)
    label_of_item = np.zeros(dataset.num_items, dtype=np.int8)
    label_of_item[drawn[:cold]], label_of_item[drawn[cold : 2 * cold]] = TEST, VALID
    return label_of_item[dataset.interactions.item]


def check_leakage(split: Split) -> None:
    """Raise DataError when training data holds information about the targets.

    Checks for a (user, item) pair in two parts; under leave-last-out for a training interaction after a target of the
    same user, under global-time of any user; under cold-item for training clicks on an item of valid or test.
    """
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    pairs = {name: pl.Series(part.user * np.int64(split.num_items) + part.item) for name, part in parts.items()}
    for earlier, later in (("train", "test"), ("train", "valid"), ("valid", "test")):
        twice = pairs[later].is_in(pairs[earlier].implode()).to_numpy()
        if twice.any():
            _leak(split, later, twice, f"of the same user stand in {earlier} as well")
    for name in ("valid", "test"):
        if split.kind in ("leave-last-out", "global-time"):
            late = parts[name].order < _newest_known(split)[parts[name].user]  # type: ignore[operator]
            if late.any():
                _leak(split, name, late, "are older than training interactions that must come before them")
        if split.kind == "cold-item":
            warm = split.item_degree()[parts[name].item] > 0
            if warm.any():
                _leak(split, name, warm, "are of items with training clicks, but these items must be cold")


def _newest_known(split: Split) -> Ints:
    """Per user, the newest training time, which must not be after any target (num_users,)."""
    order = split.train.order
    assert order is not None
    lengths = np.bincount(split.train.user, minlength=split.num_users)
    if split.kind == "global-time":
        return np.full(split.num_users, order.max(), dtype=np.int64)
    newest = np.full(split.num_users, np.iinfo(np.int64).min)
    newest[lengths > 0] = order[np.cumsum(lengths)[lengths > 0] - 1]  # rows are sorted by (user, order)
    return newest


def _leak(split: Split, part: str, rows: NDArray[np.bool_], what: str) -> None:
    table = split.valid if part == "valid" else split.test
    row = int(rows.argmax())
    raise DataError(
        f"the {split.kind} split leaks: {int(rows.sum()):,} {part} interactions {what}",
        value=f"user row {table.user[row]}, item row {table.item[row]}",
        hint="remove them from one of the parts, or let make_split divide the interactions",
    )
