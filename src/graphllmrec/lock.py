"""One writer per folder: a lock that the operating system releases when its process ends, however it ends.

`FOLDER/.lock` is locked with flock, and names its holder: host, process, time. Where there is no flock (Windows, some
network file systems) the file itself is the lock; it is taken over when its process has ended on this host.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from graphllmrec.errors import CheckpointError
from graphllmrec.io import storage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
State = Literal["held", "busy", "gone", "unsupported"]


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and since when (unix seconds)."""

    host: str
    pid: int
    since: float

    @staticmethod
    def this_process() -> Holder:
        """This one, from now on."""
        return Holder(socket.gethostname(), os.getpid(), round(time.time(), 3))

    @staticmethod
    def read(path: Path) -> Holder | None:
        """The holder that a lock file names; None where it names none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            return Holder(str(found["host"]), int(found["pid"]), float(found["since"]))
        return None

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {began})"

    def has_ended(self) -> bool:
        """Is it certain that the process has ended? Never for one of another host."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # alive, of another user
            return False
        return False


class FolderLock:
    """The lock of a folder while it is held; whoever renames the folder sets `folder`."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self._descriptor = folder, descriptor

    def release(self) -> None:
        """Remove the lock file, then let go: who waits for it sees that it is gone."""
        with suppress(OSError):
            (self.folder / LOCK).unlink()
        os.close(self._descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Hold the lock of an existing folder; a lock that a killed process left is taken over, with a warning.

    Raises CheckpointError, naming the holder, while another process (or thread) holds it, StorageError when the lock
    cannot be written.
    """
    with storage(folder / LOCK):
        lock = _acquire(folder)
    try:
        yield lock
    finally:
        lock.release()


def require_unlocked(folder: Path) -> None:
    """Raise CheckpointError while a process, or another thread of this one, holds the lock of `folder`."""
    if (folder / LOCK).exists():
        with locked(folder):
            pass


def _acquire(folder: Path) -> FolderLock:
    path = folder / LOCK
    while True:
        descriptor, created = _open(path)
        before = Holder.read(path)
        state: State = _flock(descriptor)
        if state == "unsupported":
            state = "held" if created else "busy"
            if before is not None and before.has_ended():
                path.unlink(missing_ok=True)
                state = "gone"
        elif state == "held" and not _is(path, descriptor):  # its last holder has removed it since it was opened
            state = "gone"
        if state == "held":
            if before is not None:
                warnings.warn(f"{before} has ended without releasing {folder}; its lock is taken over", stacklevel=4)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(asdict(Holder.this_process())).encode())
            return FolderLock(folder, descriptor)
        os.close(descriptor)
        if state == "busy":
            raise CheckpointError(_busy(folder, Holder.read(path)))


def _open(path: Path) -> tuple[int, bool]:
    """An open lock file, and whether it is new."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR), False


def _flock(descriptor: int) -> State:
    if fcntl is None:
        return "unsupported"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "busy" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else "unsupported"
    return "held"


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _busy(folder: Path, holder: Holder | None) -> str:
    who = "another process" if holder is None else str(holder)
    away = holder is not None and holder.host != socket.gethostname()
    hint = f"wait for it, or delete {folder / LOCK} if that process has ended" if away else "wait for it, or stop it"
    return f"{who} is writing to {folder}; {hint}"
