"""Check items that are added to the catalogue of a fitted recommender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.data.ids import clean_id, is_missing
from graphllmrec.data.tables import Items
from graphllmrec.errors import DataError

_WANTED = 'give a list of rows, e.g. [{"item_id": "b7", "title": "…"}], or a polars or pandas DataFrame'


def new_item_table(rows: Any, items: Items, *, needs_text: bool) -> pl.DataFrame:
    """New rows (a list of mappings, or a DataFrame) as a table with the columns of the catalogue.

    Missing values of pandas (NaN, NA) are missing. Raises DataError naming the row (counted from 1).
    """
    known: list[dict[str, Any]] = []
    ids: set[str] = set()
    for number, row in enumerate(_mappings(rows), start=1):
        row = {name: None if is_missing(value) else value for name, value in row.items()}
        row["item_id"] = _checked_id(f"new item {number}", row, items, ids, needs_text)
        ids.add(row["item_id"])
        known.append(row)
    if not known:
        raise DataError("no items to add")
    try:
        return pl.DataFrame(known, schema=items.table.schema)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(f"{name} {kind}" for name, kind in items.table.schema.items())
        raise DataError("new items do not fit the catalogue", hint=f"columns are {kinds} ({error})") from None


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


def _checked_id(where: str, row: Mapping[str, Any], items: Items, earlier: set[str], needs_text: bool) -> str:
    """The row's id. Raises DataError without a new one, with an unknown column, or without the text the model needs."""
    columns, text_columns = items.table.columns, items.text_columns
    own = clean_id(row.get("item_id"))
    if own is None:
        raise DataError(f"{where} has no item_id", hint='give {"item_id": …, "title": …}')
    if own in items.ids or own in earlier:
        raise DataError(f"{where}: this id is already in the catalogue", column="item_id", value=own)
    unknown = [name for name in row if name not in columns]
    if unknown:
        hint = f"columns are {', '.join(columns)}"
        raise DataError(f"{where}: the catalogue has no such column", column=unknown[0], hint=hint)
    if needs_text and not any(row.get(name) for name in text_columns):
        hint = f"fill one of {', '.join(text_columns)}"
        raise DataError(f"{where} has no text, and this model ranks new items by text only", value=own, hint=hint)
    return own
