"""Find the tables of a folder by the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from graphllmrec.data.published import amazon_tables, find_layout
from graphllmrec.errors import DataError

FORMATS = ("parquet", "csv", "tsv", "jsonl", "ndjson", "json", "inter", "item")
PARTS = ("train", "valid", "test")
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
    "Folders of MovieLens, RecBole and Amazon reviews are read as published (docs/guides/data.md has the names)"
)


@dataclass(frozen=True)
class Source:
    """Where a table comes from: a file, or a frame in memory. `name` is for messages."""

    name: str
    path: Path | None = None
    frame: pl.DataFrame | None = None
    max_bytes: int | None = None  # of the file, unpacked; None: see content.size_limit
    notes: tuple[str, ...] = ()  # conversions made so far

    @staticmethod
    def of_file(path: Path, max_bytes: int | None = None) -> Source:
        """A file, named in messages by its name without folders."""
        return Source(path.name, path, max_bytes=max_bytes)


def parse_name(source: Source | Path) -> tuple[str, str] | None:
    """(stem, format) of a data file, e.g. ("items", "csv") for items.csv.gz; None for any other source."""
    parts = source.name.lower().split(".")
    if parts[-1] in ("gz", "zst"):
        parts.pop()
        if parts[-1] == "parquet":  # has its own compression; polars reads it from its path
            return None
    known = parts[-1] in FORMATS or find_layout(".".join(parts)) is not None
    return (".".join(parts[:-1]), parts[-1]) if len(parts) > 1 and known else None


def find_tables(folder: Path) -> dict[str, Path]:
    """Table -> file: "interactions" or "train", "valid", "test"; "items", "tags". Raises DataError when ambiguous."""
    if not folder.exists():
        raise DataError("no such file or folder", file=str(folder), hint=EXPECTED)
    if folder.is_file():
        if parse_name(folder) is None:
            raise DataError("not a kind of file that can be read", file=str(folder), hint=EXPECTED)
        return {"interactions": folder}
    named = [(path, name) for path in sorted(folder.iterdir()) if (name := parse_name(path)) and path.is_file()]
    amazon = amazon_tables(stem for _, (stem, _) in named)
    found: dict[str, Path] = {}
    for path, (stem, kind) in named:
        table = _table_of(path, stem, kind) or amazon.get(stem)
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


def _table_of(path: Path, stem: str, kind: str) -> str | None:
    """The table of a file named as documented, or as MovieLens and RecBole name theirs."""
    if layout := find_layout(path.name):
        return layout.table
    if kind == "item":
        return "items"
    last = stem.rpartition(".")[2]
    if last in PARTS:  # NAME.train.inter, NAME.train.csv
        return last
    return "interactions" if kind == "inter" else TABLES.get(stem)


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
