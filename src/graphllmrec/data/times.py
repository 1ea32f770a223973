"""Check the columns that order interactions: times of several forms, and positions.

A number is unix time in a unit that follows from its size, or a date written as digits (20240301, 20240301123000) where
all values of the column are such. A text is a date with the year first, ISO 8601 or what PostgreSQL, pandas, Go and
HTTP write; a date that can be read in two ways (10/1/2019) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.checks import Problems, check_numbers, comma_hint, may_hold_numbers, numbers
from graphllmrec.data.tables import Ints

TIME_HINT = "unix seconds (or milli-, micro-, nanoseconds), or a date such as 2024-03-01 or 2024-03-01T12:30:00Z"
# 1e11 seconds are the year 5138, 1e11 milliseconds are 1973: so the unit follows from the size.
TIME_UNITS = ((1e11, 1, "seconds"), (1e14, 10**3, "milliseconds"), (1e17, 10**6, "microseconds"))
NANOSECONDS = (9.2e18, 10**9, "nanoseconds")  # the limit of int64
# As unix times these would be August 1970, 1976 and the year 2600; the dates end in 2099.
DIGITS = ((8, "%Y%m%d", "YYYYMMDD"), (12, "%Y%m%d%H%M", "YYYYMMDDhhmm"), (14, "%Y%m%d%H%M%S", "YYYYMMDDhhmmss"))
DATE_FORMATS = (  # of texts in the form of `_normal`
    "%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M%:z", "%Y-%m-%d %H:%M", "%Y-%m-%d",
    "%Y%m%d %H%M%S%:z", "%Y%m%d %H%M%S", "%Y%m%d",
    "%d %B %Y %H:%M:%S%.f%:z", "%d %B %Y %H:%M:%S%.f", "%d %B %Y %H:%M", "%d %B %Y",
    "%B %d %Y %H:%M:%S%.f", "%B %d %Y %H:%M", "%B %d %Y",
    "%B %d %H:%M:%S %z %Y", "%B %d %H:%M:%S %Y",
)  # fmt: skip
NEWEST = 2**62 // 10**6  # seconds; later ones would not fit int64 as microseconds
_TWO_WAYS = re.compile(r"^\s*\d{1,2}[-/. ]\d{1,2}[-/. ,]+\d{2,4}\b")


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
    return OrderColumn(np.clip(values, 0, 2**53).astype(np.int64), 1, None)


def check_timestamp(problems: Problems, column: str) -> OrderColumn:
    """Unix times in seconds or smaller units, dates as digits, or dates as text (UTC unless they have a zone).

    Times within one second keep the finer order of the file's unit. Negative times and mixed units are problems.
    """
    raw = problems.table.frame[column]
    if raw.dtype in (pl.Date, pl.Datetime):
        return _from_dates(problems, column, raw.cast(pl.Datetime("us"), strict=False))
    values, missing, unreadable = numbers(raw)
    if not may_hold_numbers(raw.dtype):
        what = {"Time": "a time of day without a date", "Duration": "a length of time, not a time"}
        problems.add(~missing, what.get(str(raw.dtype.base_type()), "not a time"), column, TIME_HINT)
        return OrderColumn(np.zeros(len(raw), dtype=np.int64), 1, None)
    if raw.dtype == pl.String and unreadable.sum() * 2 > len(raw) - missing.sum():
        return _from_dates(problems, column, _parse_dates(raw))
    usable = values[~(missing | unreadable | problems.blank)]
    if (digits := _digits(usable)) is not None:
        return _from_digits(problems, column, values, missing | unreadable, *digits)
    return _from_numbers(problems, column, values, missing, unreadable)


def _from_numbers(
    problems: Problems, column: str, values: NDArray[np.float64], missing: NDArray[np.bool_], bad: NDArray[np.bool_]
) -> OrderColumn:
    raw = problems.table.frame[column]
    problems.add(missing, "missing value", column, TIME_HINT)
    problems.add(bad, "not a time", column, comma_hint(raw, bad) or TIME_HINT)
    problems.add(values < 0, "negative timestamp", column, TIME_HINT)
    usable = values[~(missing | bad | problems.blank)]
    limit, per_second, unit = _unit(float(np.median(usable)) if len(usable) else 0.0)
    problems.add(values >= limit, f"timestamp in another unit than the others ({unit})", column, TIME_HINT)
    note = f"{column}: {unit} converted to seconds" if per_second > 1 else None
    if per_second == 1 and (values != np.floor(values)).any():
        return OrderColumn(np.round(np.clip(values, 0, limit) * 1e6).astype(np.int64), 10**6, None)
    return OrderColumn(_exact(raw, values), per_second, note)


def _exact(raw: pl.Series, values: NDArray[np.float64]) -> Ints:
    """Whole numbers as int64, read from text: float64 cannot represent neighbouring nanoseconds."""
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    whole = text.cast(pl.Int64, strict=False)
    usable = whole.is_not_null().to_numpy()
    return np.where(usable, whole.fill_null(0).to_numpy(), np.clip(values, 0, NANOSECONDS[0]).astype(np.int64))


def _unit(typical: float) -> tuple[float, int, str]:
    return next((row for row in TIME_UNITS if typical < row[0]), NANOSECONDS)


def _digits(usable: NDArray[np.float64]) -> tuple[str, str] | None:
    """(format, its name) where most values are dates from 1970 to 2099 in digits; by chance one number in 30 is one."""
    if not len(usable):
        return None
    oldest, newest = str(int(usable.min())), str(int(usable.max()))
    for width, shape, name in DIGITS:
        if len(oldest) == len(newest) == width and 1970 <= int(oldest[:4]) <= int(newest[:4]) < 2100:
            whole = (usable == np.floor(usable)).all()
            return (shape, name) if whole and 2 * _read_digits(usable, shape).null_count() < len(usable) else None
    return None


def _read_digits(values: NDArray[np.float64], shape: str) -> pl.Series:
    text = pl.Series(values.astype(np.int64)).cast(pl.String)
    return text.str.to_datetime(shape, time_unit="us", strict=False)


def _from_digits(
    problems: Problems, column: str, values: NDArray[np.float64], bad: NDArray[np.bool_], shape: str, name: str
) -> OrderColumn:
    when = _read_digits(np.where(bad, 0, values), shape)
    order = _from_dates(problems, column, when)
    return OrderColumn(order.ticks, order.per_second, f"{column}: numbers read as dates {name}, UTC")


def _normal(text: pl.Series) -> pl.Series:
    """Dates in one spelling: a space before the time, zones as +02:00, no names of days, no commas."""
    steps = (
        (r"^(?i:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?,?\s+", ""),
        (r"(\d),(\d+)", "${1}.${2}"),  # fractions of seconds
        (r",", " "),
        (r"^(\d{4})/(\d{1,2})/", "${1}-${2}-"),
        (r"^(\d{4}-?\d{2}-?\d{2})[Tt]", "${1} "),
        (r"^(\d{1,2})[- ]([A-Za-z]{3,9})[- ](\d{4})", "${1} ${2} ${3}"),
        (r"(\d)\s*(?i:z|utc|gmt)$", "${1}+00:00"),
        (r"([+-]\d{2}:?\d{2})\s*\+00:00$", "${1}"),  # Go: +0000 UTC
        (r"(:\d{2}(?:\.\d+)?| \d{6})\s*([+-]\d{2})$", "${1}${2}:00"),
        (r"(:\d{2}(?:\.\d+)?| \d{6})\s*([+-]\d{2}):?(\d{2})$", "${1}${2}:${3}"),
        (r"\s+", " "),
    )
    text = text.str.strip_chars()
    for pattern, value in steps:
        text = text.str.replace_all(pattern, value)
    return text


def _parse_dates(raw: pl.Series) -> pl.Series:
    text = _normal(raw)
    parsed = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    for shape in DATE_FORMATS:
        if not parsed.null_count():
            break
        found = text.str.to_datetime(shape, time_unit="us", strict=False).dt.replace_time_zone(None)
        parsed = pl.select(pl.coalesce(parsed, found)).to_series()
    return parsed


def _from_dates(problems: Problems, column: str, when: pl.Series) -> OrderColumn:
    raw = problems.table.frame[column]
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars().replace("", None)
    missing = raw.is_null().to_numpy()
    micros = when.cast(pl.Int64)
    bad = micros.is_null().to_numpy() & ~missing
    problems.add(missing, "missing value", column, TIME_HINT)
    problems.add(bad, "not a date", column, _date_hint(raw, bad))
    ticks = micros.fill_null(0).to_numpy()
    problems.add(ticks < 0, "date before 1970", column, TIME_HINT)
    return OrderColumn(ticks, 10**6, f"{column}: dates converted to unix seconds")


def _date_hint(raw: pl.Series, bad: NDArray[np.bool_]) -> str:
    """What to write instead of the first date that cannot be read."""
    if not bad.any() or not _TWO_WAYS.match(str(raw[int(bad.argmax())])):
        return TIME_HINT
    return (
        "is the day or the month first? Write the year first: 2024-03-01 15:04; "
        'in pandas pd.to_datetime(column, format="%d-%m-%Y %H:%M") with the format of your file'
    )
