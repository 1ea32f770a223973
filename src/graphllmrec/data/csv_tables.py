"""csv, tsv, RecBole's and MovieLens' older files: all values are strings, null where a row ends early."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from graphllmrec.data.columns import count_known
from graphllmrec.data.content import BLOCK_BYTES, MAX_LINE_BYTES, check_text_file
from graphllmrec.data.files import Source
from graphllmrec.data.published import Layout, genres_of_flags
from graphllmrec.data.raw_table import Pick, RawTable, check_width
from graphllmrec.errors import DataError

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
QUOTE_HINT = 'a value that holds the separator, a line break or a quote must stand in "double quotes"'
BACKSLASH_HINT = r"quotes are escaped with a backslash here (\"); csv doubles them: write \"\" for each"

Content = Path | io.BytesIO


def read_csv(source: Source, content: Content, pick: Pick, *, quoted: bool) -> RawTable:
    """The columns that `pick` selects from the first line. Raises DataError for a row that cannot be read."""
    header_line, header = next(_records(content, quoted), (1, ""))
    separator = _separator(header, quoted)
    names = _fields(header, separator, quoted)
    if "\r" in header and "\n" not in header:
        hint = f"convert it: tr '\\r' '\\n' < {source.name} > new-{source.name}"
        raise DataError("lines end in a carriage return only", file=source.name, line=1, hint=hint)
    _check_names(names, source.name)
    columns = list(pick(names))
    if repeated := {name for name in names if name and names.count(name) > 1}:
        what = f"two columns are named {min(repeated)!r}"
        raise DataError(what, file=source.name, line=header_line, hint="rename one")
    frame = _parse(source.name, content, separator, quoted, names, header=True)
    if quoted:
        _check_quotes(source.name, content, separator)

    def line(row: int) -> int:
        # polars keeps blank lines between the rows, so records and rows have the same numbers
        after = (number for number, _ in _records(content, quoted) if number > header_line)
        return next(number for count, number in enumerate(after) if count == row)

    return RawTable(source.name, frame.select(columns), line, has_blank_lines=True)


def read_published(source: Source, content: Content, pick: Pick, layout: Layout) -> RawTable:
    """A table without column names, which are those of `layout` as far as the first line has values."""
    data = stream_of(content).read()
    separator = layout.separator
    if len(separator) > 1:  # polars knows separators of one byte only
        separator = next((mark for mark in ("\t", "\x1f", "\x1e", "\x1d") if mark.encode() not in data), "")
        if not separator:
            raise DataError("not a text file: it is full of control characters", file=source.name)
        data = data.replace(layout.separator.encode(), separator.encode())
    width = data.partition(b"\n")[0].count(separator.encode()) + 1
    names = list(layout.columns[:width])
    if width > len(layout.columns):
        what = f"{width} values where {source.name} has {len(layout.columns)}"
        raise DataError(what, file=source.name, line=1, hint=f"expected {', '.join(layout.columns)}")
    frame = genres_of_flags(_parse(source.name, io.BytesIO(data), separator, False, names, header=False))
    return RawTable(source.name, frame.select(pick(frame.columns)), lambda row: row + 1, has_blank_lines=True)


def check_short_rows(source: Source, max_line_bytes: int = MAX_LINE_BYTES) -> None:
    """Raise DataError when rows of a csv have fewer values than the header names, e.g. after an unquoted line break."""
    records = _records(check_text_file(source, max_line_bytes), quoted=True)
    _, header = next(records)
    separator = _separator(header, True)
    width = len(_fields(header, separator, True))
    bad = [
        (number, record, found)
        for number, record in records
        if record and not record.isspace() and (found := _width(record, separator, True)) < width
    ]
    if bad:
        number, record, found = bad[0]
        what = f"{found} values where the header names {width}"
        raise DataError(what, file=source.name, line=number, value=record, hint=QUOTE_HINT, count=len(bad))


def _check_names(names: list[str], file: str) -> None:
    check_width(names, file)
    for place, name in enumerate(names):  # of several columns without a name, each gets another blank one
        if not name.strip() and name in names[:place]:
            names[place] = " " * (max(len(other) for other in names if not other.strip()) + 1)


def _parse(
    file: str, content: Content, separator: str, quoted: bool, names: Sequence[str], *, header: bool
) -> pl.DataFrame:
    """All columns, although few are used: only then polars raises on a row with too many values."""
    try:
        return pl.read_csv(
            content,
            separator=separator,
            quote_char='"' if quoted else None,
            has_header=header,
            infer_schema=False,
            new_columns=names,
            glob=False,
        )
    except pl.exceptions.NoDataError:
        raise DataError("no rows", file=file, hint="is the export complete?") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        raise _bad_csv(file, content, separator, quoted, len(names), error) from error


def _separator(header: str, quoted: bool) -> str:
    def score(separator: str) -> tuple[int, int]:
        names = _fields(header, separator, quoted)
        return count_known(names), len(names)

    return max(SEPARATORS.values(), key=score)


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


def stream_of(content: Content) -> BinaryIO:
    """A new stream over the content, from its begin."""
    # getvalue() shares its bytes with the new object: another position, no copy
    return io.BytesIO(content.getvalue()) if isinstance(content, io.BytesIO) else content.open("rb")


def _records(content: Content, quoted: bool) -> Iterator[tuple[int, str]]:
    """(line it starts on, text) of every record; leading blank lines are skipped, quoted line breaks are inside."""
    with stream_of(content) as stream:
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


def _bad_csv(file: str, content: Content, separator: str, quoted: bool, width: int, error: BaseException) -> DataError:
    bad: list[tuple[int, str, str]] = []
    for number, record in _records(content, quoted):
        if quoted and record.count('"') % 2:
            bad.append((number, record, "a quote is never closed"))
        elif (found := _width(record, separator, quoted)) > width:
            bad.append((number, record, f"{found} values where the header names {width}"))
        elif quoted and not _well_quoted(record, separator, strict=True):
            bad.append((number, record, "a quote in the middle of a value"))
    if not bad:
        return DataError(f"not a readable table: {str(error).splitlines()[0]}", file=file, hint=QUOTE_HINT)
    number, record, what = bad[0]
    hint = BACKSLASH_HINT if quoted and '\\"' in record else QUOTE_HINT
    return DataError(what, file=file, line=number, value=record, hint=hint, count=len(bad))


def _check_quotes(file: str, content: Content, separator: str) -> None:
    """Raise DataError for a value whose closing quote is followed by more text: polars would lose a part of it."""
    if not _has_misplaced_quote(content, separator):
        return
    bad = [
        (number, record)
        for number, record in _records(content, quoted=True)
        if '"' in record and not _well_quoted(record, separator)
    ]
    if bad:
        number, record = bad[0]
        hint = BACKSLASH_HINT if '\\"' in record else QUOTE_HINT
        what = "a quote in the middle of a value"
        raise DataError(what, file=file, line=number, value=record, hint=hint, count=len(bad))


def _well_quoted(record: str, separator: str, strict: bool = False) -> bool:
    """Does every value that begins with a quote end with one? `strict`: and no other value has any."""
    mark = re.escape(separator)
    plain = f'[^"{mark}]*+' if strict else f'(?:[^"{mark}][^{mark}]*+)?'
    value = f'(?:"(?:[^"]|"")*+"|{plain})'
    return re.fullmatch(f"(?:{value}{mark})*+{value}", record) is not None


def _has_misplaced_quote(content: Content, separator: str) -> bool:
    """Is there a quote that neither opens nor closes a value, nor is doubled? One pass over the bytes, in blocks."""
    before, count = b"\n", 0
    with stream_of(content) as stream:
        block = stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while block:
            following = stream.read(BLOCK_BYTES)
            if b'"' in block:
                padded = np.frombuffer(before + block + (following[:1] or b"\n"), dtype=np.uint8)
                quotes = np.flatnonzero(padded[1:-1] == ord('"'))
                closes = (count + np.arange(len(quotes))) % 2 == 1
                opened = np.isin(padded[quotes], list(f'\n"{separator}'.encode()))
                closed = np.isin(padded[quotes + 2], list(f'\r\n"{separator}'.encode()))
                if not np.where(closes, closed, opened).all():
                    return True
                count += len(quotes)
            before, block = block[-1:], following
    return False
