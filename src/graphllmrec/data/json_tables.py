"""JSON Lines: one object per line. polars reads what it reads right; Python the rest, line by line.

The rest: half a surrogate pair (polars makes a zero byte of it), a column of lists and plain values, and the Python
literals of Amazon's metadata of 2014.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from graphllmrec.data.columns import find_column
from graphllmrec.data.csv_tables import Content, stream_of
from graphllmrec.data.files import Source
from graphllmrec.data.raw_table import Pick, RawTable, check_width
from graphllmrec.data.values import column_of, without_surrogates
from graphllmrec.errors import DataError

JSON_HINT = 'every line must be one object such as {"user_id": "a", "item_id": "b"}; NaN is not JSON: write null'
MAX_LITERAL_BYTES = 1 << 20  # a Python literal takes a hundred times its length while it is parsed
_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)

Parse = Callable[[bytes], object]  # one line -> its value; None where it cannot be read


def read_jsonl(source: Source, content: Content, pick: Pick) -> RawTable:
    """The columns of the objects that `pick` selects from their keys. Raises DataError for a line that is no object."""
    parse, notes = _parser(source.name, content)
    frame = _polars(source.name, content, pick) if parse is _json and not _has_half_pair(content) else None
    if frame is None:
        frame, more = _python(source.name, content, pick, parse)
        notes += more

    def line(row: int) -> int:
        return next(number for count, (number, _) in enumerate(_lines(content)) if count == row)

    return RawTable(source.name, frame, line, notes=tuple(f"{source.name}: {note}" for note in notes))


def _lines(content: Content) -> Iterator[tuple[int, bytes]]:
    with stream_of(content) as stream:
        for number, raw in enumerate(stream, start=1):
            if text := raw.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
                yield number, text


def _json(raw: bytes) -> object:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _literal(raw: bytes) -> object:
    if len(raw) > MAX_LITERAL_BYTES:
        return None
    try:
        return ast.literal_eval(raw.decode())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _parser(file: str, content: Content) -> tuple[Parse, list[str]]:
    """How lines are parsed, by the first one: JSON, or the Python literals of Amazon 2014; and a note on the latter."""
    number, raw = next(_lines(content), (1, b""))
    if isinstance(_json(raw), dict):
        return _json, []
    if raw.startswith(b"{'") and isinstance(_literal(raw), dict):
        return _literal, ["lines are Python literals, not JSON; read as such"]
    hint = "JSON Lines hold one object per line, not one array" if raw[:1] == b"[" else JSON_HINT
    raise DataError("not a JSON object", file=file, line=number, value=raw.decode(), hint=hint)


def _has_half_pair(content: Content) -> bool:
    r"""Is there an escape such as \ud83d without its other half?"""
    return any(_HALF_PAIR.search(raw) for _, raw in _lines(content) if b"\\u" in raw)


def _polars(file: str, content: Content, pick: Pick) -> pl.DataFrame | None:
    """The frame of these lines, of which polars sees `pick`'s columns only; None for lines that it cannot read."""
    try:
        with stream_of(content) as stream:  # not the path: polars would search for a pattern
            schema = pl.scan_ndjson(stream, infer_schema_length=None).collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    check_width(list(schema), file)
    # ids are read as strings: 5 and "x5" in one column, or 20 digits, would be damaged by a number type
    ids = [find_column(list(schema), meaning) for meaning in ("user_id", "item_id")]
    columns = list(pick(list(schema)))
    kinds = {name: pl.String() if name in ids and not schema[name].is_nested() else schema[name] for name in columns}
    try:
        with stream_of(content) as stream:
            frame = pl.read_ndjson(stream, schema=kinds)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    return frame if len(frame) == sum(1 for _ in _lines(content)) else None


def _python(file: str, content: Content, pick: Pick, parse: Parse) -> tuple[pl.DataFrame, list[str]]:
    rows = _objects(file, content, parse)
    keys = {without_surrogates(key): key for row in rows for key in row}
    names = list(keys)
    check_width(names, file)
    repaired = 0
    columns: list[pl.Series] = []
    for name in pick(names):
        column, count = column_of(name, [row.get(keys[name]) for row in rows])
        columns.append(column)
        repaired += count
    notes = [f"{repaired:,} texts have half a surrogate pair, replaced by \ufffd"] if repaired else []
    return pl.DataFrame(columns), notes


def _objects(file: str, content: Content, parse: Parse) -> list[dict[str, Any]]:
    """The object of every line. Raises DataError with the first bad line and their number."""
    rows: list[dict[str, Any]] = []
    bad: list[tuple[int, bytes]] = []
    kinds: dict[str, type] = {}
    for number, raw in _lines(content):
        row = parse(raw)
        if not isinstance(row, dict):
            bad.append((number, raw))
            continue
        if not bad:
            _check_kinds(file, number, row, kinds)
            rows.append({str(key): value for key, value in row.items()})
    if bad:
        number, raw = bad[0]
        value = raw.decode()
        raise DataError("not a JSON object", file=file, line=number, value=value, hint=JSON_HINT, count=len(bad))
    return rows


def _check_kinds(file: str, number: int, row: dict[str, Any], kinds: dict[str, type]) -> None:
    """Raise DataError for an object where an earlier line has a list or a plain value, and the other way round."""
    for key, value in row.items():
        kind = dict if isinstance(value, dict) else object
        if value is not None and kinds.setdefault(key, kind) is not kind:
            what = "here a list, an object or a plain value, in an earlier line another of these"
            raise DataError(what, file=file, line=number, column=str(key), value=value, hint="use one kind per key")
