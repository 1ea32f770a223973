"""What the files of an evaluation hold, and that they fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from graphllmrec.manifest import damaged


class ProtocolFile(BaseModel):
    """How it was measured; keys that are not named here are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    branch: str | None
    split: str
    split_settings: dict[str, Any]
    part: str
    masked: str
    ks: list[int] = Field(min_length=1)
    users: int = Field(ge=1)
    items: int = Field(ge=1)
    targets: int = Field(ge=1)
    fingerprint: str


class MetricsFile(BaseModel):
    """metrics-PART.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: ProtocolFile
    overall: dict[str, float]
    overall_ci: dict[str, list[float]]
    strata: dict[str, dict[str, dict[str, int | float]]]  # "users" stays a whole number


def check_tables(path: Path, found: MetricsFile, per_user: pl.DataFrame, targets: pl.DataFrame) -> None:
    """Raise CheckpointError when the tables of an evaluation, read from `path`, do not belong to its figures."""
    try:
        _check_tables(found, per_user, targets)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise damaged(path, f"its tables do not belong to it ({str(error).splitlines()[0]})") from error


def _check_tables(found: MetricsFile, per_user: pl.DataFrame, targets: pl.DataFrame) -> None:
    protocol = found.protocol
    metrics = list(found.overall_ci)
    width = max(protocol.ks)
    numbers = dict.fromkeys(("user", "history", "n_targets"), pl.Int64())
    floats = dict.fromkeys(metrics, pl.Float64())
    lists = {"recommended": pl.Array(pl.Int64, width)}
    _require_columns("per-user values", per_user, {**numbers, "user_activity": pl.String(), **floats, **lists})
    rows = dict.fromkeys(("user", "item", "rank"), pl.Int64())
    labels = dict.fromkeys(("item_degree", "item_popularity"), pl.String())
    _require_columns("targets", targets, {**rows, **labels})
    if (len(per_user), len(targets)) != (protocol.users, protocol.targets):
        raise ValueError(f"{len(per_user):,} users and {len(targets):,} targets")
    _require_between("recommended", per_user["recommended"].explode(), -1, protocol.items - 1)
    _require_between("item", targets["item"], 0, protocol.items - 1)
    _require_between("rank", targets["rank"], 0, width)
    if not per_user["user"].is_unique().all() or not targets["user"].is_in(per_user["user"].implode()).all():
        raise ValueError("the users of the targets are others")
    for name in metrics:
        if name not in found.overall or not np.isclose(
            per_user[name].to_numpy().mean(), found.overall[name], atol=1e-9
        ):
            raise ValueError(f"{name} is not the mean over the users")
    if any(len(ends) != 2 for ends in found.overall_ci.values()):
        raise ValueError("an interval has two ends")


def _require_columns(what: str, table: pl.DataFrame, expected: dict[str, Any]) -> None:
    for name, kind in expected.items():
        if table.schema.get(name) != kind:
            raise ValueError(f"{what}: column {name!r} is {table.schema.get(name, 'missing')}, not {kind}")
        if table[name].null_count():
            raise ValueError(f"{what}: column {name!r} has empty rows")


def _require_between(name: str, column: pl.Series, low: int, high: int) -> None:
    if not column.is_between(low, high).all():
        raise ValueError(f"column {name!r} holds rows that are not among 0 … {high}")
