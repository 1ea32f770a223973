"""Tables in memory: DataFrames of polars and pandas, LazyFrames, and Arrow tables. pandas itself is never imported."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl

from graphllmrec.data.columns import MEANINGS, find_column
from graphllmrec.data.files import PARTS, Source, find_tables
from graphllmrec.data.values import column_of
from graphllmrec.errors import ArgumentError, DataError

FRAMES = "a DataFrame of polars or pandas, a polars LazyFrame or an Arrow table"
WANTED = f'a data folder, one file, {FRAMES}, or several as {{"train": …, "test": …}}'

Table = Any  # FRAMES, or the path of a file


@runtime_checkable
class _Arrow(Protocol):
    """A table that exports its rows as a stream of Arrow record batches."""

    @property
    def schema(self) -> Any: ...  # a column has none

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


def find_sources(data: Table, items: Table | None, max_bytes: int | None) -> dict[str, Source]:
    """Table -> source: "interactions" or "train", "valid", "test"; "items", "tags".

    Raises ArgumentError for what is no table, DataError for a folder that is not understood or holds items already.
    """
    if isinstance(data, str | Path):
        paths = find_tables(Path(data))
        sources = {table: Source.of_file(path, max_bytes) for table, path in paths.items()}
    elif isinstance(data, Mapping):
        sources = _parts(data, max_bytes)
    else:
        sources = {"interactions": _source(data, "interactions", max_bytes)}
    if items is None:
        return sources
    if "items" in sources:
        raise DataError("the folder holds items already", file=str(data), hint="leave the argument items out")
    return sources | {"items": _source(items, "items", max_bytes)}


def _parts(data: Mapping[Any, Any], max_bytes: int | None) -> dict[str, Source]:
    """A ready-made split in memory."""
    if not {"train", "test"} <= set(data) <= set(PARTS):
        listed = ", ".join(map(repr, list(data)[:5])) or "nothing"
        raise ArgumentError(
            f'a dict is a ready-made split with the keys "train", "test" and maybe "valid", not {listed:.120}; '
            "columns become a table with polars.DataFrame(columns)"
        )
    return {part: _source(data[part], part, max_bytes) for part in PARTS if part in data}


def _source(table: Table, name: str, max_bytes: int | None) -> Source:
    """A file or a frame as a Source. Raises ArgumentError for anything else."""
    if isinstance(table, str | Path):
        path = Path(table)
        if not path.is_file():
            raise DataError("no such file", file=str(path), hint=f"{name} is a file here, or {FRAMES}")
        return Source.of_file(path, max_bytes)
    kind = type(table)
    if isinstance(table, pl.LazyFrame):
        try:
            table = table.collect()
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"the LazyFrame cannot be collected: {reason}", file=name) from error
    notes: list[str] = []
    if any(base.__module__.partition(".")[0] == "pandas" and base.__name__ == "DataFrame" for base in kind.__mro__):
        frame = _from_pandas(table, name, notes)
    elif isinstance(table, pl.DataFrame):
        frame = table
    elif isinstance(table, _Arrow) and not isinstance(table, type):
        frame = pl.DataFrame(table)
    else:
        wanted = WANTED if name == "interactions" else f"a file or {FRAMES}"
        raise ArgumentError(f"{name}: wanted {wanted}, not {kind.__name__}")
    return Source(name, frame=_without_objects(frame, name, notes), notes=tuple(notes))


def _without_objects(frame: pl.DataFrame, name: str, notes: list[str]) -> pl.DataFrame:
    """The frame with Python objects turned into values that polars knows."""
    objects = [column for column, kind in frame.schema.items() if kind == pl.Object]
    return frame.with_columns(_column(column, frame[column].to_list(), name, notes) for column in objects)


def _column(column: str, values: list[Any], name: str, notes: list[str]) -> pl.Series:
    series, repaired = column_of(column, values)
    if repaired:
        notes.append(f"{name}: {repaired:,} texts of {column} have half a surrogate pair, replaced by \ufffd")
    return series


def _from_pandas(frame: Any, name: str, notes: list[str]) -> pl.DataFrame:
    """The columns of a pandas DataFrame, and those levels of its index that are named like a column read here."""
    columns: dict[str, pl.Series] = {}
    series: list[tuple[Hashable, Any]] = [(label, frame.iloc[:, place]) for place, label in enumerate(frame.columns)]
    named = [str(label) for label in frame.columns]
    for level, label in enumerate(frame.index.names):
        if label is None:
            continue
        meaning = next((meaning for meaning in MEANINGS if find_column([str(label)], meaning)), None)
        if meaning and find_column(named, meaning) is None:
            series.append((label, frame.index.get_level_values(level).to_series()))
            notes.append(f"{name}: the index {label!r} is read as a column")
        else:
            notes.append(f"{name}: the index {label!r} is not read")
    for label, values in series:
        if str(label) in columns:
            raise DataError(f"two columns are named {str(label)!r}", file=name, hint="rename one")
        columns[str(label)] = _from_series(str(label), values, name, notes)
    return pl.DataFrame(list(columns.values()))


def _from_series(column: str, values: Any, name: str, notes: list[str]) -> pl.Series:
    """One column of pandas: numbers and times through NumPy, everything else value by value."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
        return pl.Series(column, values.to_numpy(dtype=np.float64 if values.dtype == np.float16 else None))
    kind = str(values.dtype)
    if kind.startswith("datetime64"):
        if "," in kind:  # datetime64[us, Europe/Berlin]
            values = values.dt.tz_convert("UTC").dt.tz_localize(None)
        return pl.Series(column, values.to_numpy().astype("datetime64[us]"))
    if kind.startswith("timedelta64"):
        return pl.Series(column, values.to_numpy().astype("timedelta64[us]"))
    return _column(column, values.astype(object).tolist(), name, notes)
