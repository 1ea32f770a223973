"""The bytes of a text file, checked: decompressed within a limit, UTF-8, lines of bounded length, not cut short."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from graphllmrec.data.encodings import encoding_hint, utf16_or_32
from graphllmrec.data.files import Source
from graphllmrec.data.published import find_layout
from graphllmrec.errors import DataError

MAX_LINE_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
ZSTD_INPUT_BYTES = 4 << 10  # a few bytes can unpack to 128 KiB: small pieces of input bound the memory
# Tables of real interactions are compressed three- to thirtyfold; more than a hundredfold is a mistake or an attack.
MAX_RATIO = 100
SMALL_BYTES = 16 << 20  # whatever the ratio
MAX_COLUMNS = 10_000


def check_size(path: Path, unpacked: int, max_bytes: int | None, packed: bool) -> None:
    """Raise DataError when a file holds more than `max_bytes`, or without it over MAX_RATIO times its packed size."""
    if max_bytes is None and not packed:
        return
    limit = max_bytes if max_bytes is not None else max(SMALL_BYTES, MAX_RATIO * path.stat().st_size)
    if unpacked <= limit:
        return
    size = f"{path.stat().st_size:,} bytes of file hold " if packed else ""
    raise DataError(
        f"{size}more than {limit:,} bytes of data",
        file=path.name,
        hint=f"if this is right, allow it with data.max_bytes or load_data(…, max_bytes={2 * max(limit, unpacked)})",
    )


def read_blocks(path: Path, max_bytes: int | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a file in bounded pieces.

    Raises DataError when compression is damaged or cut short, and as soon as more than `max_bytes` (see `check_size`)
    are unpacked.
    """
    packed, size = path.suffix.lower() in (".gz", ".zst"), 0
    try:
        if not packed:
            check_size(path, path.stat().st_size, max_bytes, packed=False)
        for block in _unpacked(path):
            size += len(block)
            check_size(path, size, max_bytes, packed)
            yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"compressed file is damaged or cut short: {error}", file=path.name, hint="copy or download it again"
        ) from error


def _unpacked(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() == ".zst":
        yield from _zstd_blocks(path)
        return
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


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


def check_text_file(source: Source, max_line_bytes: int = MAX_LINE_BYTES) -> Path | io.BytesIO:
    """The path of a text file, or its decompressed content, after checking: UTF-8, lines of bounded length.

    Stops at the first problem, so that a file of one endless line is read up to `max_line_bytes` only.
    Raises DataError: empty, not UTF-8 (with line and byte offset), a line that is too long, damaged compression, more
    data than allowed.
    """
    assert source.path is not None
    if find_layout(source.name):
        return _published_text(source, max_line_bytes)
    packed = source.path.suffix.lower() in (".gz", ".zst")
    content = io.BytesIO()
    check = _TextCheck(source, max_line_bytes)
    for block in read_blocks(source.path, source.max_bytes):
        check.feed(block)
        if packed:
            content.write(block)
    check.feed(b"", final=True)
    content.seek(0)
    return content if packed else source.path


def _published_text(source: Source, max_line_bytes: int) -> io.BytesIO:
    """The content of a file of published.LAYOUTS as UTF-8: MovieLens wrote its older files in latin-1."""
    assert source.path is not None
    content = b"".join(read_blocks(source.path, source.max_bytes))
    try:
        content.decode()
    except UnicodeDecodeError:
        content = content.decode("latin-1").encode()
    check = _TextCheck(source, max_line_bytes)
    check.feed(content)
    check.feed(b"", final=True)
    return io.BytesIO(content)


class _TextCheck:
    """The checks of a text file, block by block."""

    def __init__(self, source: Source, max_line_bytes: int) -> None:
        self.source, self.max_line_bytes = source, max_line_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.size, self.newlines, self.open_line = 0, 0, 0

    def feed(self, block: bytes, final: bool = False) -> None:
        if final and not self.size:
            raise DataError("empty file", file=self.source.name, hint="the first line must name the columns")
        if not self.size and (wide := utf16_or_32(block)):
            raise self._not_utf8(0, block[:2], 1, encoding_hint(self.source.name, wide))
        pending: bytes = self.decoder.getstate()[0]
        try:
            self.decoder.decode(block, final)
        except UnicodeDecodeError as error:
            whole = pending + block
            line = self.newlines + whole.count(b"\n", 0, error.start) + 1
            offset = self.size - len(pending) + error.start
            value = whole[error.start : error.start + 8]
            raise self._not_utf8(offset, value, line, self._advice(offset)) from None
        self._measure(block)

    def _measure(self, block: bytes) -> None:
        first = block.find(b"\n")
        if self.open_line + (len(block) if first < 0 else first) > self.max_line_bytes:
            raise DataError(
                f"a line longer than {self.max_line_bytes:,} bytes",
                file=self.source.name,
                line=self.newlines + 1,
                hint="is this a text table with one row per line? Parquet has no such limit",
            )
        self.open_line = self.open_line + len(block) if first < 0 else len(block) - block.rfind(b"\n") - 1
        self.newlines += block.count(b"\n")
        self.size += len(block)

    def _advice(self, offset: int) -> str:
        """What the file looks like from the line of its first byte that is not UTF-8 on."""
        assert self.source.path is not None
        sample, place = b"", 0
        for block in read_blocks(self.source.path, self.source.max_bytes):
            place += len(block)
            if place > offset:
                sample += block
            if len(sample) >= BLOCK_BYTES:
                break
        return encoding_hint(self.source.name, sample=sample)

    def _not_utf8(self, offset: int, value: bytes, line: int, hint: str) -> DataError:
        return DataError(f"not UTF-8 at byte {offset:,}", file=self.source.name, line=line, value=value, hint=hint)
