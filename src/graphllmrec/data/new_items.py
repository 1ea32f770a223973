"""Rows that join the catalogue of a fitted recommender, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.data.tables import Items
from graphllmrec.errors import DataError


def new_item_table(rows: Sequence[Mapping[str, Any]], items: Items, *, needs_text: bool) -> pl.DataFrame:
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
            raise DataError(f"{where} has no text, and this model ranks new items by text only", value=value,
                            hint=f"fill one of {', '.join(items.text_columns)}")  # fmt: skip
    if not rows:
        raise DataError("no items to add")
    try:
        return pl.DataFrame([{**row, "item_id": str(row["item_id"])} for row in rows], schema=items.table.schema)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(f"{name} {kind}" for name, kind in items.table.schema.items())
        raise DataError("new items do not fit the catalogue", hint=f"columns are {kinds} ({error})") from None
