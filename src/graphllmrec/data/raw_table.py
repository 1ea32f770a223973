"""The rows of one table before any check, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from graphllmrec.errors import DataError

MAX_COLUMNS = 10_000

Pick = Callable[[Sequence[str]], Sequence[str]]  # column names of the table -> those to keep; raises DataError


@dataclass(frozen=True)
class RawTable:
    """The rows of a file or a frame, not checked yet."""

    file: str  # name for messages
    frame: pl.DataFrame
    line: Callable[[int], int]  # row of `frame` -> line of the file, or number of the row; from 1 on
    has_blank_lines: bool = False  # a row without values can be a blank line
    counted: Literal["line", "row"] = "line"  # what `line` counts, for messages
    notes: tuple[str, ...] = ()  # conversions made while reading


def check_width(names: Sequence[str], file: str) -> None:
    """Raise DataError for more columns than any table has."""
    if len(names) > MAX_COLUMNS:
        what = f"{len(names):,} columns, more than {MAX_COLUMNS:,}"
        raise DataError(what, file=file, hint="is this a table with a row per line?")
