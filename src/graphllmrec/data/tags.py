"""Tags: short texts that users write at items (MovieLens' tags.csv). They become a list column of the items.

A tag is written at an interaction. So the item texts that a model is fitted on hold no tag of a (user, item) pair in
the validation or test part: it would tell what the user is going to click. Tags without a user, or of a user who did
not click the item, describe the item only and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from graphllmrec.data.checks import Problems, check_ids, check_text
from graphllmrec.data.columns import match_columns
from graphllmrec.data.files import Source
from graphllmrec.data.formats import read_table
from graphllmrec.data.roles import ColumnRole
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, Ints, Items

MAX_TAGS = 10  # per item, the most frequent ones
COLUMN = "tags"
_LEFT_OUT = "tags written at validation or test interactions are not part of the item texts"


def read_tags(path: Source) -> pl.DataFrame:
    """The tags of a file, in lower case: user_id (null where it is not known), item_id, tag. Raises DataError."""
    columns: dict[str, str] = {}

    def pick(names: Sequence[str]) -> Sequence[str]:
        columns.update(match_columns(names, ("item_id", "tag"), ("user_id",), path.name))
        return list(columns.values())

    problems = Problems(read_table(path, pick))
    items = check_ids(problems, columns["item_id"])
    problems.raise_any()
    tags = check_text(problems, columns["tag"])
    count = len(problems.blank)
    found = {"user_id": pl.Series([None] * count, dtype=pl.String), "item_id": items.ids.gather(_or_null(items.code))}
    if "user_id" in columns:
        users = check_ids(Problems(problems.table), columns["user_id"])  # a tag without a user is one of the item only
        found["user_id"] = users.ids.gather(_or_null(users.code))
    found["tag"] = pl.Series([None] * count, dtype=pl.String) if tags is None else tags.str.to_lowercase()
    return pl.DataFrame([values.alias(name) for name, values in found.items()]).drop_nulls(["item_id", "tag"])


def _or_null(code: Ints) -> pl.Series:
    """Row numbers with null for -1: `gather` of a null is null."""
    rows = pl.Series(code, dtype=pl.Int64)
    return rows.set(rows < 0, None)


def add_tags(dataset: Dataset, tags: pl.DataFrame, file: str) -> Dataset:
    """The dataset with the tags of a file as a text column of its items; it takes the place of one of that name."""
    roles = [role for role in dataset.items.roles if role.column != COLUMN]
    notes = dataset.notes
    if COLUMN in dataset.items.table.columns:
        notes = (*notes, f"the items' column {COLUMN} is replaced by the tags of {file}")
    items = replace(dataset.items, roles=(*roles, ColumnRole(COLUMN, "text", f"the tags of {file}")))
    return replace(dataset, items=with_tags(items, tags), tags=tags, notes=notes)


def with_tags(items: Items, tags: pl.DataFrame) -> Items:
    """The items with their MAX_TAGS most frequent distinct tags as a list column; equally frequent ones by alphabet."""
    counted = tags.group_by("item_id", "tag").len().sort(["len", "tag"], descending=[True, False])
    lists = counted.group_by("item_id", maintain_order=True).agg(pl.col("tag").head(MAX_TAGS).alias(COLUMN))
    table = items.table.drop(COLUMN, strict=False).join(lists, on="item_id", how="left", maintain_order="left")
    return replace(items, table=table)


def without_held_out_tags(dataset: Dataset, split: Split) -> Dataset:
    """The dataset whose items have no tags that were written at validation or test interactions."""
    if dataset.tags is None:
        return dataset
    users, items = dataset.users.ids, dataset.items.ids.ids
    held_out = [
        pl.DataFrame({"user_id": users.gather(part.user), "item_id": items.gather(part.item)})
        for part in (split.valid, split.test)
    ]
    rest = dataset.tags.join(pl.concat(held_out), on=["user_id", "item_id"], how="anti")
    left_out = len(dataset.tags) - len(rest)
    if not left_out:
        return dataset
    note = f"{left_out:,} {_LEFT_OUT}"
    return replace(dataset, items=with_tags(dataset.items, rest), notes=(*dataset.notes, note))


def with_held_out_tags(dataset: Dataset) -> Dataset:
    """The dataset whose items have the tags again that `without_held_out_tags` took, where they are known.

    They are known where the data was read; a run folder does not keep them. Items added since keep their own tags.
    """
    if dataset.tags is None or left_out_note(dataset) is None:
        return dataset
    own = dataset.items.table[COLUMN].alias("own")
    items = with_tags(dataset.items, dataset.tags)
    table = items.table.with_columns(own).with_columns(pl.coalesce(COLUMN, "own").alias(COLUMN)).drop("own")
    notes = tuple(note for note in dataset.notes if not note.endswith(_LEFT_OUT))
    return replace(dataset, items=replace(items, table=table), notes=notes)


def left_out_note(dataset: Dataset) -> str | None:
    """The note on tags that the item texts lack; None where they lack none."""
    return next((note for note in dataset.notes if note.endswith(_LEFT_OUT)), None)
