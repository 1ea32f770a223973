"""Write files and folders in one step: after a crash or a kill there is the whole of one, or nothing.

Each is written under a temporary name beside its place, `.NAME.xxxxxxxx.tmp`, synced to disk and renamed. Temporary
files of a killed process are never read, and `remove_leftovers` deletes them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graphllmrec.errors import GraphLLMRecError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how polars and safetensors end the message of such an error
_TEMPORARY = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}(\.old)?\.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; fsynced and renamed to `path` on success, removed on failure.

    Raises StorageError when it cannot be written: a full disk, a folder without permission to write.
    """
    with storage(path):
        _make_folder(path.parent)
        temporary = _temporary_name(path)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the umask takes from this
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            yield temporary
            temporary.chmod(mode)  # safetensors makes files private
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` on success, removed on failure.

    `path` must be absent, or an empty folder. Raises StorageError when it is neither, or cannot be written.
    """
    with storage(path):
        _make_folder(path.parent)
        temporary = _temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            sync(temporary)
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Raise StorageError, naming `path`, for errors of the operating system, also those that polars reports."""
    try:
        yield
    except GraphLLMRecError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif (found := _OS_ERROR.search(str(error))) and type(error).__module__.startswith(("polars", "safetensors")):
            reason = os.strerror(int(found[1]))
        else:
            raise
        full = (isinstance(error, OSError) and error.errno in _FULL) or reason in map(os.strerror, _FULL)
        hint = "free some space and try again" if full else "choose a folder that can be written"
        raise StorageError(f"cannot write {path}: {reason[:1].lower()}{reason[1:]}; {hint}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step, as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def discard(path: Path) -> None:
    """Delete a folder with its contents; a reader finds all of it or nothing."""
    temporary = _temporary_name(path)
    path.rename(temporary)
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


def is_temporary(path: Path) -> bool:
    """Is this the name of a temporary file or folder?"""
    return _TEMPORARY.fullmatch(path.name) is not None


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _make_folder(path: Path) -> None:
    """Create a folder if it does not exist, and sync its name to disk."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
