"""Python values as a polars column: the objects of JSON Lines and of pandas' columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl

from graphllmrec.data.ids import clean_id, is_missing

_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair, which UTF-8 cannot hold."""
    return _SURROGATE.sub("\ufffd", text)


def column_of(name: str, values: Sequence[Any]) -> tuple[pl.Series, int]:
    """The values as a column, and the number of texts with half a surrogate pair, which becomes U+FFFD.

    Numbers stay numbers and dates dates; several kinds in one column are texts; plain values among lists are lists of
    one, lists of lists (the categories of Amazon 2014) one list. A column of objects has the type Struct.
    """
    values = [_plain(value) for value in values]
    present = [value for value in values if value is not None]
    if any(isinstance(value, dict) or (isinstance(value, list) and _is_nested(value)) for value in present):
        return pl.Series(name, [None if value is None else {"object": True} for value in values]), 0
    if (kind := _number_kind(present)) is not None:
        return pl.Series(name, values, dtype=kind), 0
    if present and all(isinstance(value, bytes) for value in present):
        return pl.Series(name, values, dtype=pl.Binary), 0
    texts = _Texts()
    if any(isinstance(value, list) for value in present):
        lists = [value if value is None or isinstance(value, list) else [value] for value in values]
        lists = [None if value is None else [texts(entry) for entry in value] for value in lists]
        return pl.Series(name, lists, dtype=pl.List(pl.String)), texts.repaired
    return pl.Series(name, [texts(value) for value in values], dtype=pl.String), texts.repaired


def _plain(value: Any) -> Any:
    """None for a missing value, a Python number for one of NumPy, a flat list for any sequence."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple | np.ndarray):
        lists = (entry if isinstance(entry, list | tuple | np.ndarray) else [entry] for entry in value)
        parts = [part for entries in lists for part in entries]
        return [part.item() if isinstance(part, np.generic) else part for part in parts]
    return None if is_missing(value) else value


def _is_nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, dict | list | tuple | np.ndarray) for value in values)


def _number_kind(present: Sequence[Any]) -> pl.DataType | None:
    """The type of a column of booleans, whole numbers or numbers; None for any other."""
    if all(isinstance(value, bool) for value in present):
        return pl.Boolean()
    if all(type(value) is int and abs(value) < 2**63 for value in present):
        return pl.Int64()
    # larger numbers would lose digits, and ids are different in their last ones
    if all(type(value) in (int, float) and abs(value) < 2**53 for value in present):
        return pl.Float64()
    return None


class _Texts:
    """Turns plain values into text, and counts those that UTF-8 cannot hold."""

    def __init__(self) -> None:
        self.repaired = 0

    def __call__(self, value: Any) -> str | None:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, date | datetime):
            return value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
        if not isinstance(value, str):
            return clean_id(value)
        whole = without_surrogates(value)
        self.repaired += whole != value
        return whole
