"""The tables of a run folder: written before training, held against each other before anything uses their rows."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from graphllmrec.data.roles import ColumnRole
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, IdMap, Interactions, Items
from graphllmrec.data.tags import COLUMN as TAGS
from graphllmrec.errors import CheckpointError, RecipeError
from graphllmrec.io import atomic_file, write_text
from graphllmrec.manifest import FORMAT, MANIFEST, RunFiles, damaged
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.run_folder.schema import DataFile

PARTS = ("train", "valid", "test")
ENCODER = "encoder.safetensors"
COLUMNS = {
    "user": pl.Int64,
    "item": pl.Int64,
    "order": pl.Int64,
    "rating": pl.Float32,
    "review": pl.String,
    "weight": pl.Float32,
}


@dataclass(frozen=True)
class Tables:
    """The contents that `write_tables` wrote: the recipe, the data and its split."""

    recipe: Recipe
    dataset: Dataset
    split: Split
    fingerprint: str


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over ids, catalogue, tags and interactions as read; the same for the same data in any file format."""
    digest = hashlib.sha256()
    items = dataset.items.table
    if dataset.tags is not None:  # the column depends on the split (data/tags.py)
        items = items.drop(TAGS, strict=False)
        digest.update(dataset.tags.sort(pl.all(), nulls_last=True).write_ndjson().encode())
    for table in (dataset.users.ids.to_frame(), items):
        digest.update(table.write_ndjson().encode())
    rows = dataset.interactions
    for values in (rows.user, rows.item, rows.order, rows.rating, *([] if rows.weight is None else [rows.weight])):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    if rows.review is not None:
        digest.update(rows.review.alias("review").to_frame().write_ndjson().encode())
    return digest.hexdigest()


def write_tables(folder: Path, recipe: Recipe, dataset: Dataset, split: Split) -> None:
    """Write recipe, tables, and data.json."""
    write_text(folder / "recipe.toml", recipe.to_toml())
    tables = {
        "users": pl.DataFrame({"user_id": dataset.users.ids}),
        "items": dataset.items.table,
        "interactions": _parts_table(split),
    }
    for name, table in tables.items():
        with atomic_file(folder / f"{name}.parquet") as temporary:
            table.write_parquet(temporary.absolute())
    if dataset.items.encoder:
        with atomic_file(folder / ENCODER) as temporary:
            save_file(dict(dataset.items.encoder), temporary)
    about = {
        "format": FORMAT,
        "name": dataset.name,
        "source": dataset.source,
        "order": dataset.order,
        "columns": [asdict(role) for role in dataset.items.roles],
        "repeats": dataset.repeats,
        "ties": dataset.ties,
        "tied_users": dataset.tied_users,
        "notes": list(dataset.notes),
        "split": {
            "kind": split.kind,
            "valid_in_history": split.valid_in_history,
            "ordered": split.ordered,
            "settings": split.settings,
        },
        "fingerprint": fingerprint(dataset),
    }
    write_text(folder / "data.json", json.dumps(about, indent=2) + "\n")


def read_tables(files: RunFiles) -> Tables:
    """Recipe, data and split. Raises CheckpointError naming what is missing, damaged, or does not fit the rest."""
    about = files.json("data.json", DataFile)
    if files.manifest is None and about.format is not None:
        raise CheckpointError(f"{files.folder} is not a complete run folder; missing: {MANIFEST}")
    recipe = _read_recipe(files)
    users, items = _read_users(files), _read_items(files, about)
    path, table = files.path("interactions.parquet"), files.parquet("interactions.parquet")
    with _sound(path):
        train, valid, test = _read_parts(table, len(users), len(items))
    settings = about.split
    split = Split(
        settings.kind, len(users), len(items), train, valid, test,
        settings.valid_in_history, settings.ordered, dict(settings.settings),
    )  # fmt: skip
    ready = dict(zip(PARTS, (train, valid, test), strict=True)) if split.kind == "ready-made" else {}
    dataset = Dataset(
        about.name, users, items, split.interactions(), ready, about.order, about.source,
        repeats=about.repeats, ties=about.ties, tied_users=about.tied_users, notes=tuple(about.notes),
    )  # fmt: skip
    return Tables(recipe, dataset, split, about.fingerprint)


def _read_recipe(files: RunFiles) -> Recipe:
    path, content = files.path("recipe.toml"), files.read("recipe.toml")
    try:
        return load_recipe(tomllib.loads(content.decode()), saved=True)
    except RecipeError as error:
        raise damaged(path, "; ".join(error.problems)) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML
        raise damaged(path, str(error).splitlines()[0]) from error


def _read_users(files: RunFiles) -> IdMap:
    table = files.parquet("users.parquet")
    with _sound(files.path("users.parquet")):
        return IdMap(_column(table, "user_id", pl.String()))


def _read_items(files: RunFiles, about: DataFile) -> Items:
    roles = tuple(ColumnRole(role.column, role.role, role.reason) for role in about.columns)
    table = files.parquet("items.parquet")
    with _sound(files.path("items.parquet")):
        kept = {role.column for role in roles if role.role != "left out"}
        if unknown := kept - {*table.columns}:
            raise ValueError(f"data.json describes a column {min(unknown)!r} that it has not")
        return Items(IdMap(_column(table, "item_id", pl.String())), table, roles, _read_encoder(files))


def _read_encoder(files: RunFiles) -> dict[str, NDArray[Any]]:
    """The arrays of a fitted text encoder; {} for a run without one."""
    listed = files.path(ENCODER).is_file() if files.manifest is None else ENCODER in files.manifest.files
    if not listed:
        return {}
    content = files.read(ENCODER)
    try:
        return load(content)
    except SafetensorError as error:
        raise damaged(files.path(ENCODER), str(error)) from error


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Errors about what a table holds, as those of a damaged file."""
    try:
        yield
    except ValueError as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def _column(table: pl.DataFrame, name: str, kind: pl.DataType) -> pl.Series:
    found = table.schema.get(name)
    if found != kind:
        raise ValueError(f"column {name!r} is {'missing' if found is None else f'of type {found}'}, not {kind}")
    return table[name]


def _parts_table(split: Split) -> pl.DataFrame:
    """The interactions of all parts; columns `review` and `weight` only where there are some."""
    parts = (split.train, split.valid, split.test)
    frames = [
        pl.DataFrame(vars(part), schema=COLUMNS).with_columns(part=pl.lit(name, dtype=pl.Enum(PARTS)))
        for name, part in zip(PARTS, parts, strict=True)
    ]
    table = pl.concat(frames)
    return table.drop(name for name in ("review", "weight") if all(vars(part)[name] is None for part in parts))


def _read_parts(table: pl.DataFrame, num_users: int, num_items: int) -> Iterator[Interactions]:
    """Train, valid, test. Raises ValueError for rows outside users and items, and for parts that are not sorted."""
    part_of = table["part"].cast(pl.String) if "part" in table.columns else pl.Series("part", [], dtype=pl.String)
    if part_of.null_count() or not set(part_of.unique()) <= set(PARTS) or len(part_of) != len(table):
        raise ValueError(f"column 'part' holds something else than {', '.join(PARTS)}")
    for part in PARTS:
        rows = table.filter(part_of == part)
        user = _rows(rows, "user", num_users)
        if (np.diff(user) < 0).any():
            raise ValueError("the rows are not sorted by user")
        yield Interactions(
            user,
            _rows(rows, "item", num_items),
            _all_or_none(rows, "order"),
            _all_or_none(rows, "rating"),
            _column(rows, "review", pl.String()) if "review" in rows.columns else None,
            _all_or_none(rows, "weight") if "weight" in rows.columns else None,
        )


def _rows(table: pl.DataFrame, name: str, size: int) -> NDArray[np.int64]:
    """A column of row numbers, all of them from 0 to size - 1."""
    column = _column(table, name, pl.Int64())
    if column.null_count() or not column.is_between(0, size - 1).all():
        raise ValueError(f"column {name!r} holds rows that are not among the {size:,} of {name}s.parquet")
    return column.to_numpy(writable=True)


def _all_or_none(table: pl.DataFrame, name: str) -> NDArray[Any] | None:
    column = _column(table, name, COLUMNS[name]())
    if column.null_count() == len(column):
        return None if len(column) else column.to_numpy(writable=True)
    if column.null_count():
        raise ValueError(f"column {name!r} has values in some rows only")
    return column.to_numpy(writable=True)
