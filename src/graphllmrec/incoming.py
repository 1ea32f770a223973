"""What comes in through the front door, read and checked: data, other data to be measured on, new items, recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split, make_split
from graphllmrec.data.tables import Dataset, Interactions, Items
from graphllmrec.errors import DataError
from graphllmrec.journal import RunJournal
from graphllmrec.recipe import Recipe


def read_dataset(data: Dataset | str | Path, recipe: Recipe, journal: RunJournal) -> Dataset:
    """A Dataset as it is, a data folder read and filtered as the recipe says. Raises DataError."""
    if isinstance(data, Dataset):
        return data
    journal.stage("reading data")
    dataset = load_data(data, min_rating=recipe.data.min_rating, k_core=recipe.data.k_core)
    for note in dataset.notes:
        journal.say(f"note: {note}")
    return dataset


def split_dataset(dataset: Dataset, recipe: Recipe) -> Split:
    """The split that the recipe asks for. Raises DataError."""
    section = recipe.data
    return make_split(
        dataset,
        kind=section.split,
        seed=recipe.seed,
        valid_ratio=section.valid_ratio,
        test_ratio=section.test_ratio,
        cold_ratio=section.cold_ratio,
    )


def split_in_rows_of(known: Dataset, other: Dataset, recipe: Recipe) -> Split:
    """The split of other data in the row numbers of `known`. Raises DataError for users or items it does not hold."""
    rows = {}
    for kind, mine, theirs in (("user", known.users, other.users), ("item", known.items.ids, other.items.ids)):
        rows[kind] = mine.rows(theirs.ids.to_list())
        unknown = np.flatnonzero(rows[kind] < 0)
        if len(unknown):
            raise DataError(f"{len(unknown):,} {kind}s are not in the data this recommender was fitted on",
                            file=other.source, value=theirs.of(unknown[:1])[0],
                            hint="leave them out, or fit again")  # fmt: skip
    split = split_dataset(other, recipe)
    train, valid, test = (
        Interactions.sort(rows["user"][part.user], rows["item"][part.item], part.order, part.rating, part.review)
        for part in (split.train, split.valid, split.test)
    )
    return Split(
        split.kind, len(known.users), len(known.items), train, valid, test,
        split.valid_in_history, split.ordered, split.settings,
    )  # fmt: skip


def checked_items(rows: Sequence[Mapping[str, Any]], items: Items, *, needs_text: bool) -> pl.DataFrame:
    """New rows as a table with the columns of the catalogue. Raises DataError naming the row (counted from 1)."""
    columns, ids = items.table.columns, set()
    for number, row in enumerate(rows, start=1):
        where = f"new item {number}"
        value = row.get("item_id")
        if value is None or not str(value).strip():
            raise DataError(f"{where} has no item_id", hint='give {"item_id": …, "title": …}')
        if str(value) in items.ids or str(value) in ids:
            raise DataError(f"{where}: this id is already in the catalogue", column="item_id", value=value)
        ids.add(str(value))
        unknown = [name for name in row if name not in columns]
        if unknown:
            raise DataError(f"{where}: the catalogue has no such column", column=unknown[0],
                            hint=f"columns are {', '.join(columns)}")  # fmt: skip
        if needs_text and not any(row.get(name) for name in items.text_columns):
            raise DataError(f"{where} has no text, so nothing could place it", value=value,
                            hint=f"fill one of {', '.join(items.text_columns)}")  # fmt: skip
    if not rows:
        raise DataError("no items to add")
    try:
        return pl.DataFrame([{**row, "item_id": str(row["item_id"])} for row in rows], schema=items.table.schema)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(f"{name} {kind}" for name, kind in items.table.schema.items())
        raise DataError("new items do not fit the catalogue", hint=f"columns are {kinds} ({error})") from None


def difference(given: Recipe, stored: Recipe) -> str:
    """The first settings in which two recipes differ, as "section.key: given, not stored"."""
    flat = [_flat(recipe.values()) for recipe in (given, stored)]
    keys = [key for key in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(key) != flat[1].get(key)]
    return "; ".join(f"{key}: {flat[0].get(key)!r}, not {flat[1].get(key)!r}" for key in keys[:5])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
