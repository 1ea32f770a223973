"""Read one table of any format, with the line number of every row for error messages.

csv, tsv and RecBole files have strings, JSON Lines and parquet their own types; checks.py converts them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from graphllmrec.data import files
from graphllmrec.data.columns import base_name, count_known, find_column
from graphllmrec.errors import DataError

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
QUOTE_HINT = 'a value that holds the separator, a line break or a quote must stand in "double quotes"'
JSON_HINT = 'every line must be one object such as {"user_id": "a", "item_id": "b"}; NaN is not JSON: write null'

Pick = Callable[[Sequence[str]], Sequence[str]]  # column names of the file -> those to keep; raises DataError


@dataclass(frozen=True)
class RawTable:
    """The rows of a file, not checked yet."""

    file: str  # name for messages
    frame: pl.DataFrame
    line: Callable[[int], int]  # row of `frame` -> line of the file, 1-based (parquet: number of the row)
    has_blank_lines: bool = False  # a row without values can be a blank line


def read_table(path: Path, pick: Pick, max_line_bytes: int = files.MAX_LINE_BYTES) -> RawTable:
    """The columns of a file that `pick` selects from its column names.

    Raises DataError for a file that cannot be parsed: empty, truncated, not UTF-8, endless line, ragged row, bad JSON.
    """
    if path.stat().st_size == 0:
        raise DataError("empty file", file=path.name, hint="the first line must name the columns")
    path = path.absolute()  # polars would expand a leading "~", and without glob=False "[1]", "*" and "?" in any folder
    named = files.parse_name(path)
    kind = named[1] if named else path.suffix
    if kind == "parquet":
        return _read_parquet(path, pick)
    source = files.check_text_file(path, max_line_bytes)
    if kind in ("jsonl", "ndjson"):
        return _read_jsonl(path, source, pick)
    return _read_csv(path, source, pick, quoted=kind in ("csv", "tsv"))


def _read_parquet(path: Path, pick: Pick) -> RawTable:
    try:
        names = list(pl.read_parquet_schema(path))
        columns = list(pick(names))
        frame = pl.read_parquet(path, columns=columns, glob=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"not a readable parquet file: {error}", file=path.name, hint="write it again") from error
    return RawTable(path.name, frame, lambda row: row + 1)


def _read_csv(path: Path, source: Path | io.BytesIO, pick: Pick, quoted: bool) -> RawTable:
    header_line, header = next(_records(source, quoted), (1, ""))
    separator = max(SEPARATORS.values(), key=lambda mark: _separator_score(header, mark, quoted))
    names = _fields(header, separator, quoted)
    columns = list(pick(names))
    if repeated := {name for name in names if name and names.count(name) > 1}:
        raise DataError(f"two columns are named {min(repeated)!r}", file=path.name, line=header_line, hint="rename one")
    try:
        # all columns, although few are used: only then polars raises on a row with too many fields
        frame = pl.read_csv(
            source,
            separator=separator,
            quote_char='"' if quoted else None,
            infer_schema=False,
            new_columns=names,
            glob=False,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise _bad_csv(path.name, source, separator, quoted, len(names), error) from error

    def line(row: int) -> int:
        # polars keeps blank lines between the rows, so records and rows have the same numbers
        after = (number for number, _ in _records(source, quoted) if number > header_line)
        return next(number for count, number in enumerate(after) if count == row)

    return RawTable(path.name, frame.select(columns), line, has_blank_lines=True)


def _separator_score(header: str, separator: str, quoted: bool) -> tuple[int, int]:
    names = _fields(header, separator, quoted)
    return count_known(names), len(names)


def _fields(header: str, separator: str, quoted: bool) -> list[str]:
    if not quoted:
        return header.split(separator)
    try:
        return next(csv.reader([header], delimiter=separator), [])
    except csv.Error:  # a NUL, or a name of 128 KB: no header; the missing column is reported next
        return [header]


def _width(record: str, separator: str, quoted: bool) -> int:
    """Number of values in a record; a separator in quotes does not count."""
    return (re.sub(r'"[^"]*"', "", record) if quoted else record).count(separator) + 1


def _stream(source: Path | io.BytesIO) -> BinaryIO:
    # getvalue() shares its bytes with the new object: another position, no copy
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source.open("rb")


def _records(source: Path | io.BytesIO, quoted: bool) -> Iterator[tuple[int, str]]:
    """(line it starts on, text) of every record; leading blank lines are skipped, quoted line breaks are inside."""
    with _stream(source) as stream:
        held: list[bytes] = []
        start, is_open, seen = 1, False, False
        for number, raw in enumerate(stream, start=1):
            if not seen and not raw.strip():
                continue
            seen, start = True, start if is_open else number
            held.append(raw)
            is_open ^= quoted and raw.count(b'"') % 2 == 1
            if not is_open:
                yield start, b"".join(held).decode("utf-8-sig" if start == 1 else "utf-8").rstrip("\r\n")
                held.clear()
        if held:
            yield start, b"".join(held).decode().rstrip("\r\n")


def _bad_csv(
    file: str, source: Path | io.BytesIO, separator: str, quoted: bool, width: int, error: Exception
) -> DataError:
    bad: list[tuple[int, str, str]] = []
    for number, record in _records(source, quoted):
        if quoted and record.count('"') % 2:
            bad.append((number, record, "a quote is never closed"))
        elif (found := _width(record, separator, quoted)) > width:
            bad.append((number, record, f"{found} values where the header names {width}"))
        elif quoted and _stray_quote(record, separator):
            bad.append((number, record, "a quote in the middle of a value"))
    if not bad:
        return DataError(f"not a readable table: {str(error).splitlines()[0]}", file=file, hint=QUOTE_HINT)
    number, record, what = bad[0]
    return DataError(what, file=file, line=number, value=record, hint=QUOTE_HINT, count=len(bad))


def _stray_quote(record: str, separator: str) -> bool:
    """Is there a quote that does not open or close a value, and is not doubled within one?"""
    mark = re.escape(separator)
    return '"' in re.sub(rf'(?:^|(?<={mark}))"(?:[^"]|"")*"(?={mark}|$)', "", record)


def _read_jsonl(path: Path, source: Path | io.BytesIO, pick: Pick) -> RawTable:
    first = _first_object(path.name, source)
    # ids are read as strings: 5 and "x5" in one column, or 20 digits, would be damaged by a number type
    ids = {name for meaning in ("user_id", "item_id") if (name := find_column(list(first), meaning))}
    try:
        with _stream(source) as stream:  # not the path: read_ndjson has no glob=False
            frame = pl.read_ndjson(stream, schema_overrides=dict.fromkeys(ids, pl.String), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise _bad_json(path.name, source, error) from error
    columns = list(pick(frame.columns))

    def line(row: int) -> int:
        return next(number for count, (number, _) in enumerate(_json_lines(source)) if count == row)

    return RawTable(path.name, frame.select(columns), line)


def _json_lines(source: Path | io.BytesIO) -> Iterator[tuple[int, bytes]]:
    with _stream(source) as stream:
        yield from ((number, raw) for number, raw in enumerate(stream, start=1) if raw.strip())


def _first_object(file: str, source: Path | io.BytesIO) -> dict[str, object]:
    number, raw = next(_json_lines(source), (1, b""))
    value = _parsed(raw)
    if isinstance(value, dict):
        return value
    hint = "JSON Lines hold one object per line, not one array" if raw.lstrip()[:1] == b"[" else JSON_HINT
    raise DataError("not a JSON object", file=file, line=number, value=raw.decode().strip(), hint=hint)


def _parsed(raw: bytes) -> object:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _bad_json(file: str, source: Path | io.BytesIO, error: Exception) -> DataError:
    bad: list[tuple[int, bytes]] = []
    kinds: dict[str, type] = {}
    for number, raw in _json_lines(source):
        row = _parsed(raw)
        if not isinstance(row, dict):
            bad.append((number, raw))
            continue
        for key, value in row.items():
            kind = type(value) if isinstance(value, (list, dict)) else object
            if not bad and value is not None and kinds.setdefault(key, kind) is not kind:
                what = "here a list, an object or a plain value, in an earlier line another of these"
                return DataError(what, file=file, line=number, column=key, value=value, hint="use one kind per key")
    if not bad:
        return DataError(f"not readable as JSON Lines: {str(error).splitlines()[0]}", file=file)
    number, raw = bad[0]
    return DataError(
        "not a JSON object",
        file=file,
        line=number,
        value=raw.decode().strip(),
        hint=JSON_HINT,
        count=len(bad),
    )


def check_short_rows(path: Path, max_line_bytes: int = files.MAX_LINE_BYTES) -> None:
    """Raise DataError when rows of a csv have fewer values than the header names, e.g. after an unquoted line break."""
    records = _records(files.check_text_file(path, max_line_bytes), quoted=True)
    _, header = next(records)
    separator = max(SEPARATORS.values(), key=lambda mark: _separator_score(header, mark, True))
    width = len(_fields(header, separator, True))
    bad = [
        (number, record, found)
        for number, record in records
        if record.strip() and (found := _width(record, separator, True)) < width
    ]
    if bad:
        number, record, found = bad[0]
        what = f"{found} values where the header names {width}"
        raise DataError(what, file=path.name, line=number, value=record, hint=QUOTE_HINT, count=len(bad))


def column_type(column: str) -> str:
    """RecBole's type of a column, "" without one: "genres:token_seq" -> "token_seq"."""
    return column.strip()[len(base_name(column)) + 1 :] if ":" in column else ""
