"""The text branch: frozen language-model vectors, whitened, then refined by a small residual network.

    x_i = W(text_i) / |W(text_i)|                              W: PCA whitening (text/whiten.py)
    t_i = (x_i + W2 gelu(W1 x_i)) / |…|                        W2 starts at zero: untrained, this is text-kNN
    q   = Σ_k decay^(steps back of k) t_k / |…|                a user's text is the history's
    score(q, i) = q · t_i / std_j(q · t_j)                     in standard deviations over the catalogue

Trained with in-batch InfoNCE on (history, next click), whose negatives come in proportion to their popularity: affinity
is learned, popularity is not, so that items nobody clicks keep the place their words give them. The standard deviation
has a closed form, sqrt(qᵀ C q) with C the covariance of the t_j, so the score stays a dot product.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.graph.propagate import sparse_product
from graphllmrec.models.base import Queries, Task, TextVectors, aggregate, prefixed, recency_weights, under, unit
from graphllmrec.models.item_to_item import VALIDATION_USERS, tuning_users
from graphllmrec.rng import torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.batches import Averages, NextClicks
from graphllmrec.train.loop import Stage, TrainedConfig, train
from graphllmrec.train.losses import in_batch_softmax_loss


class TextBranchConfig(TrainedConfig):
    """Settings of the text branch."""

    epochs: int = Field(10, ge=0, le=100_000, description="passes over the training data at most")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="AdamW step size")
    dims: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    hidden: int = Field(256, ge=1, le=65_536, description="width of the residual network")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of hidden units dropped in training")
    temperature: float = Field(0.1, gt=0, le=100, description="temperature of InfoNCE")
    decay: float = Field(0.7, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")


class TextBranch:
    """Item vectors from text, query vectors from the texts of a history."""

    def __init__(self, config: TextBranchConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.net = nn.Module()
        self.items = torch.empty(0, 0)  # (num_items, dims) unit length; zero without text
        self.spread = torch.empty(0, 0)  # (dims, dims) covariance of `items` over items with text
        self.decay = 1.0

    def fit(self, task: Task, stage: str = "text") -> None:
        """Whiten, then refine on next clicks, early stopping on validation. `task.text` must be there."""
        assert task.text is not None
        split = task.split
        self.decay = self.config.decay if split.ordered else 1.0
        self.whitening = Whitening.fit(task.text, self.config.dims)
        start = unit(self.whitening.apply(task.text))  # (num_items, dims)
        self.net = net = _Residual(start.shape[1], self.config.hidden, task.seed)
        clicks = NextClicks(split.train.histories(split.num_users), split.ordered, self.config.max_history)

        def loss(epoch: int, step: int, rows: Ints) -> Tensor:
            averages = Averages.of(clicks.histories(rows), split.num_items, self.decay)
            keep = _mask(len(start), self.config, task.seed, stage, epoch, step)
            items = net(start, keep)
            query = unit(sparse_product(averages.matrix, averages.transposed, items))  # (B, dims)
            scores = query @ items.index_select(0, torch.from_numpy(clicks.target[rows])).T  # (B, B)
            return in_batch_softmax_loss(scores / self.config.temperature, torch.from_numpy(clicks.target[rows]))

        def validate() -> float:
            from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

            self._take_over(start, task.text)
            users = tuning_users(split, task.seed, VALIDATION_USERS)
            return validation_metric(_Alone(self), split, users=users)  # type: ignore[arg-type] # scores() is enough

        check = validate if len(split.valid) else None
        train(Stage(stage, net, len(clicks), loss, check, self.config, inputs=(start,)), task)
        self._take_over(start, task.text)

    @torch.no_grad()
    def _take_over(self, start: Tensor, text: TextVectors | None) -> None:
        assert text is not None
        self.items = self.net(start).detach()
        present = self.items[text.present]
        centred = present - present.mean(0)
        self.spread = centred.T @ centred / max(len(present), 1)

    def query_vectors(self, histories: Histories) -> Tensor:
        """Query vectors (B, dims) scaled so that a score is in standard deviations; zero for an empty history."""
        query = unit(aggregate(histories, self.items, recency_weights(histories, self.decay)))  # (B, dims)
        std = ((query @ self.spread) * query).sum(1, keepdim=True).clamp_min(0).sqrt()  # (B, 1)
        return torch.where(std > 1e-6, query / std.clamp_min(1e-6), 0.0)

    @torch.no_grad()
    def vectors_of(self, text: TextVectors) -> Tensor:
        """Vectors (n, dims) of new items by their text; zero without text."""
        assert self.whitening is not None, "vectors_of() before fit()"
        out: Tensor = self.net(unit(self.whitening.apply(text)))
        return out

    def state(self) -> dict[str, Tensor]:
        """Item vectors and what new items need: the whitening and the network."""
        assert self.whitening is not None, "state() before fit()"
        own = {"items": self.items, "spread": self.spread, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        return own | prefixed("whitening", self.whitening.state()) | prefixed("net", self.net.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.whitening = Whitening.restore(under("whitening", state))
        self.items, self.spread, self.decay = state["items"], state["spread"], float(state["decay"])
        self.net = _Residual(self.items.shape[1], self.config.hidden, seed=0)
        self.net.load_state_dict(under("net", state))
        self.net.eval()


class _Residual(nn.Module):
    """t = unit(x + W2 gelu(W1 x)); zero rows stay zero because W1 and W2 have no bias."""

    def __init__(self, dims: int, hidden: int, seed: int) -> None:
        super().__init__()
        start = torch.randn(hidden, dims, generator=torch_rng(seed, "text-branch/start"))
        self.inner = nn.Parameter(start / dims**0.5 * 2)
        self.outer = nn.Parameter(torch.zeros(dims, hidden))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (n, dims) unit rows, keep (n, hidden) dropout mask -> (n, dims) unit rows."""
        hidden = F.gelu(x @ self.inner.T)  # (n, hidden)
        return unit(x + (hidden if keep is None else hidden * keep) @ self.outer.T)


class _Alone:
    """The branch as a model of its own, for validation."""

    name = "text branch"

    def __init__(self, branch: TextBranch) -> None:
        self.branch = branch

    def scores(self, queries: Queries) -> Tensor:
        return self.branch.query_vectors(queries.histories) @ self.branch.items.T  # (B, num_items)


def _mask(num_items: int, config: TextBranchConfig, seed: int, stage: str, epoch: int, step: int) -> Tensor | None:
    if not config.dropout:
        return None
    drawn = torch.rand(num_items, config.hidden, generator=torch_rng(seed, f"{stage}/dropout", epoch, step))
    return (drawn >= config.dropout) / (1 - config.dropout)
