"""Settings of RecMind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from graphllmrec.grokking.gate_schedule import GateScheduleName
from graphllmrec.settings import Condition
from graphllmrec.text.lora import LoRAConfig
from graphllmrec.train.loop import MonitoredConfig


class RecMindConfig(MonitoredConfig):
    """Settings of RecMind."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most, after the warm-up")
    warmup_epochs: int = Field(2, ge=0, le=100_000, description="T_w: passes of alignment alone, first; 0 is none")
    batch_size: int = Field(512, ge=1, le=1_000_000, description="examples per step: clicks, or users (loss per user)")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="AdamW step size")
    fusion: Literal["intra", "late", "text", "graph"] = Field(
        "intra", description="gate before each propagation, one gate after all of them, or one branch alone"
    )
    query: Literal["user", "history"] = Field("history", description="what a query is: a user's vector, or a history")
    loss: Literal["bpr", "softmax", "slk"] = Field("softmax", description="ranking loss")
    negatives: int = Field(
        0, ge=0, le=10_000_000, description="sampled negatives of the softmax of histories; 0 takes all items"
    )
    embedding_dim: int = Field(128, ge=1, le=8_192, description="size of the vectors of both branches")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L")
    text_dim: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    hidden: int = Field(0, ge=0, le=65_536, description="width of a residual network before W_proj; 0: W_proj alone")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="share of its hidden units dropped in training")
    init_scale: float = Field(0.1, ge=0, le=100, description="length of an embedding at the start")
    align: float = Field(0.1, ge=0, le=1_000, description="λ: weight of the alignment beside the ranking loss")
    align_temperature: float = Field(0.2, gt=0, le=100, description="τ of the alignment")
    align_size: int = Field(256, ge=1, le=1_000_000, description="users, and items, of a batch it compares, at most")
    hardness: float = Field(0.5, ge=0, le=100, description="how much more close negatives weigh in it; 0: all alike")
    queue: int = Field(1024, ge=0, le=10_000_000, description="past vectors kept as its further negatives")
    cosine: bool = Field(True, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    item_bias: bool = Field(False, description="clicked items have a bias beside the popularity term")
    decay: float = Field(0.7, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of query dimensions dropped in training")
    cold_dropout: float = Field(0.2, ge=0, lt=1, description="share of items treated as unclicked in a step")
    monitor_users: int = Field(
        250, ge=0, le=10_000_000, description="users whose scores the detector of grokking follows; 0: none"
    )
    gate_schedule: GateScheduleName = Field(
        "grokking", description="what may shift the gates in training: events, overfitting, the late phase, nothing"
    )
    gate_schedule_strength: float = Field(2.0, ge=0, le=100, description="share of the gate per unit of lift")
    gate_schedule_half_life: float = Field(
        16.0, gt=0, le=1e6, description="of that share after an event, in distances from memorisation to the event"
    )
    lora: LoRAConfig = Field(default_factory=LoRAConfig, description="adapters of the language model")

    @model_validator(mode="after")
    def _fits_together(self) -> RecMindConfig:
        if self.loss == "slk" and self.query == "history":
            raise ValueError('loss "slk" keeps a threshold per user: it needs query = "user"')
        if self.fusion == "intra" and not self.num_layers:
            raise ValueError('fusion "intra" gates each propagation: it needs num_layers of at least 1')
        return self

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("decay max_history negatives", self.query == "history", 'query = "history"')
        yield Condition("negatives", self.loss == "softmax", 'loss = "softmax"')
        yield Condition("temperature", self.cosine, "cosine = true")
        yield Condition("hidden", self.fusion != "graph", 'a text branch in the score (fusion other than "graph")')
        yield Condition("text_dropout", self.hidden > 0, "hidden above 0")
        yield Condition("cold_dropout", self.fusion != "text", 'a graph branch in the score (fusion other than "text")')
        gated = 'fusion "intra" or "late"'
        yield Condition("align warmup_epochs gate_schedule", self.gated, gated)
        aligns = self.gated and (self.align > 0 or self.warmup_epochs > 0)
        yield Condition("align_temperature align_size hardness queue", aligns, "an alignment")
        yield Condition("gate_schedule", self.monitor_users > 0, "monitor_users above 0")
        schedule = self.gate_schedule if self.gated and self.monitor_users else "none"
        scheduled = schedule in ("grokking", "late")
        yield Condition("gate_schedule_strength", scheduled, 'gate_schedule "grokking" or "late"')
        yield Condition("gate_schedule_half_life", schedule == "grokking", 'gate_schedule "grokking"')
        yield Condition("lora", self.lora.epochs > 0, "lora.epochs of at least 1")
        yield Condition("lora", self.fusion != "graph", 'a text branch in the score (fusion other than "graph")')

    @property
    def gated(self) -> bool:
        """Are both branches mixed by a gate?"""
        return self.fusion in ("intra", "late")

    @property
    def aligned(self) -> bool:
        """Is the alignment part of the joint phase?"""
        return self.align > 0 and self.gated
