"""What the JSON files of a run folder hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from graphllmrec.data.roles import Role
from graphllmrec.data.split import KINDS


class SplitFile(BaseModel):
    """How the data was split (data/split.py)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    valid_in_history: bool
    ordered: bool
    settings: dict[str, JsonValue]

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown split {kind!r}")
        return kind


class ColumnFile(BaseModel):
    """The role of a column of the items (data/roles.py)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    column: str
    role: Role
    reason: str


class DataFile(BaseModel):
    """data.json: the data and its split, without the tables."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int | None = None  # None: a run from before manifests
    name: str
    source: str
    order: Literal["timestamp", "position"] | None
    columns: list[ColumnFile] = []  # none in runs of version 0.1
    repeats: int = Field(0, ge=0)  # repeated pairs that were dropped while reading
    ties: Literal["hash", "file"] = "file"  # of the order of interactions at one time
    tied_users: float = Field(0.0, ge=0, le=1)  # share of users whose newest two are at one time
    notes: list[str] = []  # decisions made while reading
    split: SplitFile
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelFile(BaseModel):
    """model.json: the model without its tensors, and facts about the fit."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    format: int
    model: str
    config: dict[str, Any]
    versions: dict[str, str] = {}
    seconds: float | None = Field(None, ge=0)  # of the training; None for a run that `save` wrote
    sha256: str | None = None  # of model.safetensors, in runs from before manifests
