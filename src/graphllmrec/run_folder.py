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
    model.safetensors     the model's tensors
    model.json            format, model, settings, checksum of the tensors; written last, so it marks a finished run
    metrics-test.json     added by `evaluate`, with per-user values beside it

A folder without model.json is an interrupted run: it can be resumed or overwritten, but not loaded.
Every file but the two logs is written under a temporary name and renamed (io.py), so a kill leaves no partial file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphllmrec import legacy
from graphllmrec.data.roles import ColumnRole
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, IdMap, Interactions, Items
from graphllmrec.errors import CheckpointError
from graphllmrec.io import atomic_file, atomic_folder, remove_leftovers, write_text
from graphllmrec.models.registry import build
from graphllmrec.protocol import Model
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.terminal import command

FORMAT = 4
PARTS = ("train", "valid", "test")
State = Literal["absent", "interrupted", "finished", "foreign"]


def state_of(path: Path) -> State:
    """The state of the run folder at `path`; "foreign": not empty, and not a run."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "absent"
    if (path / "model.json").is_file():
        return "finished"
    return "interrupted" if (path / "recipe.toml").is_file() and (path / "data.json").is_file() else "foreign"


def require_free(path: Path, overwrite: bool) -> None:
    """Raise CheckpointError when `path` holds a run (unless `overwrite`), or anything that is not a run (always)."""
    found = state_of(path)
    if found == "foreign":
        raise CheckpointError(f"{path} is not empty and not a run folder; choose another one")
    if found != "absent" and not overwrite:
        ways = "" if found == "finished" else "continue it with --resume, or "
        raise CheckpointError(f"{path} already holds a run ({found}); {ways}replace it with --overwrite")


def begin(path: Path, recipe: Recipe, dataset: Dataset, split: Split, *, overwrite: bool = False) -> None:
    """Write a new run folder with recipe and tables, in one step; the run counts as interrupted until `finish`.

    Raises CheckpointError as `require_free` does.
    """
    require_free(path, overwrite)
    remove_leftovers(path.parent, path.name)
    with atomic_folder(path) as folder:
        write_text(folder / "recipe.toml", recipe.to_toml())
        _write_tables(folder, dataset, split)


def tidy(path: Path) -> None:
    """Remove what a killed process left in a run folder: partial files, and checkpoints of a finished run."""
    remove_leftovers(path)
    remove_leftovers(path / "checkpoint")
    if state_of(path) == "finished":
        shutil.rmtree(path / "checkpoint", ignore_errors=True)


def finish(path: Path, model: Model, facts: dict[str, Any] | None = None) -> None:
    """Write the fitted model into its run folder and mark the run finished; `facts` (seconds, …) go into model.json."""
    tensors = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in model.state().items()})
    target = path / "model.safetensors"
    with atomic_file(target) as temporary:
        save_file(tensors, temporary)
    about = {
        "format": FORMAT,
        "model": model.name,
        "config": model.config.model_dump(mode="json"),
        "sha256": _sha256(target),
        "versions": {name: version(name) for name in ("graphllmrec", "torch", "polars", "numpy")},
        **(facts or {}),
    }
    write_text(path / "model.json", json.dumps(about, indent=2) + "\n")
    tidy(path)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where two share memory: safetensors refuses those."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return out


@dataclass(frozen=True)
class Tables:
    """The contents that `begin` wrote: the recipe, the data and its split."""

    recipe: Recipe
    dataset: Dataset
    split: Split
    fingerprint: str


def load_tables(path: Path) -> Tables:
    """Recipe, data and split of a run, finished or not. Raises CheckpointError naming what is missing or damaged."""
    _require(path, "recipe.toml", "data.json", "users.parquet", "items.parquet", "interactions.parquet")
    with _readable(path / "recipe.toml"):
        recipe = load_recipe(tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8")), saved=True)
    about = _read_json(path / "data.json")
    with _readable(path / "users.parquet"):
        users = IdMap(pl.read_parquet(path / "users.parquet")["user_id"])
    with _readable(path / "items.parquet"):
        table = pl.read_parquet(path / "items.parquet")
        roles = tuple(ColumnRole(**role) for role in about.get("columns", ()))  # none in runs of version 0.1
        encoder = load_arrays(path / "encoder.safetensors") if (path / "encoder.safetensors").is_file() else {}
        items = Items(IdMap(table["item_id"]), table, roles, encoder)
    with _readable(path / "interactions.parquet"):
        parts = _read_parts(pl.read_parquet(path / "interactions.parquet"))
    with _readable(path / "data.json"):
        train, valid, test = parts.values()
        settings = about["split"]
        split = Split(
            settings["kind"], len(users), len(items), train, valid, test,
            settings["valid_in_history"], settings["ordered"], settings["settings"],
        )  # fmt: skip
        ready = parts if split.kind == "ready-made" else {}
        dataset = Dataset(about["name"], users, items, split.interactions(), ready, about["order"], about["source"])
        return Tables(recipe, dataset, split, about["fingerprint"])


def load_model(path: Path) -> Model:
    """The fitted model of a finished run. Raises CheckpointError for an unfinished, newer or damaged run."""
    if state_of(path) == "interrupted":
        raise CheckpointError(
            f"{path} holds an interrupted run (model.json is missing); "
            f"finish it with: {command('fit', '--resume', '--out', path)}"
        )
    _require(path, "model.json", "model.safetensors")
    about = _read_json(path / "model.json")
    if about.get("format") not in (FORMAT, legacy.FORMAT):
        raise CheckpointError(
            f"{path / 'model.json'} has format {about.get('format')!r}, this version reads {FORMAT}; fit it again"
        )
    if _sha256(path / "model.safetensors") != about["sha256"]:
        raise CheckpointError(f"{path / 'model.safetensors'} is damaged: its checksum is not the one in model.json")
    name, config, tensors = about["model"], about["config"], load_file(path / "model.safetensors")
    if about["format"] == legacy.FORMAT:
        name, config, tensors = legacy.current_run(name, config, tensors)
    model = build(name, config, saved=True)
    model.restore(tensors)
    return model


def save_run(path: Path, recipe: Recipe, dataset: Dataset, split: Split, model: Model, *, overwrite: bool) -> None:
    """Write a complete run folder in one step; until then `path` is absent, or holds the old run."""
    require_free(path, overwrite)
    remove_leftovers(path.parent, path.name)
    with atomic_folder(path) as folder:
        write_text(folder / "recipe.toml", recipe.to_toml())
        _write_tables(folder, dataset, split)
        finish(folder, model)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over ids, catalogue and interactions; the same for the same data in any file format."""
    digest = hashlib.sha256()
    for table in (dataset.users.ids.to_frame(), dataset.items.table):
        digest.update(table.write_ndjson().encode())
    rows = dataset.interactions
    for values in (rows.user, rows.item, rows.order, rows.rating):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    if rows.review is not None:
        digest.update(rows.review.alias("review").to_frame().write_ndjson().encode())
    return digest.hexdigest()


def _write_tables(folder: Path, dataset: Dataset, split: Split) -> None:
    tables = {
        "users": pl.DataFrame({"user_id": dataset.users.ids}),
        "items": dataset.items.table,
        "interactions": _parts_table(split),
    }
    for name, table in tables.items():
        with atomic_file(folder / f"{name}.parquet") as temporary:
            table.write_parquet(temporary)
    if dataset.items.encoder:
        with atomic_file(folder / "encoder.safetensors") as temporary:
            save_arrays(dict(dataset.items.encoder), temporary)
    about = {
        "name": dataset.name,
        "source": dataset.source,
        "order": dataset.order,
        "columns": [asdict(role) for role in dataset.items.roles],
        "split": {
            "kind": split.kind,
            "valid_in_history": split.valid_in_history,
            "ordered": split.ordered,
            "settings": split.settings,
        },
        "fingerprint": fingerprint(dataset),
    }
    write_text(folder / "data.json", json.dumps(about, indent=2) + "\n")


def _parts_table(split: Split) -> pl.DataFrame:
    """The interactions of all parts; columns `review` and `weight` only where there are some."""
    parts = (split.train, split.valid, split.test)
    kinds = {
        "user": pl.Int64,
        "item": pl.Int64,
        "order": pl.Int64,
        "rating": pl.Float32,
        "review": pl.String,
        "weight": pl.Float32,
    }
    frames = [
        pl.DataFrame(vars(part), schema=kinds).with_columns(part=pl.lit(name, dtype=pl.Enum(PARTS)))
        for name, part in zip(PARTS, parts, strict=True)
    ]
    table = pl.concat(frames)
    if all(part.review is None for part in parts):
        table = table.drop("review")
    return table.drop("weight") if all(part.weight is None for part in parts) else table


def _read_parts(table: pl.DataFrame) -> dict[str, Interactions]:
    parts = {}
    for part in PARTS:
        rows = table.filter(pl.col("part").cast(pl.String) == part)
        user, item, order, rating = (rows[name].to_numpy(writable=True) for name in ("user", "item", "order", "rating"))
        parts[part] = Interactions(
            user,
            item,
            None if rows["order"].null_count() else order,
            None if rows["rating"].null_count() else rating,
            rows["review"] if "review" in rows.columns else None,
            rows["weight"].to_numpy(writable=True) if "weight" in rows.columns else None,
        )
    return parts


def _require(path: Path, *names: str) -> None:
    if state_of(path) == "absent":
        raise CheckpointError(
            f"no run folder at {path}; make one with: {command('fit', 'RECIPE', '--data', 'DIR', '--out', path)}"
        )
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} is not a complete run folder; missing: {', '.join(missing)}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, tomllib.TOMLDecodeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    with _readable(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return values


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
