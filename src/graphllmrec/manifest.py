"""The files of a run folder: a manifest with the SHA-256 of each of them, and the exchange of an old run for a new one.

A fit in a folder that exists already works in `RUN/next/`, beside the run that RUN holds. `next/manifest.json` is the
last file of the new run: as soon as it says `complete`, the run of RUN is the one in `next/`, for every reader. Moving
its files up (`exchange`) only tidies; a reader finds each file in `next/` or, when it has been moved, in RUN.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphllmrec.errors import CheckpointError
from graphllmrec.io import remove_leftovers, sync, write_text
from graphllmrec.lock import locked

FORMAT = 5
MANIFEST, NEXT, CHECKPOINTS = "manifest.json", "next", "checkpoint"
BEGUN = (  # before training
    "recipe.toml", "users.parquet", "items.parquet", "encoder.safetensors", "interactions.parquet", "data.json"
)  # fmt: skip
FITTED = ("log.jsonl", "model.safetensors", "model.json")  # after it
TIMINGS = "timings.jsonl"  # grows later: not listed
_EVALUATION = re.compile(r"(metrics-(test|valid)(-\w+)?\.json|(per-user|targets)-(test|valid)(-\w+)?\.parquet)")

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @staticmethod
    def of(path: Path) -> FileEntry:
        """Of a file as it is on disk."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(size=path.stat().st_size, sha256=digest)

    def fits(self, content: bytes) -> bool:
        """Is this the entry of a file with this content?"""
        return len(content) == self.size and hashlib.sha256(content).hexdigest() == self.sha256


Files = dict[Annotated[str, Field(pattern=r"^[\w-]+\.\w+$")], FileEntry]


class Manifest(BaseModel):
    """The files of a run and of its evaluations; `sha256` is that of the manifest itself without this key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: int
    complete: bool  # False: an interrupted run, with the files of BEGUN only
    files: Files
    evaluations: dict[str, Files] = {}  # by part of the split: "test", "valid-text"
    sha256: str = ""

    @property
    def identity(self) -> str:
        """SHA-256 over the files of the run, its evaluations left out: the same run has the same."""
        return _digest({name: entry.sha256 for name, entry in self.files.items()})

    def write(self, folder: Path) -> None:
        """Write it into `folder`, in one step."""
        values = self.model_dump(exclude={"sha256"})
        write_text(folder / MANIFEST, json.dumps(values | {"sha256": _digest(values)}, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        """That of `folder`; None where there is none. Raises CheckpointError for a damaged one, or another format."""
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = parse_json(path, content, Manifest)
        if found.sha256 != _digest(found.model_dump(exclude={"sha256"})):
            raise damaged(path, "its content is not what its own SHA-256 says")
        if found.format != FORMAT:
            raise CheckpointError(f"{path} has format {found.format}, this version reads {FORMAT}; fit it again")
        return found


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error about a file of a run folder that is not what was written."""
    return CheckpointError(f"{path} cannot be read: {reason}; restore it from a copy, or fit again with --overwrite")


def parse_json(path: Path, content: bytes, schema: type[S]) -> S:
    """The object that a JSON file holds. Raises CheckpointError, naming the file and the first value that is wrong."""
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise damaged(path, f"{where}: {reason}" if where else reason) from error


@dataclass(frozen=True)
class RunFiles:
    """The files of the run that a folder holds, checked as they are read."""

    folder: Path
    manifest: Manifest | None  # None: a run of version 0.1 or 0.2, whose files have no checksums
    moving: bool = False  # the run is complete in `next/`, and not all of its files have been moved up

    @staticmethod
    def of(folder: Path) -> RunFiles:
        """Of the run that `folder` holds now. Raises CheckpointError for a damaged manifest."""
        following = Manifest.read(folder / NEXT)
        if following is not None and following.complete:
            return RunFiles(folder, following, moving=True)
        return RunFiles(folder, Manifest.read(folder))

    def path(self, name: str) -> Path:
        """Where a file of the run is, or would be."""
        following = self.folder / NEXT / name
        return following if self.moving and following.is_file() else self.folder / name

    def read(self, name: str, entries: Mapping[str, FileEntry] | None = None) -> bytes:
        """The content of a file, held against its entry (default: among the files of the run).

        Raises CheckpointError when it is missing, damaged, or (in a run with a manifest) not listed.
        """
        path = self.path(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            try:  # moved up in this moment
                content = (self.folder / name).read_bytes()
            except FileNotFoundError:
                raise CheckpointError(f"{self.folder} is not a complete run folder; missing: {name}") from None
        except OSError as error:
            raise damaged(path, f"it cannot be read ({error.strerror})") from error
        if self.manifest is not None:
            entry = (self.manifest.files if entries is None else entries).get(name)
            if entry is None or not entry.fits(content):
                raise damaged(path, f"it is damaged, or of another run (its checksum is not the one in {MANIFEST})")
        return content

    def check(self, name: str) -> Path:
        """The path of a file, after holding it against its entry block by block: for what is large."""
        path = self.path(name)
        if not path.is_file():
            raise CheckpointError(f"{self.folder} is not a complete run folder; missing: {name}")
        if self.manifest is not None:
            try:
                found = FileEntry.of(path)
            except OSError as error:
                raise damaged(path, f"it cannot be read ({error.strerror})") from error
            if self.manifest.files.get(name) != found:
                raise CheckpointError(
                    f"{path} is damaged, or of another run: its checksum is not the one in {MANIFEST}"
                )
        return path

    def parquet(self, name: str, entries: Mapping[str, FileEntry] | None = None) -> pl.DataFrame:
        """A table of the run."""
        content = self.read(name, entries)
        try:
            return pl.read_parquet(io.BytesIO(content))
        except (Exception, pl.exceptions.PanicException) as error:  # whatever the bytes are, also a panic of the reader
            raise damaged(self.path(name), f"it is no parquet file ({str(error).splitlines()[0]})") from error

    def json(self, name: str, schema: type[S], entries: Mapping[str, FileEntry] | None = None) -> S:
        """A JSON file of the run."""
        return parse_json(self.path(name), self.read(name, entries), schema)


def read_run(folder: Path, work: Callable[[RunFiles], T]) -> T:
    """`work` on the files of the run in `folder`, once more where the run was exchanged for another one meanwhile."""
    for _ in range(3):
        files = RunFiles.of(folder)
        try:
            return work(files)
        except CheckpointError:
            if RunFiles.of(folder) == files:
                raise
    return work(RunFiles.of(folder))


def list_files(folder: Path, names: Iterable[str]) -> Files:
    """Entries of those of the files `names` that are there."""
    return {name: FileEntry.of(folder / name) for name in names if (folder / name).is_file()}


@contextmanager
def evaluation_files(folder: Path, name: str, run: str | None) -> Iterator[None]:
    """Around the writing of the three files of the evaluation `name`: they become part of the manifest of `folder`.

    `run`: identity of the run that was evaluated, where it is known. Raises CheckpointError when `folder` holds another
    one. A folder without a manifest (no run, or one from before manifests) gets none.
    """
    if not (folder / MANIFEST).is_file() and not (folder / NEXT / MANIFEST).is_file():
        yield
        return
    with locked(folder):
        exchange(folder)
        manifest = Manifest.read(folder)
        if manifest is None or (run is not None and run != manifest.identity):
            raise CheckpointError(f"{folder} holds another run than the one that was evaluated; evaluate it again")
        others = {key: files for key, files in manifest.evaluations.items() if key != name}
        if others != manifest.evaluations:
            manifest.model_copy(update={"evaluations": others}).write(folder)
        yield
        names = (f"metrics-{name}.json", f"per-user-{name}.parquet", f"targets-{name}.parquet")
        listed = others | {name: list_files(folder, names)}
        manifest.model_copy(update={"evaluations": listed}).write(folder)


def exchange(folder: Path) -> None:
    """Move the complete run in `next/` up, in place of the old one. The caller holds the lock of `folder`.

    May be killed at any moment: the next call goes on, and readers find the new run at every moment.
    """
    following = folder / NEXT
    files = RunFiles.of(folder)
    if files.moving:
        assert files.manifest is not None
        moved = [*files.manifest.files, TIMINGS]  # the timings last: that they are gone says that all others are too
        left = [name for name in moved if (following / name).is_file()]
        remove_run(folder, but=moved if TIMINGS in left or not left else files.manifest.files)
        for name in left:
            (following / name).replace(folder / name)
        sync(folder)
        (following / MANIFEST).replace(folder / MANIFEST)
        sync(folder)
    if following.is_dir() and not (following / MANIFEST).exists():
        remove_run(following)


def remove_run(folder: Path, but: Iterable[str] = ()) -> None:
    """Remove the files that a run writes (without `but`: its manifest first), and the folder where nothing is left."""
    kept = {*but}
    if not kept:
        (folder / MANIFEST).unlink(missing_ok=True)
    for path in list(folder.iterdir()):
        if path.name in kept or path.is_dir():
            continue
        if path.name in (*BEGUN, *FITTED, TIMINGS) or _EVALUATION.fullmatch(path.name):
            path.unlink()
    remove_leftovers(folder)
    remove_checkpoints(folder)
    if not kept and not any(folder.iterdir()):
        folder.rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run; other files that lie beside them stay."""
    checkpoints = folder / CHECKPOINTS
    if checkpoints.is_symlink() or not checkpoints.is_dir():
        return
    remove_leftovers(checkpoints)
    for path in checkpoints.glob("*.safetensors"):
        path.unlink()
    if not any(checkpoints.iterdir()):
        shutil.rmtree(checkpoints)
