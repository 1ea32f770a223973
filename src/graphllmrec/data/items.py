"""The items table: one row per item; every other column is text or an attribute (roles.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from graphllmrec.data.checks import Problems, check_ids
from graphllmrec.data.columns import base_name, is_index, match_columns
from graphllmrec.data.files import Source, parse_name
from graphllmrec.data.formats import RawTable, check_short_rows, column_type, read_table
from graphllmrec.data.published import AMAZON_ATTRIBUTES, amazon_prices, is_amazon_items
from graphllmrec.data.roles import ColumnRole, read_column
from graphllmrec.errors import DataError


def read_items(path: Source) -> tuple[pl.DataFrame, list[ColumnRole], list[str]]:
    """Items in file order: item_id, title (null where there is none) and the other columns; their roles; and notes.

    Text columns are String or List(String), attributes have a type of their own (roles.py); columns of objects, bytes
    and vectors are left out. MovieLens' genres are split at "|". Raises DataError for a missing item_id and for two
    different rows of one item; of Amazon's, which has such rows, the first is kept.
    """
    columns: dict[str, str] = {}
    notes: list[str] = []

    def pick(names: Sequence[str]) -> Sequence[str]:
        columns.update(match_columns(names, ("item_id",), ("title",), path.name))
        notes.extend(f"{path.name}: column {name} numbers the rows, left out" for name in names if is_index(name))
        return [name for name in names if not is_index(name)]

    table = read_table(path, pick)
    problems = Problems(table)
    ids = check_ids(problems, columns["item_id"])
    problems.raise_any()
    keep = pl.Series(ids.code >= 0)
    item_id = ids.ids.gather(ids.code[ids.code >= 0]).alias("item_id")
    stem, kind = parse_name(path) or ("", "")
    raw = table.frame.drop(columns["item_id"]).filter(keep)
    if stem == "movies" and raw.schema.get("genres") == pl.String:
        raw = raw.with_columns(_movielens_genres(raw["genres"]))
    if amazon := is_amazon_items(stem, columns["item_id"]):
        raw = _amazon(raw, path.name, notes)
    described, roles = _described(raw, columns.get("title"), path.name)
    if amazon:
        roles = [_amazon_role(role) for role in roles]
    frame = pl.DataFrame([item_id, *described])
    if kind in ("csv", "tsv") and table.frame[:, -1].null_count():
        check_short_rows(path)  # a line break in a text would make two wrong items of one row
    notes += table.notes
    notes += [f"{path.name}: column {role.column} {role.reason}, left out" for role in roles if role.role == "left out"]
    attributes = [role.column for role in roles if role.role == "attribute"]
    if attributes:
        notes.append(f"{path.name}: read as attributes, not as text: {', '.join(attributes)}")
    if amazon and (more := len(frame) - frame["item_id"].n_unique()):
        notes.append(f"{path.name}: {more:,} rows repeat an item, first kept")
        return frame.unique("item_id", keep="first", maintain_order=True), roles, notes
    frame, repeated = _distinct(frame, table, keep)
    if repeated:
        notes.append(f"{path.name}: {repeated:,} rows repeat an item word for word, first kept")
    return frame, roles, notes


def _described(frame: pl.DataFrame, title: str | None, file: str) -> tuple[list[pl.Series], list[ColumnRole]]:
    """The columns that are kept, title first, and the role of every column."""
    kept, roles = [], []
    names = sorted(frame.columns, key=lambda name: name != title)
    _refuse_collisions(names, title, file)
    for name in names:
        own = "title" if name == title else base_name(name)
        if own:  # a trailing separator makes a column with an empty name
            values, role = read_column(frame[name].alias(own), own, column_type(name))
            roles.append(role)
            if values is not None:
                kept.append(values.alias(own))
    return kept, roles


def _refuse_collisions(names: Sequence[str], title: str | None, file: str) -> None:
    """Raise DataError for two columns that get the same name: "brand" and "brand:token"."""
    first: dict[str, str] = {"item_id": "item_id"}
    for name in names:
        own = "title" if name == title else base_name(name)
        if own and first.setdefault(own, name) != name:
            what = f"the columns {first[own]!r} and {name!r} are both named {own!r} here"
            raise DataError(what, file=file, line=1, hint="rename one of them")


def _movielens_genres(genres: pl.Series) -> pl.Series:
    real = pl.select(pl.when(genres != "(no genres listed)").then(genres)).to_series()
    return real.str.split("|").alias("genres")


def _amazon(raw: pl.DataFrame, file: str, notes: list[str]) -> pl.DataFrame:
    """Amazon's items with prices as numbers. Adds to `notes`."""
    if raw.schema.get("price") != pl.String:
        return raw
    price = amazon_prices(raw["price"])
    plain = raw["price"].str.contains(r"^\s*\$?[\d,.]*\s*$").fill_null(True)
    if others := int((~plain).sum()):
        notes.append(f"{file}: {others:,} prices are ranges or no amounts: the lowest amount is read, or none")
    return raw.with_columns(price)


def _amazon_role(role: ColumnRole) -> ColumnRole:
    reason = AMAZON_ATTRIBUTES.get(role.column)
    return role if reason is None or role.role == "left out" else replace(role, role="attribute", reason=reason)


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
