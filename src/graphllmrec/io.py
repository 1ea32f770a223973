"""Write files and folders in one step: after a crash or a kill there is the whole of one, or nothing.

Each is written under a temporary name beside its place, `.NAME.xxxxxxxx.tmp`, synced to disk and renamed. Temporary
files of a killed process are never read, and `remove_leftovers` deletes them.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}(\.old)?\.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; fsynced and renamed to `path` on success, removed on failure."""
    _make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files private
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` on success; only then is an old folder at `path` deleted."""
    temporary = _temporary_folder(path)
    replaced = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old.tmp")
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders private
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step, as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def discard(path: Path) -> None:
    """Delete a folder with its contents; a reader finds all of it or nothing."""
    temporary = _temporary_folder(path)
    path.rename(temporary / path.name)
    shutil.rmtree(temporary)


def remove_leftovers(folder: Path, of: str | None = None, *, older_than: float = 0.0) -> None:
    """Delete temporary files of killed processes in `folder`: those of the file or folder named `of`, or all.

    No other process may write there, unless `older_than` (seconds) excludes recent files.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (of is not None and found["of"] != of):
            continue
        with suppress(FileNotFoundError):  # its process is alive and has just renamed it
            if older_than and time.time() - path.stat().st_mtime < older_than:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_folder(path: Path) -> Path:
    _make_folder(path.parent)
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))


def _make_folder(path: Path) -> None:
    """Create a folder if it does not exist, and sync its name to disk."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
