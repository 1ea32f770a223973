"""Settings of the data: what is kept, and how it is split. The recipe's section [data]."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, field_validator

from graphllmrec.data.split import KINDS
from graphllmrec.data.ties import Ties
from graphllmrec.data.weights import Repeats, Scale
from graphllmrec.settings import Condition, Config


class DataConfig(Config):
    """How a data folder becomes a split; arguments of data.read.load_data and data.split.make_split."""

    split: str = Field("auto", description=f"{', '.join(KINDS)}; see docs/guides/evaluation.md")
    min_rating: float | None = Field(None, description="keep interactions rated at least this; none keeps all")
    ties: Ties = Field(
        "hash", description='what sorts clicks of one user at one time: a "hash" of the ids, or the rows of the "file"'
    )
    weights: Scale = Field(
        "log",
        description='how columns weight and count weigh a click: "log" of 1 + value, "linear", "none": not at all',
    )
    events: dict[str, float] = Field(
        default_factory=dict,
        description="weight per type in the column event, e.g. {view = 1, buy = 5}; others are left out",
    )
    half_life: float = Field(0.0, ge=0, description="days in which the weight of a click halves; 0: no fading")
    repeats: Repeats = Field(
        "first", description='a repeated pair counts once ("first"), or its occurrences "add" up to a weight'
    )
    max_bytes: int | None = Field(
        None,
        ge=1,
        description="most bytes a file may hold, unpacked; none: no limit, but a compressed file may not hold "
        "over 100 times its size and over 16 MiB",
    )
    k_core: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="keep only clicks of users and on items with so many distinct partners; items of the items table "
        "stay; 0 keeps all",
    )
    valid_ratio: float = Field(
        0.1, ge=0, lt=1, description="share of interactions to validate on (user-ratio, global-time)"
    )
    test_ratio: float = Field(0.2, gt=0, lt=1, description="share of interactions to test on (user-ratio, global-time)")
    cold_ratio: float = Field(
        0.1, gt=0, lt=1, description="share of clicked items to test on, as many to validate on (cold-item)"
    )

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        shares = ("auto", "user-ratio", "global-time")  # "auto" is one of them where the interactions have no order
        yield Condition("valid_ratio test_ratio", self.split in shares, 'split "user-ratio" or "global-time"')
        yield Condition("cold_ratio", self.split == "cold-item", 'split = "cold-item"')

    @field_validator("events")
    @classmethod
    def _positive(cls, events: dict[str, float]) -> dict[str, float]:
        if bad := [name for name, weight in events.items() if not 0 < weight <= 1e6]:
            raise ValueError(
                f"weight of {bad[0]!r} must be above 0 and at most 1e6; leave out events that do not count"
            )
        return events

    @field_validator("split")
    @classmethod
    def _known(cls, split: str) -> str:
        if split not in KINDS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(KINDS)}")
        return split
