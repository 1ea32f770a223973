"""Parquet files: their size is known from the footer before anything is unpacked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from graphllmrec.data.content import check_size
from graphllmrec.data.files import Source
from graphllmrec.data.raw_table import Pick, RawTable, check_width
from graphllmrec.errors import DataError

MAGIC = b"PAR1"
BYTES_PER_VALUE = 16  # of a string or number in memory, at least


def read_parquet(source: Source, pick: Pick) -> RawTable:
    """The columns that `pick` selects. Raises DataError for a damaged file and for one that unpacks to too much."""
    assert source.path is not None
    path = source.path.absolute()  # polars would expand a leading "~"
    try:
        rows, unpacked = read_footer(path)
        names = list(pl.read_parquet_schema(path))
        check_width(names, source.name)
        columns = list(pick(names))
        check_size(path, max(unpacked, rows * len(columns) * BYTES_PER_VALUE), source.max_bytes, packed=True)
        frame = pl.read_parquet(path, columns=columns, glob=False)
        check_size(path, int(frame.estimated_size()), source.max_bytes, packed=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OverflowError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"not a readable parquet file: {reason}", file=source.name, hint="write it again") from error
    return RawTable(source.name, frame, lambda row: row + 1, counted="row")


def read_footer(path: Path) -> tuple[int, int]:
    """(number of rows, bytes of all columns unpacked), as the file says. Raises ValueError for a damaged footer.

    https://github.com/apache/parquet-format: FileMetaData in Thrift's compact protocol, its length, and "PAR1".
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
        length = struct.unpack("<I", tail[:4])[0] if len(tail) == 8 else 0
        if tail[4:] != MAGIC or length > size - 8:
            raise ValueError("no parquet footer at the end; was the file cut short?")
        stream.seek(size - 8 - length)
        metadata = _Compact(stream.read(length)).struct()
    groups = metadata.get(4, [])
    unpacked = [group.get(2, 0) for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    rows = metadata.get(3, 0)
    if not isinstance(rows, int) or rows < 0 or not all(isinstance(value, int) and value >= 0 for value in unpacked):
        raise ValueError("the footer gives no number of rows")
    return rows, sum(unpacked)


class _Compact:
    """A reader of Thrift's compact protocol: structs as {field number: value}. Raises ValueError for damaged bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > 32:
            raise ValueError("the footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._zigzag()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        readers: dict[int, Callable[[], Any]] = {
            1: self._byte, 2: self._byte, 3: self._byte, 4: self._zigzag, 5: self._zigzag, 6: self._zigzag,
            7: lambda: self._bytes(8), 8: lambda: self._bytes(self._varint()),
            9: lambda: self._list(depth), 10: lambda: self._list(depth), 12: lambda: self.struct(depth + 1),
        }  # fmt: skip
        if kind not in readers:
            raise ValueError("the footer is damaged")
        return readers[kind]()

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 15
        count = self._varint() if count == 15 else count
        if count > len(self.data):
            raise ValueError("the footer is damaged")
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) < count:
            raise ValueError("the footer is cut short")
        self.place += count
        return part

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("the footer is damaged")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
