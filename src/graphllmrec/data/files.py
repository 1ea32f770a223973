"""Find the tables of a folder, and check their bytes: decompressed, UTF-8, lines of bounded length, not cut short."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from graphllmrec.errors import DataError

FORMATS = ("parquet", "csv", "tsv", "jsonl", "ndjson", "inter", "item")
TABLES = {  # file name without suffixes -> table; with the names of MovieLens
    "interactions": "interactions",
    "ratings": "interactions",
    "items": "items",
    "movies": "items",
    "tags": "tags",
    "train": "train",
    "valid": "valid",
    "test": "test",
}
EXPECTED = (
    "expected interactions.{parquet,csv,tsv,jsonl}[.gz|.zst] with user_id, item_id and maybe timestamp or position, "
    "rating; or train.* and test.* (and maybe valid.*); and maybe items.* with item_id, title. "
    "MovieLens (ratings.csv, movies.csv) and RecBole (NAME.inter, NAME.item) folders are read as published"
)
MAX_LINE_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
ZSTD_INPUT_BYTES = 4 << 10  # a few bytes can unpack to 128 KiB: small pieces of input bound the memory


def parse_name(path: Path) -> tuple[str, str] | None:
    """(stem, format) of a data file, e.g. ("items", "csv") for items.csv.gz; None for any other file."""
    parts = path.name.lower().split(".")
    if parts[-1] in ("gz", "zst"):
        parts.pop()
        if parts[-1] == "parquet":  # has its own compression; polars reads it from its path
            return None
    return (".".join(parts[:-1]), parts[-1]) if len(parts) > 1 and parts[-1] in FORMATS else None


def find_tables(folder: Path) -> dict[str, Path]:
    """Table -> file: "interactions" or "train", "valid", "test"; "items", "tags". Raises DataError when ambiguous."""
    if not folder.exists():
        raise DataError("no such file or folder", file=str(folder), hint=EXPECTED)
    if folder.is_file():
        if parse_name(folder) is None:
            raise DataError("not a kind of file that can be read", file=str(folder), hint=EXPECTED)
        return {"interactions": folder}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        table = _table_of(path)
        if table in found:
            raise DataError(
                f"two files hold the {table}: {found[table].name} and {path.name}",
                file=str(folder),
                hint="keep one of them in the folder",
            )
        if table:
            found[table] = path
    _check_complete(folder, found)
    return found


def _table_of(path: Path) -> str | None:
    name = parse_name(path)
    if name is None or not path.is_file():
        return None
    stem, kind = name
    return {"inter": "interactions", "item": "items"}.get(kind) or TABLES.get(stem)


def _check_complete(folder: Path, found: dict[str, Path]) -> None:
    if "interactions" in found and ("train" in found or "test" in found):
        other = found.get("train") or found["test"]
        raise DataError(
            f"both {found['interactions'].name} and {other.name}: found an unsplit table and a ready-made split",
            file=str(folder),
            hint="keep either interactions.* or train.*/valid.*/test.*",
        )
    if "interactions" in found:
        return
    missing = [part for part in ("train", "test") if part not in found]
    if len(missing) == 1:
        raise DataError(f"a ready-made split without {missing[0]}.*", file=str(folder), hint=EXPECTED)
    if missing:
        names = sorted(path.name for path in folder.iterdir())
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise DataError("no interactions here", file=str(folder), hint=f"found {listed or 'nothing'}; {EXPECTED}")


def read_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file in bounded pieces. Raises DataError when compression is damaged or cut short."""
    try:
        if path.suffix == ".zst":
            yield from _zstd_blocks(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"compressed file is damaged or cut short: {error}", file=path.name, hint="copy or download it again"
        ) from error


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    unpack = zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as stream:
        while block := stream.read(ZSTD_INPUT_BYTES):
            while block:
                yield unpack.decompress(block)
                block = unpack.unused_data if unpack.eof else b""
                if block:  # frames may follow one another
                    unpack = zstandard.ZstdDecompressor().decompressobj()
    if not unpack.eof:
        raise EOFError("the last frame is incomplete")


def check_text_file(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Path | io.BytesIO:
    """The path of a text file, or its decompressed content, after checking: UTF-8, lines of bounded length.

    Stops at the first problem, so that a file of one endless line is read up to `max_line_bytes` only.
    Raises DataError: empty, not UTF-8 (with line and byte offset), a line that is too long, damaged compression.
    """
    packed = path.suffix in (".gz", ".zst")
    content = io.BytesIO()
    check = _TextCheck(path.name, max_line_bytes)
    for block in read_blocks(path):
        check.feed(block)
        if packed:
            content.write(block)
    check.feed(b"", final=True)
    content.seek(0)
    return content if packed else path


class _TextCheck:
    """The checks of a text file, block by block."""

    def __init__(self, file: str, max_line_bytes: int) -> None:
        self.file, self.max_line_bytes = file, max_line_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.size, self.newlines, self.open_line = 0, 0, 0

    def feed(self, block: bytes, final: bool = False) -> None:
        if final and not self.size:
            raise DataError("empty file", file=self.file, hint="the first line must name the columns")
        if not self.size and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise self._not_utf8(0, "UTF-16", block[:2])
        pending: bytes = self.decoder.getstate()[0]
        try:
            self.decoder.decode(block, final)
        except UnicodeDecodeError as error:
            whole = pending + block
            line = self.newlines + whole.count(b"\n", 0, error.start) + 1
            offset = self.size - len(pending) + error.start
            raise self._not_utf8(offset, "cp1252", whole[error.start : error.start + 8], line) from None
        self._measure(block)

    def _measure(self, block: bytes) -> None:
        first = block.find(b"\n")
        if self.open_line + (len(block) if first < 0 else first) > self.max_line_bytes:
            raise DataError(
                f"a line longer than {self.max_line_bytes:,} bytes",
                file=self.file,
                line=self.newlines + 1,
                hint="is this a text table with one row per line? Parquet has no such limit",
            )
        self.open_line = self.open_line + len(block) if first < 0 else len(block) - block.rfind(b"\n") - 1
        self.newlines += block.count(b"\n")
        self.size += len(block)

    def _not_utf8(self, offset: int, encoding: str, value: bytes, line: int = 1) -> DataError:
        return DataError(
            f"not UTF-8 at byte {offset:,}",
            file=self.file,
            line=line,
            value=value,
            hint=f"it looks like {encoding}; convert it: iconv -f {encoding} -t UTF-8 {self.file} > new-{self.file}",
        )
