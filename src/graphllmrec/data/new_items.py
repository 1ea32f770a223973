"""Check items that are added to the catalogue of a fitted recommender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.data.ids import clean_id, is_missing_text
from graphllmrec.data.roles import fitting
from graphllmrec.data.tables import Items
from graphllmrec.errors import DataError

_NO_SERIES = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError)
_HELD: dict[pl.DataType | type[pl.DataType], str] = {
    pl.String: "text",
    pl.List(pl.String): "lists of texts",
    pl.Int64: "numbers",
    pl.Float64: "numbers",
    pl.Boolean: "true or false",
}
_WANTED = 'give a list of rows, e.g. [{"item_id": "b7", "title": "…"}], or a polars or pandas DataFrame'


def new_item_table(
    rows: Any, items: Items, *, needs_text: bool, text_columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """New rows (a list of mappings, or a DataFrame) as a table with the columns of the catalogue, in their types.

    With `needs_text`, every row needs a value in one of `text_columns` (default: those whose role is text).
    Missing values of pandas (NaN, NA) and words for them are missing; a column of whole numbers may get fractions.
    Raises DataError naming the row (counted from 1), and the column and value where a value does not fit.
    """
    readable = (text_columns or items.text_columns) if needs_text else None
    known: list[dict[str, Any]] = []
    ids: set[str] = set()
    for number, row in enumerate(_mappings(rows), start=1):
        row = {name: None if is_missing_text(value) else value for name, value in row.items()}
        row["item_id"] = _checked_id(f"new item {number}", row, items, ids, readable)
        ids.add(row["item_id"])
        known.append(row)
    if not known:
        raise DataError("no items to add")
    return pl.DataFrame([
        _column(name, [row.get(name) for row in known], kind) for name, kind in items.table.schema.items()
    ])  # fmt: skip


def _column(name: str, values: list[Any], kind: pl.DataType) -> pl.Series:
    """The values of one column in its type. Raises DataError naming the first row whose value does not fit."""
    try:
        column = fitting(pl.Series(name, values), kind)
        if column.null_count() == values.count(None):
            return column
    except _NO_SERIES:  # values of several types
        pass
    parts = [_value(f"new item {number}", name, value, kind) for number, value in enumerate(values, start=1)]
    return pl.concat([part.to_frame() for part in parts], how="vertical_relaxed").to_series()


def _value(where: str, name: str, value: Any, kind: pl.DataType) -> pl.Series:
    """One value as a column of one row."""
    try:
        column = fitting(pl.Series(name, [value]), kind)
    except _NO_SERIES:
        column = pl.Series(name, [None], kind)
    empty = value is None or (isinstance(value, str | list | tuple) and not value)
    if column.null_count() and not empty:
        held = _HELD.get(kind, f"dates or times ({kind})" if kind.is_temporal() else str(kind))
        raise DataError(f"{where} does not fit the catalogue", column=name, value=value, hint=f"{name} holds {held}")
    return column


def _mappings(rows: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of a DataFrame or of an iterable of mappings. Raises DataError for anything else."""
    if isinstance(rows, pl.DataFrame):
        return rows.to_dicts()
    if type(rows).__module__.partition(".")[0] == "pandas":
        rows = rows.to_dict("records")
    if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
        raise DataError(f"new items are not {type(rows).__name__}", hint=_WANTED)
    found = list(rows)
    for number, row in enumerate(found, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"new item {number} is not a mapping of columns to values", value=row, hint=_WANTED)
    return found


def _checked_id(
    where: str, row: Mapping[str, Any], items: Items, earlier: set[str], readable: Sequence[str] | None
) -> str:
    """The row's id. Raises DataError without a new one, with an unknown column, or without the text the model needs."""
    columns = items.table.columns
    own = clean_id(row.get("item_id"))
    if own is None:
        raise DataError(f"{where} has no item_id", hint='give {"item_id": …, "title": …}')
    if own in items.ids or own in earlier:
        raise DataError(f"{where}: this id is already in the catalogue", column="item_id", value=own)
    unknown = [name for name in row if name not in columns]
    if unknown:
        hint = f"columns are {', '.join(columns)}"
        raise DataError(f"{where}: the catalogue has no such column", column=unknown[0], hint=hint)
    if readable is not None and not any(row.get(name) for name in readable):
        hint = f"fill one of {', '.join(readable)}"
        raise DataError(f"{where} has no text, and this model ranks new items by text only", value=own, hint=hint)
    return own
