"""The base of every settings class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

SAVED = {"saved": True}  # context of `model_validate` for the settings of a saved run: what has no effect stays


class Condition(NamedTuple):
    """Settings that act only where something holds, e.g. Condition("temperature", self.cosine, "cosine = true")."""

    settings: str  # names, with spaces between them
    met: bool
    needed: str


class Config(BaseModel):
    """Settings: validated, immutable; every unknown or impossible value is reported at once.

    So is a setting that has no effect beside the others: a search over it would be a search over noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def conditions(self) -> Iterable[Condition]:
        """What settings of this class need of each other to have an effect."""
        return ()

    def idle(self) -> dict[str, str]:
        """Settings that were changed and have no effect beside the others, each with what it would need.

        0, false and "none" turn a setting off, so they are true where it has no effect.
        """
        return {
            name: condition.needed
            for condition in self.conditions()
            if not condition.met
            for name in condition.settings.split()
            if self.changed(name) and self.value(name) not in (0, "none")
        }

    @model_validator(mode="after")
    def _everything_acts(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get("saved") and (idle := self.idle()):
            raise ValueError("; ".join(f"{name} has no effect: it needs {needed}" for name, needed in idle.items()))
        return self

    def changed(self, name: str) -> bool:
        """Has the setting `name` another value than its default?"""
        return bool(self.value(name) != type(self).model_fields[name].get_default(call_default_factory=True))

    def value(self, name: str) -> Any:
        """The value of the setting `name`."""
        return getattr(self, name)
