"""Check the columns of a table: ids, times, ratings, text. All problems of a file are raised as one error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.formats import RawTable
from graphllmrec.data.ids import clean_ids, id_text
from graphllmrec.data.tables import Ints
from graphllmrec.errors import DataError

ID_HINT = "every row needs an id; remove the row, or give the id"
TIME_HINT = "unix seconds (or milli-, micro-, nanoseconds), or a date such as 2024-03-01 or 2024-03-01T12:30:00Z"
DATE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
# 1e11 seconds are the year 5138, 1e11 milliseconds are 1973: so the unit follows from the size.
TIME_UNITS = ((1e11, 1, "seconds"), (1e14, 10**3, "milliseconds"), (1e17, 10**6, "microseconds"))
NANOSECONDS = (9.2e18, 10**9, "nanoseconds")  # the limit of int64


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
        value = self.table.frame[column][row]
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
        )

    def _describe(self, problem: Problem) -> str:
        value = "" if problem.value is None else f" (found {str(problem.value)[:80]!r})"
        rows = f", {problem.count:,} such rows" if problem.count > 1 else ""
        return f"line {self.table.line(problem.row)}, column '{problem.column}': {problem.what}{value}{rows}"


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
    if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object):
        kind = "bytes" if raw.dtype == pl.Binary else "lists or objects"
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
    values, missing, unreadable = _numbers(problems.table.frame[column])
    problems.add(missing, "missing value", column)
    problems.add(unreadable, "not a number", column)
    return values


def check_ratings(problems: Problems, column: str) -> NDArray[np.float32]:
    """A column of ratings as float32 (n_rows,)."""
    values = check_numbers(problems, column)
    problems.add(np.abs(values) > 1e30, "too large for a rating", column)
    return np.clip(values, -1e30, 1e30).astype(np.float32)


def _numbers(raw: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(values with 0 where unusable, missing, unreadable)."""
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars().replace("", None)
    if raw.dtype.is_nested() or raw.dtype.is_temporal():
        return np.zeros(len(raw)), np.zeros(len(raw), dtype=bool), np.ones(len(raw), dtype=bool)
    values = raw.cast(pl.Float64, strict=False)
    missing = (raw.is_null() | values.is_nan().fill_null(False)).to_numpy()
    finite = values.is_finite().fill_null(False).to_numpy()
    return np.where(finite, values.fill_null(0.0).to_numpy(), 0.0), missing, ~finite & ~missing


@dataclass(frozen=True)
class OrderColumn:
    """A checked order: `ticks` sort, ticks // per_second are unix seconds (positions: per_second is 1)."""

    ticks: Ints  # (n_rows,)
    per_second: int
    note: str | None


def check_position(problems: Problems, column: str) -> OrderColumn:
    """Positions in the history of a user: whole numbers, not negative."""
    values = check_numbers(problems, column)
    problems.add(values < 0, "negative position", column, "count from 0")
    problems.add((values != np.floor(values)) | (values > 2**53), "position is not a whole number", column)
    return OrderColumn(np.minimum(values, 2**53).astype(np.int64), 1, None)


def check_timestamp(problems: Problems, column: str) -> OrderColumn:
    """Unix times in seconds or smaller units (found from their size), or ISO dates (UTC unless they have a zone).

    Times within one second keep the finer order of the file's unit. Negative times and mixed units are problems.
    """
    raw = problems.table.frame[column]
    if raw.dtype.is_temporal():
        return _from_dates(problems, column, raw.cast(pl.Datetime("us"), strict=False))
    values, missing, unreadable = _numbers(raw)
    if raw.dtype.is_nested():
        problems.add(unreadable, "not a time", column, TIME_HINT)
        return OrderColumn(np.zeros(len(raw), dtype=np.int64), 1, None)
    if raw.dtype == pl.String and unreadable.sum() * 2 > len(raw) - missing.sum():
        return _from_dates(problems, column, _parse_dates(raw))
    problems.add(missing, "missing value", column, TIME_HINT)
    problems.add(unreadable, "not a time", column, TIME_HINT)
    problems.add(values < 0, "negative timestamp", column, TIME_HINT)
    usable = values[~(missing | unreadable | problems.blank)]
    limit, per_second, unit = _unit(float(np.median(usable)) if len(usable) else 0.0)
    problems.add(values >= limit, f"timestamp in another unit than the others ({unit})", column, TIME_HINT)
    note = f"{column}: {unit} converted to seconds" if per_second > 1 else None
    if per_second == 1 and (values != np.floor(values)).any():
        return OrderColumn(np.round(np.minimum(values, limit) * 1e6).astype(np.int64), 10**6, None)
    return OrderColumn(_exact(raw, values), per_second, note)


def _exact(raw: pl.Series, values: NDArray[np.float64]) -> Ints:
    """Whole numbers as int64, read from text: float64 cannot represent neighbouring nanoseconds."""
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    whole = text.cast(pl.Int64, strict=False)
    usable = whole.is_not_null().to_numpy()
    return np.where(usable, whole.fill_null(0).to_numpy(), np.minimum(values, NANOSECONDS[0]).astype(np.int64))


def _unit(typical: float) -> tuple[float, int, str]:
    return next((row for row in TIME_UNITS if typical < row[0]), NANOSECONDS)


def _parse_dates(raw: pl.Series) -> pl.Series:
    text = raw.str.strip_chars().str.replace("T", " ", literal=True).str.replace(r"[zZ]$", "+00:00")
    text = text.str.replace_all("/", "-", literal=True)
    parsed = [
        text.str.to_datetime(shape, time_unit="us", strict=False).dt.replace_time_zone(None) for shape in DATE_FORMATS
    ]
    return pl.select(pl.coalesce(*parsed)).to_series()


def _from_dates(problems: Problems, column: str, when: pl.Series) -> OrderColumn:
    raw = problems.table.frame[column]
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars().replace("", None)
    missing = raw.is_null().to_numpy()
    micros = when.cast(pl.Int64)
    problems.add(missing, "missing value", column, TIME_HINT)
    problems.add(micros.is_null().to_numpy() & ~missing, "not a date", column, TIME_HINT)
    ticks = micros.fill_null(0).to_numpy()
    problems.add(ticks < 0, "date before 1970", column, TIME_HINT)
    return OrderColumn(ticks, 10**6, f"{column}: dates converted to unix seconds")


def check_text(problems: Problems, column: str) -> pl.Series | None:
    """A column of free text (n_rows,) String, null where it is empty; None where the column has another type."""
    raw = problems.table.frame[column]
    if raw.dtype != pl.String:
        return None
    text = raw.str.strip_chars()
    return text.set(text == "", None)
