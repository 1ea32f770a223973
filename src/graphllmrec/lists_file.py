"""Ranked lists of many users in one file, written in parts, so that a killed run goes on where it was.

    OUT.parts/plan.json      what is written: a checksum of model, catalogue, users and options
    OUT.parts/00000.parquet  lists of the first users, and so on; each is written in one step
    OUT                      all parts joined, renamed to this name when it is complete; then the folder is removed

A folder of parts that was begun with another plan is not continued: the lists are made anew. Memory holds one part.
OUT.parts is locked (lock.py) while a process writes: another that is to write the same file is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import zstandard

from graphllmrec.errors import ArgumentError
from graphllmrec.fitted import Fitted, Limits, Unknown
from graphllmrec.io import atomic_file, discard, is_temporary, remove_leftovers, storage, write_text
from graphllmrec.lock import LOCK, locked
from graphllmrec.progress import RunLogger

KINDS = ("parquet", "csv", "tsv", "jsonl")
ENDINGS = ".parquet, .csv, .tsv or .jsonl (the last three also with .gz or .zst)"
PART_ROWS, MOST_USERS = 200_000, 4_096  # of one part: entries of lists, and users


def write_lists(
    fitted: Fitted,
    out: Path,
    users: Sequence[object],
    k: int,
    limits: Limits,
    unknown: Unknown,
    logger: RunLogger,
    *,
    overwrite: bool,
) -> Path:
    """Write the k best items of every user into `out`; see `Recommender.recommend_all`. Returns `out`."""
    _check_target(out, overwrite)
    names, rows = fitted.find_users(users, unknown)
    size = int(np.clip(PART_ROWS // k, 1, MOST_USERS))
    starts = range(0, max(len(rows), 1), size)
    with _locked_parts(out) as parts:
        _check_target(out, overwrite)  # now that no other process is about to finish it
        _open_parts(parts, _checksum(fitted, names, k, limits, unknown, size), logger)
        paths = [parts / f"{number:05d}.parquet" for number in range(len(starts))]
        logger.begin("recommend", len(rows))
        for start, path in zip(starts, paths, strict=True):
            here = slice(start, start + size)
            if path.exists():
                logger.advance(len(rows[here]))
                continue
            lists = fitted.for_users(names[here], rows[here], k, limits, unknown, logger)
            with atomic_file(path) as temporary:
                lists.table().write_parquet(temporary)
        _join(paths, out)
        discard(parts)
    return out


def _check_target(out: Path, overwrite: bool) -> None:
    """Raise ArgumentError for an ending without a format, a folder, and an existing file that may not be replaced."""
    if out.is_dir():
        raise ArgumentError(f"{out} is a folder; give the file to write, ending in {ENDINGS}")
    kind, packing = _format(out)
    if kind not in KINDS or (kind == "parquet" and packing):
        raise ArgumentError(f"{out} has no ending that says how to write it: {ENDINGS}")
    if out.exists() and not overwrite:
        raise ArgumentError(f"{out} exists; replace it with --overwrite (overwrite=True), or choose another name")


def _format(out: Path) -> tuple[str, str]:
    """("csv", "gz") of lists.csv.gz, ("csv", "") of lists.csv."""
    _, *endings = out.name.lower().split(".")
    packing = endings.pop() if endings and endings[-1] in ("gz", "zst") else ""
    return (endings[-1] if endings else ""), packing


@contextmanager
def _locked_parts(out: Path) -> Iterator[Path]:
    """The folder of parts, made where there is none, and its lock.

    Raises ArgumentError for a folder that is none of parts, CheckpointError while another process writes the same file.
    """
    parts = out.with_name(f"{out.name}.parts")
    if parts.exists() and not (_plan(parts).is_file() or (parts.is_dir() and all(map(_passing, parts.iterdir())))):
        raise ArgumentError(f"{parts} is in the way: parts of the lists are kept under this name; move it away")
    with storage(parts):
        parts.mkdir(parents=True, exist_ok=True)
    with locked(parts):
        yield parts


def _plan(parts: Path) -> Path:
    return parts / "plan.json"


def _passing(path: Path) -> bool:
    """Is this a lock, or what a killed process left half written?"""
    return path.name == LOCK or is_temporary(path)


def _open_parts(parts: Path, checksum: str, logger: RunLogger) -> None:
    """Keep the parts that a killed run with the same plan left, and no others."""
    plan, content = _plan(parts), json.dumps({"checksum": checksum}) + "\n"
    if plan.is_file() and plan.read_bytes() == content.encode():
        remove_leftovers(parts)
        logger.say(f"going on with the lists that are in {parts}")
        return
    if plan.is_file():
        logger.say(f"{parts} holds lists of another model, other data or other options: starting anew")
    for path in parts.iterdir():
        if path.name != LOCK:
            path.unlink()
    write_text(plan, content)


def _checksum(fitted: Fitted, names: Sequence[str], k: int, limits: Limits, unknown: Unknown, size: int) -> str:
    """SHA-256 over everything that the lists depend on."""
    model, histories = fitted.model, fitted.histories
    about = [model.name, model.config.model_dump(mode="json"), k, limits.allow_seen, unknown, size, list(names)]
    digest = hashlib.sha256(json.dumps(about).encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(model.state().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    degree = fitted.split.item_degree()
    for values in (histories.indptr, histories.items, degree, limits.allowed):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    table = fitted.items.table
    shown = [name for name in ("item_id", "title") if name in table.columns]
    digest.update(table.select(shown).write_ndjson().encode())
    return digest.hexdigest()


def _join(parts: Sequence[Path], out: Path) -> None:
    """All parts in one file, in one step; one part at a time is in memory."""
    kind, packing = _format(out)
    with atomic_file(out) as temporary:
        if kind == "parquet":
            pl.scan_parquet(list(parts), glob=False).sink_parquet(temporary)
            return
        with _stream(temporary, packing) as file:
            for number, part in enumerate(parts):
                table = pl.read_parquet(part, glob=False)
                if kind == "jsonl":
                    table.write_ndjson(file)
                else:
                    table.write_csv(file, include_header=number == 0, separator="," if kind == "csv" else "\t")


@contextmanager
def _stream(path: Path, packing: str) -> Iterator[Any]:
    """The file to write to; compressed as `packing` says ("gz", "zst", "")."""
    with path.open("wb") as file:
        if packing == "gz":
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:  # same lists, same bytes
                yield packed
        elif packing == "zst":
            with zstandard.ZstdCompressor().stream_writer(file) as packed:
                yield packed
        else:
            yield file
