"""The items table: one row per item, every other column text (a string, or a list of strings)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from graphllmrec.data.checks import Problems, check_ids
from graphllmrec.data.columns import base_name, match_columns
from graphllmrec.data.files import Source, parse_name
from graphllmrec.data.formats import RawTable, check_short_rows, column_type, read_table
from graphllmrec.errors import DataError

MAX_TAGS = 10  # per item, the most frequent ones


def read_items(path: Source, tags: Source | None = None) -> tuple[pl.DataFrame, list[str]]:
    """Items in file order: item_id, title (null where there is none) and every other column as text; and notes.

    Numbers become text, lists stay lists, columns of objects are left out. MovieLens' genres are split at "|", and the
    tags of the file `tags` (item_id, tag) become a list column, most frequent first. Raises DataError for a missing
    item_id and for two different rows with the same one.
    """
    columns: dict[str, str] = {}

    def pick(names: Sequence[str]) -> Sequence[str]:
        columns.update(match_columns(names, ("item_id",), ("title",), path.name))
        return names

    table = read_table(path, pick)
    problems = Problems(table)
    ids = check_ids(problems, columns["item_id"])
    problems.raise_any()
    keep = pl.Series(ids.code >= 0)
    item_id = ids.ids.gather(ids.code[ids.code >= 0]).alias("item_id")
    texts, dropped = _texts(table.frame.drop(columns["item_id"]).filter(keep), columns.get("title"), path.name)
    frame = pl.DataFrame([item_id, *texts])
    stem, kind = parse_name(path) or ("", "")
    if kind in ("csv", "tsv") and table.frame[:, -1].null_count():
        check_short_rows(path)  # a line break in a text would make two wrong items of one row
    notes = [f"{path.name}: column {name} holds objects or bytes, left out" for name in dropped]
    if stem == "movies" and "genres" in frame.columns:
        frame = frame.with_columns(_movielens_genres(frame["genres"]))
    frame, repeated = _distinct(frame, table, keep)
    if repeated:
        notes.append(f"{path.name}: {repeated:,} rows repeat an item word for word, first kept")
    return (_with_tags(frame, tags) if tags else frame), notes


def _texts(frame: pl.DataFrame, title: str | None, file: str) -> tuple[list[pl.Series], list[str]]:
    """Every column as text, title first; and the names of those that cannot be converted."""
    texts, dropped = [], []
    names = sorted(frame.columns, key=lambda name: name != title)
    _refuse_collisions(names, title, file)
    for name in names:
        column = frame[name]
        if column_type(name) == "token_seq" and name != title:
            column = column.str.split(" ")
        if isinstance(column.dtype, (pl.Struct, pl.Object, pl.Array, pl.Binary)) or (
            isinstance(column.dtype, pl.List) and (column.dtype.inner.is_nested() or column.dtype.inner == pl.Binary)
        ):
            dropped.append(name)
        elif base_name(name):  # a trailing separator makes a column with an empty name
            texts.append(_as_text(column).alias("title" if name == title else base_name(name)))
    return texts, dropped


def _refuse_collisions(names: Sequence[str], title: str | None, file: str) -> None:
    """Raise DataError for two columns that get the same name: "brand" and "brand:token"."""
    first: dict[str, str] = {"item_id": "item_id"}
    for name in names:
        own = "title" if name == title else base_name(name)
        if own and first.setdefault(own, name) != name:
            what = f"the columns {first[own]!r} and {name!r} are both named {own!r} here"
            raise DataError(what, file=file, line=1, hint="rename one of them")


def _as_text(column: pl.Series) -> pl.Series:
    """Strings, or lists of strings; empty ones become null."""
    if isinstance(column.dtype, pl.List):
        entry = pl.element().str.strip_chars()
        lists = column.cast(pl.List(pl.String)).list.eval(entry.filter(entry != ""))
        return pl.select(pl.when(lists.list.len() > 0).then(lists)).to_series()
    text = column.cast(pl.String)
    return pl.select(pl.when(text.str.strip_chars() != "").then(text)).to_series()


def _movielens_genres(genres: pl.Series) -> pl.Series:
    real = pl.select(pl.when(genres != "(no genres listed)").then(genres)).to_series()
    return real.str.split("|").alias("genres")


def _distinct(frame: pl.DataFrame, table: RawTable, keep: pl.Series) -> tuple[pl.DataFrame, int]:
    """One row per item, and the number of exact repeats that were dropped. Raises DataError for rows that differ."""
    number = next(
        name for name in ("row", *map("row{}".format, range(len(frame.columns)))) if name not in frame.columns
    )
    rows = frame.with_columns(keep.arg_true().alias(number))
    whole = rows.unique(subset=frame.columns, keep="first", maintain_order=True)
    twice = whole.filter(~whole["item_id"].is_first_distinct())
    if len(twice):
        raise DataError(
            "two different rows for one item",
            file=table.file,
            line=table.line(int(twice[number][0])),
            column="item_id",
            value=twice["item_id"][0],
            hint="keep one row per item_id",
            count=len(twice),
        )
    return whole.drop(number), len(rows) - len(whole)


def _with_tags(frame: pl.DataFrame, path: Source) -> pl.DataFrame:
    """The items with a list column `tags`: distinct, in lower case, most frequent first, at most MAX_TAGS."""
    columns: dict[str, str] = {}

    def pick(names: Sequence[str]) -> Sequence[str]:
        columns.update(match_columns(names, ("item_id", "tag"), (), path.name))
        return list(columns.values())

    table = read_table(path, pick)
    problems = Problems(table)
    ids = check_ids(problems, columns["item_id"])
    problems.raise_any()
    used = ids.code >= 0
    tags = _as_text(table.frame[columns["tag"]]).filter(pl.Series(used)).str.strip_chars().str.to_lowercase()
    pairs = pl.DataFrame({"item_id": ids.ids.gather(ids.code[used]), "tags": tags}).drop_nulls()
    counted = pairs.group_by("item_id", "tags", maintain_order=True).len()
    counted = counted.sort("len", descending=True, maintain_order=True)  # ties keep the order of the file
    lists = counted.group_by("item_id", maintain_order=True).agg(pl.col("tags").head(MAX_TAGS))
    return frame.join(lists, on="item_id", how="left", maintain_order="left")
