"""GraphLLMRec: a graph branch and a text branch, each a recommender of its own, fused by a gate that can be read.

    score(q, i) = α_i [(1 - γ_i) graph(q, i) + γ_i text(q, i)] + β_i

- graph branch: LightGCN with inductive queries (models/lightgcn.py), trained with simulated cold start;
- text branch: whitened frozen language-model vectors and a residual network (fuse/text_branch.py);
- fusion "static": one weight, the best on validation; fusion "gate": γ, α, β per context (fuse/gate.py).

Everything is a dot product: the item vector is [α(1-γ) graph_i ; αγ text_i ; β], the query [graph_q ; text_q ; 1].

The gate learns from interactions that the branches have not seen, the validation part: on their own training clicks
both branches look better than they are, the graph branch most of all on the items it has memorised from few clicks, and
a gate trained there trusts it where it should not (docs/decisions). It starts as the tuned static weight. In every step
a share of all items plays cold: no clicks, no graph vector, so that new items have been rehearsed.

What is likely is not all that is wanted: cross-entropy knows that cold items are rarely clicked and ranks them low. So
the priors of the cold contexts are raised last, as far as the overall validation metric gives up no more than
`cold_budget` of itself.

Source: the GraphLLMRec design (item-level gates for cold/warm × popular/long-tail contexts). Equations are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.errors import TextError
from graphllmrec.fuse.gate import CONTEXTS, ContextGate, GateInputs, GateValues, head_degree_of, memberships
from graphllmrec.fuse.text_branch import TextBranch, TextBranchConfig
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.models.base import Config, Explanation, Queries, Task, TextVectors, prefixed, recency_weights, under
from graphllmrec.models.item_to_item import VALIDATION_USERS, tuning_users
from graphllmrec.models.lightgcn import LightGCN, LightGCNConfig
from graphllmrec.rng import torch_rng
from graphllmrec.train.loop import Stage, TrainedConfig, train

LIFTS = tuple(step / 4 for step in range(1, 21))  # added to the priors of cold contexts, tried in this order
WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)  # static weights of the text branch that are tried


class GateConfig(TrainedConfig):
    """Settings of the context gate's fit."""

    epochs: int = Field(15, ge=0, le=100_000, description="passes over the validation targets at most")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="validation targets per step")
    learning_rate: float = Field(0.05, gt=0, le=10, description="AdamW step size")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW decoupled weight decay")
    patience: int = Field(4, ge=1, le=100_000, description="stop after so many validations without a better one")
    cold_degree: float = Field(3.0, ge=0, le=1e6, description="clicks at which an item is half cold, half warm")
    cold_share: float = Field(0.1, ge=0, lt=1, description="items that play cold in a step")
    prior: float = Field(1.0, ge=0, le=1e6, description="pull towards the static weight, in targets")
    cold_budget: float = Field(0.02, ge=0, le=1, description="share of validation NDCG@20 given up to lift cold items")


class HybridConfig(Config):
    """Settings of the hybrid."""

    fusion: Literal["gate", "static"] = Field("gate", description="context gate, or one tuned weight")
    graph: LightGCNConfig = Field(default_factory=LightGCNConfig, description="settings of the graph branch")
    text: TextBranchConfig = Field(default_factory=TextBranchConfig, description="settings of the text branch")
    gate: GateConfig = Field(default_factory=GateConfig, description="settings of the context gate")


class Hybrid:
    """Graph and text behind one gate; a vector model whose branches can be scored alone."""

    name: ClassVar[str] = "hybrid"
    config_class: ClassVar[type[Config]] = HybridConfig
    needs_text: ClassVar[bool] = True
    ranks_cold_items: ClassVar[bool] = True
    branches: ClassVar[tuple[str, ...]] = ("graph", "text")

    def __init__(self, config: HybridConfig) -> None:
        self.config = config
        self.graph = LightGCN(config.graph)
        self.text = TextBranch(config.text)
        self.gate = ContextGate(num_features=2)
        self.degree = torch.empty(0)  # (num_items,) training clicks
        self.agreement = torch.empty(0)  # (num_items,) cosine of an item's text with that of its co-clicked items
        self.has_text = torch.empty(0, dtype=torch.bool)  # (num_items,)
        self.head_degree = 1.0

    def fit(self, task: Task) -> None:
        """Train the branches, then fuse them. Raises TextError without text, Interrupted when stopped."""
        if task.text is None:
            raise TextError("hybrid needs item text, and this data has none: add a title column to the items table")
        if len(task.text) != task.split.num_items:
            raise TextError(f"{len(task.text):,} text vectors for {task.split.num_items:,} items")
        split = task.split
        self.graph.fit(task, "graph")
        self.text.fit(task, "text")
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        self.degree, self.has_text = graph.item_degree.float(), task.text.present
        self.head_degree = head_degree_of(split.item_degree())
        self.agreement = _agreement(graph, self.text.items)
        if not len(split.valid):
            self.gate.set_static(0.5)
            task.journal.log("fusion", weight=0.5, reason="no validation part to tune on")
            return
        self._tune_static(task)
        if self.config.fusion == "gate":
            self._lift_cold(task, self._fit_gate(task))

    def _tune_static(self, task: Task) -> None:
        """The weight of the text branch that ranks validation targets best."""
        from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

        users, found = tuning_users(task.split, task.seed, VALIDATION_USERS), {}
        task.journal.stage("tune static weight", len(WEIGHTS))
        for weight in WEIGHTS:
            self.gate.set_static(weight)
            found[weight] = validation_metric(self, task.split, users=users)
            task.journal.advance(1, **{"ndcg@20": found[weight]})
        best = max(found, key=lambda weight: found[weight])
        self.gate.set_static(best)
        task.journal.log("static-weight", weight=best, tried={str(weight): found[weight] for weight in WEIGHTS})

    def _fit_gate(self, task: Task) -> float:
        """Cross-entropy of the validation targets among all items, from the static gate on. Returns the best metric."""
        from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

        split, config, gate = task.split, self.config.gate, self.gate
        start = {name: value.detach().clone() for name, value in gate.named_parameters()}
        known, targets = split.known("valid"), split.targets("valid")
        rows_user, rows_item = targets.row_of_entry, torch.from_numpy(targets.items)
        inputs, cold_item = self._inputs(), self._cold_item()
        users = tuning_users(split, task.seed, VALIDATION_USERS)

        def loss(epoch: int, step: int, rows: Ints) -> Tensor:
            queries = Queries.of(known, rows_user[rows])
            draw = torch.rand(split.num_items, generator=torch_rng(task.seed, "gate/cold", epoch, step))
            cold = draw < config.cold_share
            with torch.no_grad():
                graph, text = self._branch_scores(queries, hidden=cold)
            scores = _fused(gate(inputs.where_cold(cold, cold_item)), graph, text)  # (B, num_items)
            scores = scores.masked_fill(_seen(queries.histories, split.num_items), -torch.inf)
            drift = sum((value - start[name]).square().sum() for name, value in gate.named_parameters())
            return F.cross_entropy(scores, rows_item[rows]) + config.prior * drift / (2 * len(rows_item))

        def validate() -> float:
            return validation_metric(self, split, users=users)

        branches = (*self.graph.state().values(), *self.text.state().values())
        return train(Stage("gate", gate, len(rows_item), loss, validate, config, inputs=branches), task)

    def _lift_cold(self, task: Task, before: float) -> None:
        """Raise the priors of the cold contexts as far as the budget allows, if validation has cold targets at all."""
        from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

        cold_targets = int((self.degree.numpy()[task.split.valid.item] <= self.config.gate.cold_degree).sum())
        users, found, lift = tuning_users(task.split, task.seed, VALIDATION_USERS), {"0.0": before}, 0.0
        start = self.gate.prior.detach().clone()
        cold = torch.tensor([name.startswith("cold") for name in CONTEXTS]).float()
        task.journal.stage("lift cold items", len(LIFTS))
        for candidate in LIFTS if cold_targets else ():
            self.gate.prior.data.copy_(start + candidate * cold)
            found[str(candidate)] = value = validation_metric(self, task.split, users=users)
            task.journal.advance(1, **{"ndcg@20": value})
            if value < before * (1 - self.config.gate.cold_budget):
                break
            lift = candidate
        self.gate.prior.data.copy_(start + lift * cold)
        task.journal.log("cold-lift", lift=lift, tried=found, cold_targets=cold_targets)

    def _inputs(self) -> GateInputs:
        contexts = memberships(self.degree, self.config.gate.cold_degree, self.head_degree)
        features = torch.stack([torch.log1p(self.degree) / 5.0, self.agreement], dim=1)
        return GateInputs(contexts, features, self.degree > 0, self.has_text)

    def _cold_item(self) -> GateInputs:
        """One item that nobody has clicked, as the gate sees it."""
        contexts = memberships(torch.zeros(1), self.config.gate.cold_degree, self.head_degree)
        clicked, has_text = torch.tensor([False]), torch.tensor([True])
        return GateInputs(contexts, torch.zeros(1, 2), clicked, has_text)

    @torch.no_grad()
    def gate_table(self) -> tuple[GateValues, Tensor]:
        """γ, α, β and context memberships (num_items, 4) of every item."""
        inputs = self._inputs()
        return self.gate(inputs), inputs.contexts

    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,) and the membership (num_items,) in every context, for reports."""
        values, contexts = self.gate_table()
        return values.gamma, {name: contexts[:, place] for place, name in enumerate(CONTEXTS)}

    def _branch_scores(self, queries: Queries, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(graph, text) scores, each (B, num_items); the graph part of `hidden` and of unclicked items is empty."""
        items = self._graph_items()
        graph = self.graph.query_vectors(queries) @ (items if hidden is None else items * ~hidden[:, None]).T
        return graph, self.text.query_vectors(queries.histories) @ self.text.items.T

    def _graph_items(self) -> Tensor:
        return self.graph.items * (self.degree > 0)[:, None]  # (num_items, dim + 1)

    def item_vectors(self) -> Tensor:
        """[α(1-γ) graph ; αγ text ; β] (num_items, dim + 1 + dims + 1)."""
        values, _ = self.gate_table()
        graph = (values.scale * (1 - values.gamma))[:, None] * self._graph_items()
        text = (values.scale * values.gamma)[:, None] * self.text.items
        return torch.cat([graph, text, values.prior[:, None]], dim=1)

    def query_vectors(self, queries: Queries) -> Tensor:
        """[graph ; text ; 1] (B, dim + 1 + dims + 1)."""
        text = self.text.query_vectors(queries.histories)
        return torch.cat([self.graph.query_vectors(queries), text, torch.ones(len(text), 1)], dim=1)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.item_vectors().T

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of "graph" or "text" alone, without gate, scale or prior."""
        if branch == "graph":
            return self.graph.scores(queries)
        if branch == "text":
            return self.text.query_vectors(queries.histories) @ self.text.items.T
        raise ValueError(f"unknown branch {branch!r}; known: {', '.join(self.branches)}")

    @torch.no_grad()
    def explain(self, queries: Queries, item: int) -> Explanation:
        """Exact shares of one query's score: clicks, text and context prior add up; so do the history's parts."""
        values, contexts = self.gate_table()
        gamma, scale, prior = (float(part[item]) for part in (values.gamma, values.scale, values.prior))
        graph_item = self._graph_items()[item] * scale * (1 - gamma)  # (dim + 1,)
        text_item = self.text.items[item] * scale * gamma  # (dims,)
        clicks = float(self.graph.query_vectors(queries)[0] @ graph_item)
        text = float(self.text.query_vectors(queries.histories)[0] @ text_item)
        history = self._history_parts(queries, graph_item, text_item, text)
        names = {name: float(contexts[item, place]) for place, name in enumerate(CONTEXTS)}
        shares = {"clicks": clicks, "text": text, "context": prior}
        return Explanation(clicks + text + prior, shares, gamma, names, history)

    def _history_parts(
        self, queries: Queries, graph_item: Tensor, text_item: Tensor, text_share: float
    ) -> list[tuple[int, float]]:
        """(item row, contribution) of the history's items to clicks and text together, largest first."""
        rows = torch.from_numpy(queries.histories.items)
        weights = torch.from_numpy(self.graph.history_weights(queries))
        clicks = weights * (self.graph.fold.index_select(0, rows) @ graph_item[:-1])
        faded = torch.from_numpy(recency_weights(queries.histories, self.text.decay))
        words = faded * (self.text.items.index_select(0, rows) @ text_item)
        total = float(words.sum())
        parts = clicks + (words * (text_share / total) if abs(total) > 1e-9 else 0 * words)
        found: dict[int, float] = {}
        for row, part in zip(rows.tolist(), parts.tolist(), strict=True):
            found[row] = found.get(row, 0.0) + part
        return sorted(found.items(), key=lambda entry: -entry[1])

    def similar_scores(self, item: int) -> Tensor:
        """Cosine (num_items,) in each branch, mixed by the item's own gate."""
        values, _ = self.gate_table()
        gamma = float(values.gamma[item])
        graph = F.normalize(self._graph_items()[:, :-1], dim=1, eps=1e-12)
        text = F.normalize(self.text.items, dim=1, eps=1e-12)
        return (1 - gamma) * (graph @ graph[item]) + gamma * (text @ text[item])

    def state(self) -> dict[str, Tensor]:
        """Both branches, the gate and what it knows of the items."""
        own = {"degree": self.degree, "agreement": self.agreement, "has_text": self.has_text}
        own["head_degree"] = torch.tensor(self.head_degree, dtype=torch.float64)
        parts = prefixed("graph", self.graph.state()) | prefixed("text", self.text.state())
        return own | parts | prefixed("gate", self.gate.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.graph.restore(under("graph", state))
        self.text.restore(under("text", state))
        self.gate.load_state_dict(under("gate", state))
        self.degree, self.agreement, self.has_text = state["degree"], state["agreement"], state["has_text"]
        self.head_degree = float(state["head_degree"])

    def add_items(self, text: TextVectors) -> None:
        """Append items by their text: cold, graph part empty, gate open to the text."""
        self.graph.add_items(text)
        self.text.items = torch.cat([self.text.items, self.text.vectors_of(text)])
        nothing = torch.zeros(len(text))
        self.degree, self.agreement = torch.cat([self.degree, nothing]), torch.cat([self.agreement, nothing])
        self.has_text = torch.cat([self.has_text, text.present])


def _fused(values: GateValues, graph: Tensor, text: Tensor) -> Tensor:
    """α [(1 - γ) graph + γ text] + β for scores (B, num_items)."""
    return values.scale * ((1 - values.gamma) * graph + values.gamma * text) + values.prior


def _seen(histories: Histories, num_items: int) -> Tensor:
    """Mask (B, num_items) of what each query already knows."""
    seen = torch.zeros(len(histories), num_items, dtype=torch.bool)
    seen[torch.from_numpy(histories.row_of_entry), torch.from_numpy(histories.items)] = True
    return seen


@torch.no_grad()
def _agreement(graph: Bipartite, text: Tensor) -> Tensor:
    """Cosine (num_items,) of an item's text with the mean text of what its users clicked besides; 0 if unknown."""
    around = graph.to_items @ (graph.to_users @ text)  # (num_items, dims), the item itself included
    others = around - _row_squares(graph.to_items)[:, None] * text  # without what comes back to the item itself
    known = others.norm(dim=1) > 1e-5 * around.norm(dim=1)  # below are rounding errors: its users clicked nothing else
    return F.cosine_similarity(text, others * known[:, None], dim=1, eps=1e-8)


def _row_squares(matrix: Tensor) -> Tensor:
    """Sum of squares per row (n,) of a sparse CSR matrix."""
    sums = torch.zeros(matrix.shape[0])
    rows = torch.repeat_interleave(torch.arange(matrix.shape[0]), matrix.crow_indices().diff())
    return sums.index_add(0, rows, matrix.values().square())
