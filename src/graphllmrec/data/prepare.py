"""Data as a recipe wants it: read and filtered, split, or split in the row numbers of other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphllmrec.data.config import DataConfig
from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split, make_split
from graphllmrec.data.tables import Dataset, Interactions
from graphllmrec.errors import DataError
from graphllmrec.progress import RunLogger


def read_dataset(data: Dataset | str | Path, config: DataConfig, logger: RunLogger) -> Dataset:
    """A Dataset as it is, a data folder read and filtered as the settings say. Raises DataError."""
    if isinstance(data, Dataset):
        return data
    logger.begin("reading data")
    dataset = load_data(data, min_rating=config.min_rating, k_core=config.k_core)
    for note in dataset.notes:
        logger.say(f"note: {note}")
    return dataset


def split_dataset(dataset: Dataset, config: DataConfig, seed: int) -> Split:
    """The split that the settings ask for. Raises DataError."""
    return make_split(
        dataset,
        kind=config.split,
        seed=seed,
        valid_ratio=config.valid_ratio,
        test_ratio=config.test_ratio,
        cold_ratio=config.cold_ratio,
    )


def split_in_rows(known: Dataset, other: Dataset, config: DataConfig, seed: int) -> Split:
    """The split of other data in the row numbers of `known`. Raises DataError for users or items it does not hold."""
    rows = {}
    for kind, mine, theirs in (("user", known.users, other.users), ("item", known.items.ids, other.items.ids)):
        rows[kind] = mine.rows(theirs.ids.to_list())
        unknown = np.flatnonzero(rows[kind] < 0)
        if len(unknown):
            raise DataError(f"{len(unknown):,} {kind}s are not in the data this recommender was fitted on",
                            file=other.source, value=theirs.of(unknown[:1])[0],
                            hint="leave them out, or fit again")  # fmt: skip
    split = split_dataset(other, config, seed)
    train, valid, test = (
        Interactions.sort(rows["user"][part.user], rows["item"][part.item], part.order, part.rating, part.review)
        for part in (split.train, split.valid, split.test)
    )
    return Split(
        split.kind, len(known.users), len(known.items), train, valid, test,
        split.valid_in_history, split.ordered, split.settings,
    )  # fmt: skip
