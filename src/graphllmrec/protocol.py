"""What models, training, evaluation and the front door agree on. Nothing is computed here.

A model is a settings object (`Config`) plus tensors. It is fitted on a `Task` and answers `Queries` afterwards:

    model = EASE(EASEConfig(l2=100.0)); model.fit(task); scores = model.scores(queries)  # (B, num_items)

Most models are *vector models*: one vector per item, a light encoder that turns a query into a vector, score = dot
product. They implement `item_vectors` and `query_vectors`; `scores` follows. The others implement `scores` themselves.

Once fitted, a model is only read, by several threads at once: `fit` and `restore` set its attributes, all other methods
leave them and the tensors as they are. More items make another model (`with_items`) that shares what did not change.

Every ability is declared: what a model needs and reads in its `abilities`, what it can do besides in one of the
protocols `BranchModel`, `GatedModel`, `ExplainingModel`, `ComparingModel`, `FadingModel`, checked with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.settings import Config
from graphllmrec.text.config import TextConfig


@dataclass(frozen=True)
class Abilities:
    """What a model needs, what it reads where it is there, and which items it can rank."""

    needs_text: bool = False  # fit() requires task.text
    uses_text: bool = False  # reads item text where there is some
    uses_user_text: bool = False  # reads what users wrote where there is some
    uses_weights: bool = False  # learns more from clicks of a larger weight (Interactions.weight)
    needs_order: bool = False  # fit() refuses interactions without an order
    ranks_cold_items: bool = False  # gives an item without training clicks a score of its own

    @property
    def reads_text(self) -> bool:
        """Can the texts of items or users change anything?"""
        return self.needs_text or self.uses_text or self.uses_user_text


@dataclass(frozen=True)
class TextVectors:
    """Frozen language-model vectors of the catalogue (or of users)."""

    vectors: Tensor  # (num_items, text_dim) float32; rows of items without text are zero
    present: Tensor  # (num_items,) bool: has the item any text?
    texts: tuple[str | None, ...] | None = None  # (num_items,) the texts themselves, for models that adapt the encoder

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Queries:
    """B requests for a ranking: the user (row, -1 for an unknown one) and the history that is known."""

    users: Ints  # (B,)
    histories: Histories  # B rows, oldest first

    def __len__(self) -> int:
        return len(self.users)

    @staticmethod
    def of(known: Histories, users: Ints) -> Queries:
        """Queries of known users with their known histories."""
        return Queries(users, known.take(users))

    @staticmethod
    def anonymous(histories: Histories) -> Queries:
        """Queries of unknown users, of whom only a history is given."""
        return Queries(np.full(len(histories), -1, dtype=np.int64), histories)


class Logger(Protocol):
    """Receives what a fit reports. The command line draws bars from it, the run folder keeps it as log.jsonl."""

    def begin(self, name: str, total: int | None = None) -> None:
        """A new piece of work begins, of `total` steps where known."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done; `values` are shown (loss, ndcg@20, …)."""

    def log(self, event: str, **values: Any) -> None:
        """A fact to keep, e.g. an epoch's loss and validation metric; no times: a resumed fit must log the same."""


class SilentLogger:
    """Reports nowhere."""

    def begin(self, name: str, total: int | None = None) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Ignore."""

    def log(self, event: str, **values: Any) -> None:
        """Ignore."""


class CheckpointStore(Protocol):
    """Where a training leaves its checkpoints (train/checkpoint.py)."""

    every: float  # seconds between two checkpoints
    earlier: float  # seconds of training that earlier attempts and other runs have spared this one

    def find(self, stage: str, identity: str) -> tuple[Any, dict[str, Tensor]] | None:
        """Progress and tensors to go on from; None: start anew."""

    def save(self, stage: str, progress: Any, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint in one step."""


@dataclass(frozen=True)
class Task:
    """All that a model may see while fitting: train and validation part, text vectors, a seed. Never the test part."""

    split: Split
    text: TextVectors | None = None
    seed: int = 0
    logger: Logger = field(default_factory=SilentLogger)
    checkpoints: CheckpointStore | None = None  # of the run folder; None: keep nothing
    user_text: TextVectors | None = None  # (num_users rows) what users wrote in the train part; None: nothing known
    encoder: TextConfig | None = None  # which language model made the vectors, for models that adapt it


@runtime_checkable
class Model(Protocol):
    """What evaluation and the front door rely on."""

    name: ClassVar[str]  # as in models.registry.MODELS: "item-knn"
    config_class: ClassVar[type[Config]]
    abilities: Abilities
    config: Any

    def fit(self, task: Task) -> None:
        """Learn from `task`; tune on its validation part only."""

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items) float32; higher is better; only comparable within a row."""

    def state(self) -> dict[str, Tensor]:
        """Everything `restore` needs besides the config (goes into model.safetensors)."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""

    def with_items(self, text: TextVectors) -> Self:
        """A copy with len(text) more items, without clicks. Without text they score as unclicked items do."""


@runtime_checkable
class VectorModel(Model, Protocol):
    """A model whose score is a dot product."""

    def item_vectors(self) -> Tensor:
        """One vector per item (num_items, dim) float32."""

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query (B, dim) float32."""


@runtime_checkable
class BranchModel(Model, Protocol):
    """A model made of branches that can be scored alone."""

    @property
    def branches(self) -> tuple[str, ...]:
        """Their names: ("graph", "text")."""

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of one branch alone."""


@runtime_checkable
class GatedModel(Model, Protocol):
    """A model with a gate per item that can be read."""

    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,), the weight of the text, and the membership (num_items,) in every context; {} without any."""


@dataclass(frozen=True)
class RowExplanation:
    """Why an item got its score, in row numbers: additive shares, and the gate where there is one."""

    score: float
    shares: dict[str, float]  # per branch: "clicks", "text", … ; they add up to `score`
    gate: float | None = None  # γ of the item: weight of the text branch, in [0, 1]
    context: dict[str, float] | None = None  # soft membership: {"cold/tail": 0.8, …}
    history: list[tuple[int, float]] | None = None  # (item row, contribution to the score), largest first


@runtime_checkable
class ExplainingModel(Model, Protocol):
    """A model that explains its scores itself; the others are explained from their scores (models/explain.py)."""

    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """RowExplanation of the score of item row `item` for the first query."""


@runtime_checkable
class ComparingModel(Model, Protocol):
    """A model with a similarity of items of its own; that of the others is found in models/explain.py."""

    def similar_scores(self, item: int) -> Tensor:
        """Similarity (num_items,) of every item to item row `item`."""


@runtime_checkable
class FadingModel(Model, Protocol):
    """A model that reads a history with weights decay^(steps back)."""

    decay: float  # in [0, 1]; 1: equal weights
