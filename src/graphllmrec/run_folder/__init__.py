"""The run folder: all that a fitted recommender needs, without references to other files.

    recipe.toml           the whole recipe, defaults written out
    data.json             name of the data, the roles of its columns, how it was split, its fingerprint
    users.parquet         user ids, row by row
    items.parquet         the catalogue, row by row
    encoder.safetensors   the fitted text encoder, where it is not a language model (text.encoder = "ngrams")
    interactions.parquet  user and item rows, part (train, valid, test), order, rating, review where there is one
    log.jsonl             epochs and tuned values: the same bytes whether or not the fit was interrupted
    timings.jsonl         start and seconds of each piece of work, number of cached texts; each attempt adds lines
    checkpoint/           during training only: --resume continues from it
    findings.safetensors  what the fit found on the validation part, and trained weights: for `refit`
    model.safetensors     the model's tensors
    model.json            format, model, settings
    metrics-test.json     added by `evaluate`, with per-user values beside it
    manifest.json         size and SHA-256 of every file but timings.jsonl; written last, and then again by `evaluate`
    next/                 during a fit in a folder that exists: the new run, which takes the place of the old one
    .lock                 while a process writes here

A folder whose manifest is not complete is an interrupted run: it can be resumed or overwritten, but not loaded.
Every file but the two logs is written under a temporary name and renamed (io.py), so a kill leaves no partial file.
Other files in the folder are neither read nor removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset
from graphllmrec.errors import CheckpointError, GraphLLMRecError, Interrupted, StorageError
from graphllmrec.io import atomic_folder, is_temporary, remove_leftovers
from graphllmrec.lock import LOCK, locked, require_unlocked
from graphllmrec.manifest import (
    BEGUN,
    CHECKPOINTS,
    FITTED,
    FORMAT,
    MANIFEST,
    NEXT,
    Manifest,
    RunFiles,
    damaged,
    exchange,
    list_files,
    read_run,
    remove_checkpoints,
    remove_run,
)
from graphllmrec.protocol import Findings, Model
from graphllmrec.recipe import Recipe
from graphllmrec.run_folder.findings import read_earlier, read_findings, write_earlier, write_findings
from graphllmrec.run_folder.model import read_model, write_model
from graphllmrec.run_folder.schema import DataFile, ModelFile
from graphllmrec.run_folder.tables import Tables, fingerprint, read_tables, write_tables
from graphllmrec.terminal import command

__all__ = [
    "FORMAT", "LoadedRun", "RunFiles", "State", "Tables", "begin", "continued", "fingerprint", "finish", "forget_model",
    "load", "load_about", "load_log", "load_tables", "read_earlier", "read_findings", "require_free", "save_run",
    "state_of", "tidy", "unfinished", "write_earlier",
]  # fmt: skip
State = Literal["absent", "interrupted", "finished", "damaged", "foreign"]


def state_of(path: Path) -> State:
    """The state of the run that the folder `path` holds; "foreign": not empty, and not a run.

    A finished run stays finished while a fit prepares another one for its place (`unfinished`).
    """
    if not path.is_dir():
        return "foreign" if path.exists() or path.is_symlink() else "absent"
    try:
        files = RunFiles.of(path)
    except CheckpointError:
        return "damaged"
    if files.manifest is not None and files.manifest.complete:
        return "finished"
    if files.manifest is None and (path / "model.json").is_file():  # from before manifests, or without its own
        return "finished"
    if (path / "recipe.toml").is_file() and (path / "data.json").is_file():
        return "interrupted"
    if (path / NEXT / MANIFEST).is_file():
        return "interrupted"
    return "foreign" if any(entry.name != LOCK and not is_temporary(entry) for entry in path.iterdir()) else "absent"


def unfinished(path: Path) -> Path | None:
    """The folder in which `fit --resume` goes on: `path`, or `next` in it; None where no fit was interrupted."""
    if not path.is_dir():
        return None
    following = Manifest.read(path / NEXT)
    if following is not None and not following.complete:
        return path / NEXT
    return path if state_of(path) == "interrupted" else None


def require_free(path: Path, overwrite: bool) -> None:
    """Raise CheckpointError when `path` holds a run (unless `overwrite`), or anything that is not a run (always).

    And while another process writes there.
    """
    if path.is_dir():
        require_unlocked(path)
    _require_free(path, overwrite)


def _require_free(path: Path, overwrite: bool) -> None:
    found = state_of(path)
    if found == "foreign":
        raise CheckpointError(f"{path} is not empty and not a run folder; choose another one")
    if found != "absent" and not overwrite:
        ways = "continue it with --resume, or " if found == "interrupted" else ""
        raise CheckpointError(f"{path} already holds a run ({found}); {ways}replace it with --overwrite")


@contextmanager
def begin(path: Path, recipe: Recipe, dataset: Dataset, split: Split, *, overwrite: bool = False) -> Iterator[Path]:
    """Make a new run with recipe and tables, and hold the lock of `path`; yields the folder to train in.

    That folder is `path` where it does not exist, else `path/next`, which takes the place of what `path` holds when it
    is left after `finish`. An error that another attempt would meet again removes the new run; after Interrupted and
    StorageError it can be resumed. Raises CheckpointError as `require_free` does.
    """
    with _new_run(path, overwrite, lambda folder: _write_begun(folder, recipe, dataset, split)) as folder:
        yield folder


@contextmanager
def continued(path: Path) -> Iterator[tuple[Path, Tables]]:
    """Hold the lock of `path`, whose fit was interrupted; yields the folder to train in, and what `begin` wrote there.

    Raises CheckpointError when nothing is left to do, and for damaged tables.
    """
    if not path.is_dir():
        raise _no_run(path)
    with locked(path):
        _tidy(path)
        folder = unfinished(path)
        if folder is None and state_of(path) == "absent":
            raise _no_run(path)
        if folder is None:
            raise CheckpointError(f"{path} is {state_of(path)}, there is nothing to resume; load it, or overwrite it")
        yield folder, read_tables(RunFiles(folder, Manifest.read(folder)))
        exchange(path)


def finish(folder: Path, model: Model, findings: Findings | None = None, facts: Mapping[str, Any] | None = None) -> str:
    """Write the fitted model into the folder of `begin` or `continued`, mark the run finished, return its identity.

    `facts` (seconds, …) go into model.json.
    """
    write_findings(folder, findings)
    write_model(folder, model, facts)
    begun = Manifest.read(folder)
    files = list_files(folder, BEGUN) if begun is None else begun.files  # None: begun before there were manifests
    manifest = Manifest(format=FORMAT, complete=True, files=files | list_files(folder, FITTED))
    manifest.write(folder)
    remove_leftovers(folder)
    remove_checkpoints(folder)
    return manifest.identity


def save_run(
    path: Path,
    recipe: Recipe,
    dataset: Dataset,
    split: Split,
    model: Model,
    findings: Findings | None,
    *,
    overwrite: bool,
) -> str:
    """Write a complete run folder in one step, and return its identity; until then `path` is as it was before."""

    def write(folder: Path) -> None:
        _write_begun(folder, recipe, dataset, split)
        identities.append(finish(folder, model, findings))

    identities: list[str] = []
    with _new_run(path, overwrite, write):
        return identities[0]


def tidy(path: Path) -> None:
    """Remove what a killed process left in a run folder: partial files, the checkpoints of a finished run.

    A new run that is complete takes the place of the old one. Raises CheckpointError while another process writes here.
    """
    if path.is_dir():
        with locked(path):
            _tidy(path)


def forget_model(path: Path, kept: Iterable[str]) -> None:
    """Keep the files `kept` and the evaluations of a finished run only; it can no longer be loaded."""
    with locked(path):
        manifest = Manifest.read(path)
        assert manifest is not None, "a finished run has a manifest"
        files = {name: entry for name, entry in manifest.files.items() if name in kept}
        manifest.model_copy(update={"complete": False, "files": files}).write(path)
        for name in {*BEGUN, *FITTED} - {*kept}:
            (path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class LoadedRun:
    """What a finished run folder holds. `identity`: that of its manifest; None for a run from before manifests."""

    model: Model
    tables: Tables
    identity: str | None
    files: RunFiles  # `read_findings` reads what the fit found


def load(path: Path) -> LoadedRun:
    """The run that `path` holds. Raises CheckpointError, naming the file, for all that is missing, damaged or mixed."""
    _require_finished(path)
    return read_run(path, _load)


def load_tables(path: Path) -> Tables:
    """Recipe, data and split of a run, finished or not. Raises CheckpointError naming what is missing or damaged."""
    if state_of(path) == "absent":
        raise _no_run(path)
    return read_run(path, read_tables)


def load_about(path: Path) -> tuple[ModelFile, DataFile]:
    """model.json and data.json of a finished run. Raises CheckpointError naming what is missing or damaged."""
    _require_finished(path)
    return read_run(path, lambda files: (files.json("model.json", ModelFile), files.json("data.json", DataFile)))


def load_log(path: Path) -> list[dict[str, Any]]:
    """Entries of log.jsonl; [] for a run that `save` wrote. Raises CheckpointError for a damaged one.

    In a run from before manifests, a line that a crash cut short is left out.
    """
    return read_run(path, _load_log)


def _load_log(files: RunFiles) -> list[dict[str, Any]]:
    if files.manifest is None:
        content = files.read("log.jsonl") if files.path("log.jsonl").is_file() else b""
    else:
        content = files.read("log.jsonl") if "log.jsonl" in files.manifest.files else b""
    entries = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            entry = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if entry is not None and not (isinstance(entry, dict) and isinstance(entry.get("event"), str)):
            raise damaged(files.path("log.jsonl"), f"line {number} is not an event")
        if entry is not None:
            entries.append(entry)
    return entries


def _load(files: RunFiles) -> LoadedRun:
    for name in ("log.jsonl", "findings.safetensors"):
        if files.manifest is not None and name in files.manifest.files:
            files.check(name)
    tables = read_tables(files)
    model = read_model(files, tables.recipe, tables.split)
    return LoadedRun(model, tables, None if files.manifest is None else files.manifest.identity, files)


def _require_finished(path: Path) -> None:
    state = state_of(path)
    if state == "absent":
        raise _no_run(path)
    if state == "interrupted":
        raise CheckpointError(
            f"{path} holds an interrupted run (model.json is missing); "
            f"finish it with: {command('fit', '--resume', '--out', path)}"
        )
    if state == "foreign":
        raise CheckpointError(f"{path} is not a run folder; missing: {MANIFEST}")


def _no_run(path: Path) -> CheckpointError:
    make = command("fit", "RECIPE", "--data", "DIR", "--out", path)
    return CheckpointError(f"no run folder at {path}; make one with: {make}")


def _write_begun(folder: Path, recipe: Recipe, dataset: Dataset, split: Split) -> None:
    write_tables(folder, recipe, dataset, split)
    Manifest(format=FORMAT, complete=False, files=list_files(folder, BEGUN)).write(folder)


@contextmanager
def _new_run(path: Path, overwrite: bool, write: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of a new run, made by `write` in one step, and the lock of `path`; see `begin`."""
    is_new = not path.is_dir()
    with ExitStack() as held:
        folder = path if is_new else path / NEXT
        if is_new:
            held.callback(_remove_empty, path)  # last of all, when the lock is released
            _require_free(path, overwrite)
            remove_leftovers(path.parent, path.name)
        else:
            held.enter_context(locked(path))
            _require_free(path, overwrite)
            _tidy(path)
            if folder.is_dir():
                remove_run(folder)
        with atomic_folder(folder) as temporary:
            lock = held.enter_context(locked(temporary)) if is_new else None
            write(temporary)
        if lock is not None:
            lock.folder = path
        try:
            yield folder
            exchange(path)
        except KeyboardInterrupt:  # between two stages; what `begin` wrote is there
            raise Interrupted("stopped") from None
        except (Interrupted, StorageError):
            raise
        except GraphLLMRecError:  # another attempt would fail as well: nothing of it is left
            remove_run(folder)
            raise


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def _tidy(path: Path) -> None:
    exchange(path)
    for folder in (path, path / NEXT):
        remove_leftovers(folder)
        remove_leftovers(folder / CHECKPOINTS)
    if state_of(path) == "finished":
        remove_checkpoints(path)
