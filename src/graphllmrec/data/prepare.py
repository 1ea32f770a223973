"""Read, filter and split data with the settings of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from graphllmrec.data.config import DataConfig
from graphllmrec.data.frames import Table
from graphllmrec.data.meeting import require_meeting
from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split, make_split
from graphllmrec.data.tables import Dataset, IdMap, Ints
from graphllmrec.data.tags import without_held_out_tags
from graphllmrec.errors import ArgumentError, DataError, RecipeError
from graphllmrec.progress import RunLogger

Data = Dataset | str | Path | Table | Mapping[str, Table]  # whatever load_data reads, or its result


def read_dataset(data: Data, config: DataConfig, logger: RunLogger, items: Table | None = None) -> Dataset:
    """The Dataset, or the one read from a data folder or tables, filtered by the settings. Raises DataError."""
    if isinstance(data, Dataset):
        if items is not None:
            raise ArgumentError("a Dataset has its items already; leave the argument items out")
        return data
    logger.begin("reading data")
    dataset = load_data(
        data,
        items,
        min_rating=config.min_rating,
        max_bytes=config.max_bytes,
        k_core=config.k_core,
        ties=config.ties,
        weights=config.weights,
        events=config.events,
        half_life=config.half_life,
        repeats=config.repeats,
    )
    for note in dataset.notes:
        logger.say(f"note: {note}")
    return dataset


def read_and_split(
    data: Data, config: DataConfig, seed: int, logger: RunLogger, items: Table | None = None
) -> tuple[Dataset, Split]:
    """The dataset that a model may see, and its split: item texts hold nothing written at held-out interactions.

    Raises DataError.
    """
    read = read_dataset(data, config, logger, items)
    require_meeting(read)
    split = split_dataset(read, config, seed)
    dataset = without_held_out_tags(read, split)
    for note in dataset.notes[len(read.notes) :]:
        logger.say(f"note: {note}")
    return dataset, split


def split_dataset(dataset: Dataset, config: DataConfig, seed: int) -> Split:
    """The split of the settings. Raises DataError, RecipeError for settings without effect on this split."""
    split = make_split(
        dataset,
        kind=config.split,
        seed=seed,
        valid_ratio=config.valid_ratio,
        test_ratio=config.test_ratio,
        cold_ratio=config.cold_ratio,
    )
    idle = config.model_copy(update={"split": split.kind}).idle()  # of the split that "auto" stands for
    if idle:
        raise RecipeError(
            [f"data.{name} has no effect: these data are split by {split.kind}, it needs {needed}"
             for name, needed in idle.items()]
        )  # fmt: skip
    return split


def split_in_rows(known: Dataset, other: Dataset, config: DataConfig, seed: int) -> Split:
    """The split of `other` data in the row numbers of `known`. Raises DataError for users or items not in `known`."""
    users = _rows_in(known.users, other.users, "users", other.source)
    items = _rows_in(known.items.ids, other.items.ids, "items", other.source)
    split = split_dataset(other, config, seed)
    train, valid, test = (
        replace(part, user=users[part.user], item=items[part.item]).sorted()
        for part in (split.train, split.valid, split.test)
    )
    return replace(split, num_users=len(known.users), num_items=len(known.items), train=train, valid=valid, test=test)


def _rows_in(known: IdMap, other: IdMap, kind: str, source: str) -> Ints:
    """Row in `known` of every id of `other` (len(other),)."""
    rows = known.rows(other.ids.to_list())
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        what = f"{len(unknown):,} {kind} are not in the data this recommender was fitted on"
        raise DataError(what, file=source, value=other.of(unknown[:1])[0], hint="leave them out, or fit again")
    return rows
