"""The base of every settings class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings: validated, immutable; every unknown or impossible value is reported at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, name: str) -> bool:
        """Has the setting `name` another value than its default?"""
        return bool(getattr(self, name) != type(self).model_fields[name].default)
