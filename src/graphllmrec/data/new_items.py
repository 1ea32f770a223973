"""Check items that are added to the catalogue of a fitted recommender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.data.tables import Items
from graphllmrec.errors import DataError


def new_item_table(rows: Sequence[Mapping[str, Any]], items: Items, *, needs_text: bool) -> pl.DataFrame:
    """New rows as a table with the columns of the catalogue. Raises DataError naming the row (counted from 1)."""
    if not rows:
        raise DataError("no items to add")
    ids: set[str] = set()
    for number, row in enumerate(rows, start=1):
        _check_row(f"new item {number}", row, items, ids, needs_text)
        ids.add(str(row["item_id"]))
    try:
        return pl.DataFrame([{**row, "item_id": str(row["item_id"])} for row in rows], schema=items.table.schema)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(f"{name} {kind}" for name, kind in items.table.schema.items())
        raise DataError("new items do not fit the catalogue", hint=f"columns are {kinds} ({error})") from None


def _check_row(where: str, row: Mapping[str, Any], items: Items, earlier: set[str], needs_text: bool) -> None:
    """Raise DataError for a row without a new id, with an unknown column, or without the text that the model needs."""
    value, columns, text_columns = row.get("item_id"), items.table.columns, items.text_columns
    if value is None or not str(value).strip():
        raise DataError(f"{where} has no item_id", hint='give {"item_id": …, "title": …}')
    if str(value) in items.ids or str(value) in earlier:
        raise DataError(f"{where}: this id is already in the catalogue", column="item_id", value=value)
    unknown = [name for name in row if name not in columns]
    if unknown:
        hint = f"columns are {', '.join(columns)}"
        raise DataError(f"{where}: the catalogue has no such column", column=unknown[0], hint=hint)
    if needs_text and not any(row.get(name) for name in text_columns):
        hint = f"fill one of {', '.join(text_columns)}"
        raise DataError(f"{where} has no text, and this model ranks new items by text only", value=value, hint=hint)
