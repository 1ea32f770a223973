"""Read one table of any format, with the line number of every row for error messages.

csv, tsv and RecBole files have strings, JSON Lines, parquet and frames their own types; checks.py converts them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from graphllmrec.data.columns import base_name
from graphllmrec.data.content import MAX_LINE_BYTES, check_text_file
from graphllmrec.data.csv_tables import check_short_rows, read_csv, read_published
from graphllmrec.data.files import Source, parse_name
from graphllmrec.data.json_tables import read_jsonl
from graphllmrec.data.parquet import read_parquet
from graphllmrec.data.published import find_layout
from graphllmrec.data.raw_table import Pick, RawTable, check_width
from graphllmrec.errors import DataError

__all__ = ["Pick", "RawTable", "check_short_rows", "column_type", "read_table"]


def read_table(source: Source | Path, pick: Pick, max_line_bytes: int = MAX_LINE_BYTES) -> RawTable:
    """The columns of a file or frame that `pick` selects from its column names.

    Raises DataError for a file that cannot be parsed: empty, truncated, not UTF-8, endless line, ragged row, bad JSON,
    more data than `source.max_bytes`.
    """
    if isinstance(source, Path):
        source = Source.of_file(source)
    if source.frame is not None:
        check_width(source.frame.columns, source.name)
        frame = source.frame.select(list(pick(source.frame.columns)))
        return _plain(RawTable(source.name, frame, lambda row: row + 1, counted="row", notes=source.notes))
    assert source.path is not None
    try:
        return _plain(_read_file(source, pick, max_line_bytes))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=source.name) from error


def _plain(table: RawTable) -> RawTable:
    """The table with categories as strings: a category cannot be read as a number or a date."""
    kinds = {name: pl.String for name, kind in table.frame.schema.items() if kind in (pl.Categorical, pl.Enum)}
    return replace(table, frame=table.frame.cast(kinds)) if kinds else table  # type: ignore[arg-type]


def _read_file(source: Source, pick: Pick, max_line_bytes: int) -> RawTable:
    assert source.path is not None
    if source.path.stat().st_size == 0:
        raise DataError("empty file", file=source.name, hint="the first line must name the columns")
    kind = (parse_name(source) or ("", ""))[1]
    if kind == "parquet":
        return read_parquet(source, pick)
    content = check_text_file(source, max_line_bytes)
    if layout := find_layout(source.name):
        return read_published(source, content, pick, layout)
    if kind in ("jsonl", "ndjson", "json"):
        return read_jsonl(source, content, pick)
    return read_csv(source, content, pick, quoted=kind not in ("inter", "item"))


def column_type(column: str) -> str:
    """RecBole's type of a column, "" without one: "genres:token_seq" -> "token_seq"."""
    return column.strip()[len(base_name(column)) + 1 :] if ":" in column else ""
