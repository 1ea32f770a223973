"""Settings that several models of histories share."""

from __future__ import annotations

from pydantic import Field

from graphllmrec.train.loop import MonitoredConfig


class HistoryConfig(MonitoredConfig):
    """Settings of models that are trained on clicks after their histories, with item dropout."""

    temperature: float = Field(0.1, gt=0, le=100, description="what scores are divided by")
    cold_dropout: float = Field(
        0.2, ge=0, lt=1, description="item dropout: share of the items that look unclicked in a step"
    )
    decay: float = Field(0.7, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="clicks that a history keeps in training")
