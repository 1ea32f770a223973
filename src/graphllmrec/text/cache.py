"""Text vectors on disk, addressed by content: the same model and the same text are never encoded twice.

One SQLite file per model identity (weights, pooling, token limit, prompt, number type), one row per text:

    key = blake2b(text)[16 bytes]  ->  crc32(key + vector), vector as little-endian float32

SQLite, because a commit is atomic when the process is killed, two processes may write at once, and one new item reads
one row. It does not detect a flipped bit, so every row has a checksum that is verified on reading; a row that fails it
is dropped with a warning and encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from graphllmrec.errors import TextError

Floats = NDArray[np.float32]
T = TypeVar("T")

_SCHEMA = """
PRAGMA page_size = 16384;
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, crc INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_KEYS_PER_QUERY = 900  # SQLite before 3.32 allows 999 variables in a statement
_SECONDS_TO_WAIT = 60.0  # for another process to finish its commit


def default_folder() -> Path:
    """GRAPHLLMREC_CACHE if set, else graphllmrec/text in the platform's cache folder."""
    if chosen := os.environ.get("GRAPHLLMREC_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "graphllmrec" / "text"


def text_key(text: str) -> bytes:
    """The 16-byte address of a text within the file of one model."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class VectorCache:
    """The vectors of one model identity. Use as a context manager; one object per thread.

    `identity`: everything besides the text that determines a vector, e.g. {"model": "hub:name@commit", "pooling":
    "mean"}.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.about = json.dumps(identity, sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", str(identity.get("name", "model")).lower()).strip("-")[-40:]
        self.path = folder / f"{slug}-{hashlib.sha256(self.about.encode()).hexdigest()[:16]}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A later call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        """The vectors (dim,) of those keys that are there.

        A row whose checksum is wrong counts as absent; a warning says how many there were.
        Raises TextError when the file cannot be opened.
        """
        return self._guarded(lambda connection: self._read(connection, keys))

    def write(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Write vectors (n, dim) in one commit: after a kill either all or none of them are there."""
        blobs = [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f4")]
        rows = [(key, zlib.crc32(key + blob), blob) for key, blob in zip(keys, blobs, strict=True)]

        def insert(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

        self._guarded(insert)

    def __len__(self) -> int:
        return self._guarded(lambda c: int(c.execute("SELECT count(*) FROM vectors").fetchone()[0]))

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        found: dict[bytes, Floats] = {}
        damaged = 0
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            for key, crc, blob in connection.execute(f"SELECT * FROM vectors WHERE key IN ({marks})", some):
                if isinstance(blob, bytes) and blob and len(blob) % 4 == 0 and zlib.crc32(key + blob) == crc:
                    found[key] = np.frombuffer(blob, dtype="<f4")
                else:
                    damaged += 1
        if damaged:
            warnings.warn(f"{self.path}: {damaged} text vectors are damaged and encoded again", stacklevel=5)
        return found

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT)
            with self._connection as connection:
                connection.executescript(_SCHEMA)
                connection.execute("INSERT OR IGNORE INTO about VALUES ('identity', ?)", (self.about,))
        return self._connection

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`; a file that SQLite cannot read is moved aside, with a warning, and created anew."""
        for attempt in (1, 2):
            try:
                return work(self._open())
            except sqlite3.OperationalError as error:  # locked, full, read-only: the file itself is sound
                raise self._unusable(error) from error
            except sqlite3.DatabaseError as error:
                self.close()
                if attempt == 2:
                    raise self._unusable(error) from error
                self._set_aside(error)
        raise AssertionError("unreachable")

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        warnings.warn(f"{self.path} is damaged ({error}); kept as {aside.name}, texts are encoded again", stacklevel=5)
        self.path.with_name(f"{self.path.name}-logger").unlink(missing_ok=True)  # belongs to the damaged file
        if self.path.exists():  # another process may have been faster
            self.path.replace(aside)

    def _unusable(self, error: Exception) -> TextError:
        return TextError(
            f"cannot use the text vector cache {self.path}: {error}\n"
            "  hint: free disk space, or set GRAPHLLMREC_CACHE to a folder that can be written"
        )
