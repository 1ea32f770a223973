"""The base of every settings class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings: validated, immutable; every unknown or impossible value is reported at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)
