"""The base of every settings class."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings: validated, immutable; every unknown or impossible value is reported at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, name: str) -> bool:
        """Has the setting `name` another value than its default?"""
        return bool(self.value(name) != type(self).model_fields[name].default)

    def value(self, name: str) -> Any:
        """The value of the setting `name`."""
        return getattr(self, name)
