"""Items by a condition on the columns of the catalogue: what a list may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.tables import Items
from graphllmrec.errors import ArgumentError


def matching(items: Items, condition: Any) -> NDArray[np.bool_]:
    """Items (num_items,) for which `condition` is true; where a column it reads is missing, it is not.

    `condition`: SQL such as "price < 20 AND brand = 'Lego'" or "array_contains(categories, 'Garden')", the same as a
    polars expression, or a list of such conditions that must all be true. Raises ArgumentError, naming the columns, for
    what is no condition on them.
    """
    if isinstance(condition, Sequence) and not isinstance(condition, str | bytes):
        kept = np.ones(len(items), bool)
        for each in condition:
            kept &= _matching(items, each)
        return kept
    return _matching(items, condition)


def _matching(items: Items, condition: Any) -> NDArray[np.bool_]:
    """Items (num_items,) for which one condition is true."""
    if not isinstance(condition, str | pl.Expr):
        wanted = "\"price < 20 AND brand = 'Lego'\" or a polars expression"
        raise ArgumentError(f"filter is a condition such as {wanted}, not {condition!r:.80}")
    try:
        expression = pl.sql_expr(condition) if isinstance(condition, str) else condition
        found = items.table.select(keep=expression)["keep"]
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n")[0].partition("; valid columns")[0]
        quotes = isinstance(condition, str) and isinstance(error, pl.exceptions.ColumnNotFoundError)
        hint = " (a text stands in single quotes)" if quotes and '"' in str(condition) else ""
        raise _refused(items, condition, f"{reason[:200]}{hint}") from None
    if found.dtype != pl.Boolean:
        raise _refused(items, condition, f"it gives {found.dtype}, not true or false")
    if len(found) not in (1, len(items)):
        raise _refused(items, condition, f"it gives {len(found):,} values for {len(items):,} items")
    return np.broadcast_to(found.fill_null(False).to_numpy(), len(items))  # one value: a condition on the whole table


def _refused(items: Items, condition: str | pl.Expr, reason: str) -> ArgumentError:
    shown = " ".join(str(condition).split())
    columns = ", ".join(f"{name} ({kind})" for name, kind in items.table.schema.items())
    return ArgumentError(f"filter {shown[:120]!r}: {reason}; the columns of the items are {columns}")
