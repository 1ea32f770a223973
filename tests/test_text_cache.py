"""The vector cache: durable, exact, shared by processes, and never trusted when damaged."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from graphllmrec.errors import TextError
from graphllmrec.text.cache import VectorCache, default_folder, text_key

IDENTITY = {"name": "some/Model", "model": "hub:some/Model@abc", "pooling": "mean"}


def some_vectors(count: int, dim: int = 6) -> tuple[list[bytes], np.ndarray]:
    keys = [text_key(f"text {row}") for row in range(count)]
    return keys, np.arange(1, count * dim + 1, dtype=np.float32).reshape(count, dim)


def test_what_is_written_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    keys, vectors = some_vectors(2_000)  # more than one query
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.write(keys, vectors)
    with VectorCache(tmp_path, IDENTITY) as cache:
        found = cache.read([*keys, text_key("never seen")])
        assert len(cache) == 2_000
    assert list(found) != []
    np.testing.assert_array_equal(np.stack([found[key] for key in keys]), vectors)
    assert text_key("never seen") not in found


@pytest.mark.parametrize("change", [{"pooling": "cls"}, {"model": "hub:some/Model@def"}, {"prompt": "query: "}])
def test_another_identity_sees_nothing(tmp_path: Path, change: dict[str, str]) -> None:
    keys, vectors = some_vectors(3)
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.write(keys, vectors)
    with VectorCache(tmp_path, IDENTITY | change) as other:
        assert other.read(keys) == {}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    keys, vectors = some_vectors(5)
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.write(keys, vectors)
        content = bytearray(cache.path.read_bytes())
        at = content.find(vectors[2].tobytes())
        content[at + 5] ^= 1
        cache.path.write_bytes(content)
    with VectorCache(tmp_path, IDENTITY) as cache:
        with pytest.warns(UserWarning, match=r"1 text vectors are damaged"):
            found = cache.read(keys)
        assert sorted(found) == sorted(keys[:2] + keys[3:])
        cache.write([keys[2]], vectors[2:3])
        np.testing.assert_array_equal(cache.read(keys)[keys[2]], vectors[2])


def test_a_vector_under_another_key_is_noticed(tmp_path: Path) -> None:
    keys, vectors = some_vectors(2)
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.write(keys, vectors)
        path = cache.path
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE key = ?)", (keys[0],))
    raw.close()
    with VectorCache(tmp_path, IDENTITY) as cache, pytest.warns(UserWarning, match="damaged"):
        assert list(cache.read(keys)) == [keys[0]]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    keys, vectors = some_vectors(2_000)
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.write(keys, vectors)
        whole = cache.path.read_bytes()
        cache.path.write_bytes({"garbage": b"x" * 5_000, "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with VectorCache(tmp_path, IDENTITY) as cache:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = cache.read(keys)
        assert damage == "empty" or any("is damaged" in str(warning.message) for warning in caught)
        assert found == {}
        cache.write(keys, vectors)
        assert len(cache.read(keys)) == 2_000
    assert damage == "empty" or list(tmp_path.glob("*.damaged-*"))


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(TextError, match=r"cannot use the text vector cache(.|\n)*GRAPHLLMREC_CACHE"):
        VectorCache(blocked / "cache", IDENTITY)
    with VectorCache(tmp_path, IDENTITY) as cache:
        cache.path.mkdir()
        with pytest.raises(TextError, match="cannot use the text vector cache"):
            cache.read([text_key("a")])


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHLLMREC_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("GRAPHLLMREC_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "graphllmrec" / "text"


WRITER = """
import sys
import numpy as np
from pathlib import Path
from graphllmrec.text.cache import VectorCache, text_key
start = int(sys.argv[2])
with VectorCache(Path(sys.argv[1]), {"name": "m"}) as cache:
    for row in range(start, start + 150):
        cache.write([text_key(str(row))], np.full((1, 4), row + 1, dtype=np.float32))
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), start]) for start in ("0", "100")]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    with VectorCache(tmp_path, {"name": "m"}) as cache:
        found = cache.read([text_key(str(row)) for row in range(250)])
    assert len(found) == 250
    assert all(found[text_key(str(row))].tolist() == [row + 1] * 4 for row in range(250))
