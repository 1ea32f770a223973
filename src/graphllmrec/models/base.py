"""The protocol every model follows, and the few lines of shared mechanics.

A model is a settings object (`Config`) plus tensors. It sees a `Task` while fitting and answers `Queries` afterwards:

    model = EASE(EASEConfig(l2=100.0)); model.fit(task); scores = model.scores(queries)  # (B, num_items)

Most models are *vector models*: one vector per item, a light encoder that turns a query into a vector, score = dot
product. They implement `item_vectors` and `query_vectors`; `scores` follows. The others implement `scores` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints

if TYPE_CHECKING:
    from graphllmrec.text.encoder import TextConfig


class Config(BaseModel):
    """Settings of a model: validated, immutable, every unknown or impossible value reported at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class TextVectors:
    """Frozen language-model vectors of the catalogue (or of users)."""

    vectors: Tensor  # (num_items, dim) float32; rows of items without text are zero
    present: Tensor  # (num_items,) bool: has the item any text?
    texts: tuple[str | None, ...] | None = None  # (num_items,) the texts themselves, for models that adapt the encoder

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Queries:
    """B requests for a ranking: who asks (user row, -1 for somebody unknown) and what is known of them."""

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
        """Queries of people of whom only a history is known."""
        return Queries(np.full(len(histories), -1, dtype=np.int64), histories)


class Journal(Protocol):
    """Where a fit reports to. The command line draws bars from it, the run folder keeps it as log.jsonl."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps where known."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done; `values` are shown (loss, ndcg@20, …)."""

    def log(self, event: str, **values: Any) -> None:
        """A fact to keep, e.g. an epoch's loss and validation metric; no times: a resumed fit must log the same."""


class SilentJournal:
    """Reports nowhere."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Ignore."""

    def log(self, event: str, **values: Any) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Task:
    """All that a model may see while fitting: train and validation part, text vectors, a seed. Never the test part."""

    split: Split
    text: TextVectors | None = None
    seed: int = 0
    journal: Journal = field(default_factory=SilentJournal)
    checkpoints: Any = None  # train.checkpoint.Checkpoints of the run folder; None: keep nothing
    user_text: TextVectors | None = None  # (num_users rows) what users wrote in the train part; None: nothing known
    encoder: TextConfig | None = None  # which language model made the vectors, for models that adapt it


@runtime_checkable
class Model(Protocol):
    """What evaluation, the front door and the server rely on."""

    name: ClassVar[str]  # as in models.MODELS: "item-knn"
    config_class: ClassVar[type[Config]]
    needs_text: ClassVar[bool]  # fit() requires task.text
    ranks_cold_items: ClassVar[bool]  # can it place an item that nobody has clicked?
    config: Any

    def fit(self, task: Task) -> None:
        """Learn from `task`; tune on its validation part only."""

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items) float32; higher is better; only comparable within a row."""

    def state(self) -> dict[str, Tensor]:
        """Everything `restore` needs besides the config (goes into model.safetensors)."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""

    def add_items(self, text: TextVectors) -> None:
        """Append len(text) items that nobody has clicked. Without text they score as unclicked items do."""


@runtime_checkable
class VectorModel(Model, Protocol):
    """A model whose score is a dot product: what ANN search and the store can serve."""

    def item_vectors(self) -> Tensor:
        """One vector per item (num_items, dim) float32."""

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query (B, dim) float32."""


@dataclass(frozen=True)
class Explanation:
    """Why an item got its score: additive shares, and the gate where there is one."""

    score: float
    shares: dict[str, float]  # per branch: "clicks", "text", … ; they add up to `score`
    gate: float | None = None  # γ of the item: weight of the text branch, in [0, 1]
    context: dict[str, float] | None = None  # soft membership: {"cold/tail": 0.8, …}
    history: list[tuple[int, float]] | None = None  # (item row, contribution to the score), largest first


@runtime_checkable
class BranchModel(Model, Protocol):
    """A model made of branches that can be scored alone."""

    branches: ClassVar[tuple[str, ...]]  # ("graph", "text")

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of one branch alone."""


def recency_weights(histories: Histories, decay: float) -> NDArray[np.float32]:
    """Weight decay**steps_back of every history entry (nnz,); decay 1.0 forgets nothing."""
    return np.power(np.float32(decay), histories.steps_back.astype(np.float32)).astype(np.float32)


def history_matrix(histories: Histories, num_items: int, decay: float = 1.0) -> sp.csr_array:
    """Histories as a sparse (B, num_items) float32 matrix of recency weights; repeats add up."""
    weights = recency_weights(histories, decay)
    shape = (len(histories), num_items)
    matrix = sp.csr_array((weights, histories.items, histories.indptr), shape=shape, copy=True)
    matrix.sum_duplicates()  # sorts its arrays in place: without the copy, the histories would lose their order
    return matrix


def aggregate(histories: Histories, vectors: Tensor, weights: NDArray[np.float32]) -> Tensor:
    """Weighted sum (B, dim) of the vectors (num_items, dim) of each history, weights (nnz,); zeros for an empty one."""
    gathered = vectors.index_select(0, torch.from_numpy(histories.items)) * torch.from_numpy(weights)[:, None]
    out = torch.zeros(len(histories), vectors.shape[1], dtype=vectors.dtype)
    return out.index_add_(0, torch.from_numpy(histories.row_of_entry), gathered)  # (B, dim)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names that begin with `prefix`, to nest one model's state in another's."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `prefixed`: the tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def unit(vectors: Tensor) -> Tensor:
    """Rows (n, dim) of length 1; zero rows stay zero."""
    return torch.nn.functional.normalize(vectors, dim=1, eps=1e-12)
