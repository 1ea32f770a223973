"""Check the columns of a table: ids, numbers, ratings, text. All problems of a file are raised as one error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.formats import RawTable
from graphllmrec.data.ids import clean_ids, filled, id_text
from graphllmrec.data.tables import Ints
from graphllmrec.errors import DataError

ID_HINT = "every row needs an id; remove the row, or give the id"


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one column."""

    what: str
    column: str
    value: object
    row: int  # the first row with it
    count: int  # number of rows with it
    hint: str | None


@dataclass
class Problems:
    """The problems of one file."""

    table: RawTable
    found: list[Problem] = field(default_factory=list)
    blank: NDArray[np.bool_] = field(init=False)  # blank lines of a text file: skipped, not problems
    bad: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        frame = self.table.frame
        nothing = frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
        self.blank = nothing & self.table.has_blank_lines
        self.bad = np.zeros(len(frame), dtype=bool)

    def add(self, mask: NDArray[np.bool_], what: str, column: str, hint: str | None = None) -> None:
        """Add a problem in the rows of `mask`; blank rows do not count."""
        mask = mask & ~self.blank
        if not mask.any():
            return
        row = int(mask.argmax())
        self.bad |= mask
        value = _value(self.table.frame[column], row)
        self.found.append(Problem(what, column, value, row, int(mask.sum()), hint))

    def raise_any(self) -> None:
        """Raise one DataError for all problems, if any: that of the first row, with the others in its hint."""
        if not self.found:
            return
        first, *others = sorted(self.found, key=lambda problem: problem.row)
        hint = "\n  also ".join(filter(None, [first.hint, *map(self._describe, others)]))
        raise DataError(
            first.what,
            file=self.table.file,
            line=self.table.line(first.row),
            column=first.column,
            value=first.value,
            hint=hint or None,
            count=int(self.bad.sum()),
            counted=self.table.counted,
        )

    def _describe(self, problem: Problem) -> str:
        value = "" if problem.value is None else f" (found {str(problem.value)[:80]!r})"
        rows = f", {problem.count:,} such rows" if problem.count > 1 else ""
        where = f"{self.table.counted} {self.table.line(problem.row)}, column '{problem.column}'"
        return f"{where}: {problem.what}{value}{rows}"


def _value(column: pl.Series, row: int) -> object:
    """A value for a message; as text where Python has no such value (a date in the year 60000)."""
    try:
        return column[row]
    except (ValueError, OverflowError):
        return column.slice(row, 1).cast(pl.String, strict=False).to_list()[0]


@dataclass(frozen=True)
class IdColumn:
    """A checked column of ids: row r holds ids[code[r]]."""

    ids: pl.Series  # (n_unique,) String, in order of first appearance
    code: Ints  # (n_rows,); -1 where the id is missing


def check_ids(problems: Problems, column: str) -> IdColumn:
    """The ids of a column as strings (data/ids.py). A missing id is a problem.

    The distinct values are checked once; each row costs one hash lookup.
    """
    raw = problems.table.frame[column]
    if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object, pl.Duration):
        kind = {pl.Binary: "bytes", pl.Duration: "lengths of time"}.get(raw.dtype.base_type(), "lists or objects")
        raise DataError(f"ids must be text or whole numbers, not {kind}", file=problems.table.file, column=column)
    text = id_text(raw)
    distinct = text.drop_nulls().unique(maintain_order=True)
    clean = clean_ids(distinct)
    ids = clean.drop_nulls().unique(maintain_order=True)
    row_of_distinct = find_rows(ids, clean)
    physical = text.cast(pl.Enum(distinct)).to_physical()
    present = physical.is_not_null().to_numpy()
    code = np.full(len(text), -1, dtype=np.int64)
    code[present] = row_of_distinct[physical.drop_nulls().to_numpy()]
    problems.add(code < 0, "missing id", column, ID_HINT)
    return IdColumn(ids, code)


def find_rows(ids: pl.Series, some: pl.Series) -> Ints:
    """Row in `ids` (distinct) of each value of `some` (n,); -1 where it is not among them."""
    rows = ids.alias("id").to_frame().with_row_index("row")
    found = some.alias("id").to_frame().join(rows, on="id", how="left", maintain_order="left")
    return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()


def check_numbers(problems: Problems, column: str) -> NDArray[np.float64]:
    """A column of finite numbers (ratings, positions); any other value is a problem."""
    raw = problems.table.frame[column]
    values, missing, unreadable = numbers(raw)
    problems.add(missing, "missing value", column)
    problems.add(unreadable, "not a number", column, comma_hint(raw, unreadable))
    return values


def check_ratings(problems: Problems, column: str, *, required: bool) -> NDArray[np.float32]:
    """A column of ratings as float32 (n_rows,); NaN where there is none, which is a problem if they are `required`."""
    raw = problems.table.frame[column]
    values, missing, unreadable = numbers(raw)
    if required:
        problems.add(missing, "missing value", column, "min_rating needs a rating in every row; or leave it out")
    problems.add(unreadable, "not a number", column, comma_hint(raw, unreadable))
    problems.add(np.abs(values) > 1e30, "too large for a rating", column)
    return np.where(missing, np.nan, np.clip(values, -1e30, 1e30)).astype(np.float32)


def comma_hint(raw: pl.Series, bad: NDArray[np.bool_]) -> str | None:
    """What to write for the first bad value where it is a number with a decimal comma."""
    if raw.dtype != pl.String or not bad.any():
        return None
    text = str(raw[int(bad.argmax())]).strip()
    if not re.fullmatch(r"[+-]?\d+,\d+", text):
        return None
    return f"write a decimal point instead of the comma: {text.replace(',', '.')}"


def may_hold_numbers(kind: pl.DataType) -> bool:
    """Can polars make numbers of values of this type? Not of dates, lists, objects or bytes."""
    return kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)


def numbers(raw: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(values with 0 where unusable, missing, unreadable)."""
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars().replace("", None)
    if not may_hold_numbers(raw.dtype):
        return np.zeros(len(raw)), np.zeros(len(raw), dtype=bool), np.ones(len(raw), dtype=bool)
    values = raw.cast(pl.Float64, strict=False)
    missing = (raw.is_null() | values.is_nan().fill_null(False)).to_numpy()
    finite = values.is_finite().fill_null(False).to_numpy()
    return np.where(finite, values.fill_null(0.0).to_numpy(), 0.0), missing, ~finite & ~missing


def check_text(problems: Problems, column: str) -> pl.Series | None:
    """A column of free text (n_rows,) String, null where it is empty; None where the column has another type."""
    raw = problems.table.frame[column]
    if raw.dtype != pl.String:
        return None
    return filled(raw.str.strip_chars())
