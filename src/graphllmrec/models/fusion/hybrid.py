"""GraphLLMRec: a graph branch and a text branch, each a recommender of its own, fused by a gate that can be read.

    score(q, i) = Σ_e w_e(q, i) z_e(q, i) + β_i             e: the experts of both branches, z-scored per query

- graph branch: models of clicks and of the click graph, by default SIGN (models/graph/sign.py; LightGCN and GraphSAGE
  are others), transitions, and item-kNN, which reads no text: a fallback for items with misleading text;
- text branch: nearest neighbours by item text, and by the reviews of a user;
- fusion "static": one weight per expert, tuned on validation (this is z-sum, models/fusion/z_sum.py);
- fusion "static+lift": static, and a constant for cold items and one for new items, chosen as those of the gate are;
- fusion "static+prior": static, and p log(1 + clicks), p tuned on validation. What a gate gains over these two is not
  what a constant, or popularity, would have gained;
- fusion "degree": "gate" without any feature but the item's clicks, in its contexts and as a slope;
- fusion "gate": weights and biases per context of the item, new, or cold or warm × tail or head, changed by features of
  item and query (nn/gate.py).

The gate learns from interactions that no expert was trained on, the validation part: on their own training clicks the
experts score higher than on others, most of all for rarely clicked items (docs/decisions/007). The epoch at which an
expert stops, recency decays and the static weights are chosen on the same validation part. The gate starts as the
static weights and minimises the cross-entropy of the validation targets among all items. Then it is checked against
them: FOLDS gates are fitted, each without a part of the users; unless they rank the targets of those users better
than the static weights do, the static weights stay. Targets are weighted by the drift of contexts towards the time
after validation (models/fusion/gate_fitting.py).

Tuning on clicked items may leave nothing for the text. A static gate still gives new items the least weight of the text
that z-sum gives them, a learned one starts above zero; and where no expert with weight distinguishes any items, as for
a history of new items, the others are summed (models/fusion/z_sum.py).

Cross-entropy favours popular items, so the cold contexts, and items without any click, get a bias last, limited by
`cold_budget`, the share of the validation metric that it may cost. Where validation ranks new items worse than the
static weights do, they get these weights back, and a bias with which they keep up, as long as all targets together rank
no worse than under the static weights (`cold_budget = 0`: neither of the two).

In data of clicked items alone, each item without a training click is a target of some user, and the more its context is
lifted the better. A real catalogue also holds items without any click. So decoys (text/decoys.py), `decoys` times
as many as there are items, are candidates while weights, biases and prior are found; they are no part of the model.

Source: the GraphLLMRec design (item-level gates for cold/warm × popular/long-tail contexts). Equations are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.evaluation.strata import gate_summary
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.models.fusion.gate_fitting import (
    NEW,
    Folds,
    GateTargets,
    build_gate_targets,
    context_drift,
    fit_gate,
    keep_up_new,
    lift_cold,
    out_of_fold,
    query_features,
    tune_prior,
)
from graphllmrec.models.fusion.z_sum import ZSum, ZSumConfig
from graphllmrec.nn.gate import CONTEXTS, LEARNABLE, NOTHING, ContextGate, GateInputs, head_degree, memberships
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, RowExplanation, Task, TextVectors
from graphllmrec.settings import Condition, Config
from graphllmrec.text.decoys import decoy_vectors
from graphllmrec.text.whiten import Whitening, require_text
from graphllmrec.train.device import on_cpu, resolve_device
from graphllmrec.train.loop import TrainedConfig
from graphllmrec.train.validation import settle


class GateConfig(TrainedConfig):
    """Settings of the context gate's fit."""

    epochs: int = Field(4, ge=0, le=100_000, description="passes over the validation targets")
    min_steps: int = Field(100, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="validation targets per step")
    learning_rate: float = Field(0.05, gt=0, le=10, description="AdamW step size")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="course of the step size; cosine ends at 0")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW decoupled weight decay")
    cold_degree: float = Field(3.0, ge=0, le=1e6, description="clicks at which an item is half cold, half warm")
    l2: float = Field(10.0, ge=0, le=1e6, description="penalty on the distance from the static weights, in targets")
    tune_users: int = Field(10_000, ge=1, le=10_000_000, description="validation users to fit the gate on, at most")
    drift: bool = Field(True, description="weight validation targets by the drift of contexts over time")
    cold_budget: float = Field(0.005, ge=0, le=1, description="share of validation NDCG@20 to give up for cold items")
    decoys: float = Field(
        0.3, ge=0, le=10, description="unclicked items among the candidates of the fit, as a share of the catalogue"
    )

    def conditions(self) -> Iterator[Condition]:
        """The validation part is what the gate is fitted on, so nothing is left to stop the fit by."""
        yield Condition("patience validate_every", False, "a validation part, which the gate itself is fitted on")


_READ_BY_PRIOR = {"device", "cold_degree", "tune_users", "drift", "decoys"}
READ_WITH = {  # settings of the gate that the other fusions read
    "static": set(GateConfig.model_fields),  # refused as a whole
    "static+lift": _READ_BY_PRIOR | {"cold_budget"},
    "static+prior": _READ_BY_PRIOR,
}


class HybridConfig(Config):
    """Settings of the hybrid."""

    fusion: Literal["gate", "degree", "static", "static+lift", "static+prior"] = Field(
        "gate",
        description="context gate, the same by clicks alone, or one tuned weight per expert, with a constant for cold "
        "items or a prior",
    )
    graph: tuple[str, ...] = Field(
        ("sign", "item-knn", "transitions"), min_length=1, max_length=8, description="models of the graph branch"
    )
    text: tuple[str, ...] = Field(("text-knn",), min_length=1, max_length=8, description="models of the text branch")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of single models, e.g. {sign = {epochs = 20}}"
    )
    dense_items: int = Field(
        20_000, ge=0, le=10_000_000, description="items up to which ease and text-ease are used; item-knn for more"
    )
    gate: GateConfig = Field(default_factory=GateConfig, description="settings of the context gate")

    @model_validator(mode="after")
    def _experts_are_sound(self) -> Self:
        try:
            self.as_sum()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        stacks = (Hybrid.name, Stack.name)
        if nested := [name for name in (*self.graph, *self.text) if name in stacks]:
            raise ValueError(f"a stack cannot be an expert of itself: {', '.join(nested)}")
        return self

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield from self.as_sum().conditions()
        yield Condition("gate", self.fusion != "static", 'fusion = "gate"')

    def idle(self) -> dict[str, str]:
        """With the settings of the gate that a static sum does not read."""
        unread = set(GateConfig.model_fields) - READ_WITH.get(self.fusion, set(GateConfig.model_fields))
        return super().idle() | {
            f"gate.{name}": 'fusion = "gate"' for name in sorted(unread) if self.gate.changed(name)
        }

    def as_sum(self) -> ZSumConfig:
        """Settings of the static sum of all experts."""
        return ZSumConfig(experts=(*self.graph, *self.text), settings=self.settings, dense_items=self.dense_items)


class Hybrid:
    """Graph and text fused by one gate; both branches can be scored alone."""

    name: ClassVar[str] = "hybrid"
    config_class: ClassVar[type[Config]] = HybridConfig
    abilities = Abilities(needs_text=True, uses_user_text=True, ranks_cold_items=True)
    branches: ClassVar[tuple[str, ...]] = ("graph", "text")

    def __init__(self, config: HybridConfig) -> None:
        self.config = config
        self.sum = ZSum(config.as_sum())
        self.abilities = replace(type(self).abilities, uses_weights=self.sum.abilities.uses_weights)
        self.gate = ContextGate(len(config.as_sum().experts), len(ITEM_FEATURES), len(QUERY_FEATURES))
        self.degree = torch.empty(0)  # (num_items,) training clicks
        self.agreement = torch.empty(0)  # (num_items,) cosine of an item's text with that of its co-clicked items
        self.num_words = torch.empty(0)  # (num_items,) of its text
        self.centre = torch.zeros(len(ITEM_FEATURES))  # of the item features
        self.query_centre = torch.zeros(len(QUERY_FEATURES))
        self.head_degree = 1.0
        self.prior = 0.0  # p

    def fit(self, task: Task) -> None:
        """Train the experts, then fuse them. Raises TextError without text, Interrupted when stopped."""
        text = require_text(task, self.name)
        self.sum.fit(task)
        self._set_item_features(task.split, text)
        self.gate = ContextGate(len(self.sum.branches), len(ITEM_FEATURES), len(QUERY_FEATURES))
        self.gate.set_static(self.sum.weights)
        self._keep_text_for_new(self.gate, NOTHING)
        if self.config.fusion != "static":
            found = settle(task, "hybrid/gate", lambda: self._fitted_gate(task, text), None)
            if found is not None and found["experts"] == list(self.sum.branches):
                self.query_centre, self.prior = torch.tensor(found["query_centre"]), found.get("prior", 0.0)
                self.gate.restore({name: torch.tensor(value) for name, value in found["gate"].items()})

    def _fitted_gate(self, task: Task, text: TextVectors) -> dict[str, Any]:
        """The fitted gate and prior as JSON values."""
        self._fit_gate(task, text)
        gate = {name: tensor.tolist() for name, tensor in self.gate.state_dict().items()}
        centre = self.query_centre.tolist()
        return {"experts": list(self.sum.branches), "query_centre": centre, "prior": self.prior, "gate": gate}

    @torch.no_grad()
    def _keep_text_for_new(self, gate: ContextGate, least: float) -> None:
        """Give a static gate the weights of z-sum for items without clicks, in their context; each at least `least`."""
        weights = self.sum.cold_weights()
        if weights is not self.sum.weights:
            gate.log_weight[NEW] = (weights / weights.sum()).clamp_min(least).log()

    def _set_item_features(self, split: Split, text: TextVectors) -> None:
        """What the gate reads of items."""
        self.degree = torch.from_numpy(split.item_degree()).float()
        self.head_degree = head_degree(split.item_degree())
        text_features = unit(Whitening.fit(text, 200).apply(text))
        self.agreement = _agreement(Bipartite.of(split.train, split.num_users, split.num_items), text_features)
        self.num_words = _count_words(text)
        self.centre = self._item_features().mean(0)

    def _fit_gate(self, task: Task, text: TextVectors) -> None:
        """Find what the fusion adds to the static weights, with decoys among the candidates."""
        config, device = self.config.gate, resolve_device(self.config.gate.device)
        board = self._with_decoys(text, task.seed)
        inputs, gate = board.inputs(), self.gate.to(device)
        seen = replace(task, split=replace(task.split, num_items=len(board.degree)))
        targets = build_gate_targets(board.sum, seen, board.degree, self._places("text"), inputs.contexts, config)
        self.query_centre = targets.features.mean(0)
        drift = context_drift(task.split, config.cold_degree) if config.drift else torch.ones(len(CONTEXTS))
        targets = targets.centred(self.query_centre).weighted(inputs.contexts, drift).to(device)
        inputs = inputs.to(device)
        if self.config.fusion == "degree":  # what is 0 for all leaves its slope at 0
            targets = replace(targets, features=torch.zeros_like(targets.features))
            inputs = replace(inputs, features=inputs.features * inputs.features.new_tensor([1.0, 0.0, 0.0]))
        if self.config.fusion == "static+prior":
            self.prior, tried = tune_prior(gate, inputs, targets, board.degree.log1p().to(device))
            task.logger.log("prior-tuned", prior=self.prior, tried=tried)
        else:
            is_learned = self.config.fusion in ("gate", "degree")
            learned = self._learned(gate, inputs, targets, drift, task) if is_learned else None
            everyone = torch.arange(len(targets.count), device=device)  # static weights are fitted on no single target
            static, (gate, folds) = deepcopy(gate), learned or (gate, Folds([deepcopy(gate)], [everyone]))
            lifted = lift_cold(gate, inputs, targets, config.cold_budget, folds)
            kept_up = keep_up_new(gate, static, inputs, targets, folds) if config.cold_budget else None
            task.logger.log("cold-lift", **lifted, kept_up=kept_up)
        self.gate = on_cpu(gate)

    def _learned(
        self, static: ContextGate, inputs: GateInputs, targets: GateTargets, drift: Tensor, task: Task
    ) -> tuple[ContextGate, Folds] | None:
        """The gate, fitted from the static weights on, and its folds; None where static ranks held-out users better."""
        config, gate = self.config.gate, deepcopy(static)
        gate.set_static(self.sum.weights, LEARNABLE)
        self._keep_text_for_new(gate, LEARNABLE)
        folds = out_of_fold(gate, inputs, targets, config, task)
        before, held_out = targets.mean(targets.ndcg(static, inputs)), targets.mean(folds.ndcg(inputs, targets))
        about = dict(zip(CONTEXTS, drift.tolist(), strict=True))
        task.logger.log("gate-or-static", gate=held_out, static=before, kept=held_out > before, drift=about)
        if held_out <= before:
            return None
        fit_gate("gate", gate, inputs, targets, config, task, watch=lambda: self._summarise(gate))
        return gate, folds

    def _with_decoys(self, text: TextVectors, seed: int) -> Self:
        """The model with items that nobody clicks, or itself where there are to be none."""
        number = min(round(self.config.gate.decoys * len(self.degree)), MOST_DECOYS)
        return self.with_items(decoy_vectors(text, number, seed)) if number else self

    @torch.no_grad()
    def _summarise(self, gate: ContextGate) -> dict[str, Any]:
        """Figures of the gate for the log of every epoch."""
        inputs = self.inputs().to(gate.log_weight.device)
        contexts = {name: inputs.contexts[:, place].cpu() for place, name in enumerate(CONTEXTS)}
        return {"gate": gate_summary(self._gamma(gate, inputs).cpu(), self.degree, contexts)}

    def _item_features(self) -> Tensor:
        """(num_items, 3): ITEM_FEATURES."""
        return torch.stack([self.degree.log1p() / 5, self.agreement, self.num_words.log1p() / 5], dim=1)

    def inputs(self) -> GateInputs:
        """Contexts and features of all items."""
        contexts = memberships(self.degree, self.config.gate.cold_degree, self.head_degree)
        return GateInputs(contexts, self._item_features() - self.centre, self.prior * self.degree.log1p())

    def _gamma(self, gate: ContextGate, inputs: GateInputs) -> Tensor:
        weights, _ = gate.weigh_items(inputs)
        return weights[:, self._places("text")].sum(1) / weights.sum(1)

    def _places(self, branch: str) -> list[int]:
        """Row numbers of the experts of a branch; an expert that took another's place reads no text."""
        reads = branch == "text"
        return [place for place, name in enumerate(self.sum.branches) if (name in self.config.text) == reads]

    @torch.no_grad()
    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,) and the membership (num_items,) in every context, for reports."""
        inputs = self.inputs()
        return self._gamma(self.gate, inputs), {name: inputs.contexts[:, place] for place, name in enumerate(CONTEXTS)}

    @torch.no_grad()
    def _parts(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """w_e z_e (E, B, num_items) of every expert, and β (B, num_items)."""
        experts = torch.stack([self.sum.branch_scores(queries, name) for name in self.sum.branches])
        weights, bias = self.gate.weigh_items(self.inputs())
        features = query_features(queries, experts, self.degree, self._places("text")) - self.query_centre
        factors = self.gate.query_factors(features)  # (B, E)
        silent = self.sum.silent_rows(experts)  # (B,)
        spare = experts[:, silent] * self.sum.spare_weights()[:, None, None]
        parts = experts.mul_(weights.T[:, None, :]).mul_(factors.T[:, :, None])
        parts[:, silent] = spare
        return parts, bias * ~silent[:, None]

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        parts, bias = self._parts(queries)
        return parts.sum(0) + bias

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of "graph" or "text" alone: its experts by their static weights."""
        if branch not in self.branches:
            raise ValueError(f"unknown branch {branch!r}; known: {', '.join(self.branches)}")
        total = torch.zeros(len(queries), len(self.degree))
        places = self._places(branch)
        weights = self.sum.weights[places]
        weights = weights if float(weights.sum()) > 0 else torch.ones(len(places))
        for weight, place in zip(weights, places, strict=True):
            total = total + weight * self.sum.branch_scores(queries, self.sum.branches[place])
        return total

    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """Exact shares of the first query's score: clicks, text, the context's bias; γ and contexts of the item."""
        parts, bias = self._parts(queries)
        found = parts[:, 0, item]
        graph, text = (float(found[self._places(branch)].sum()) for branch in self.branches)
        shares = {"clicks": graph, "text": text, "context": float(bias[0, item])}
        gamma, contexts = self.gate_values()
        names = {name: float(membership[item]) for name, membership in contexts.items()}
        return RowExplanation(sum(shares.values()), shares, float(gamma[item]), names)

    def state(self) -> dict[str, Tensor]:
        """The experts with their static weights, the gate and its item features."""
        own = {"degree": self.degree, "agreement": self.agreement, "num_words": self.num_words, "centre": self.centre}
        own |= {"query_centre": self.query_centre, "head_degree": torch.tensor(self.head_degree, dtype=torch.float64)}
        own |= {"prior": torch.tensor(self.prior, dtype=torch.float64)} if self.prior else {}
        return own | prefixed("sum", self.sum.state()) | prefixed("gate", self.gate.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.sum.restore(under("sum", state))
        self.gate = ContextGate(len(self.sum.branches), len(ITEM_FEATURES), len(QUERY_FEATURES))
        self.gate.restore(under("gate", state))
        self.degree, self.agreement, self.num_words = state["degree"], state["agreement"], state["num_words"]
        self.centre, self.query_centre = state["centre"], state["query_centre"]
        self.head_degree, self.prior = float(state["head_degree"]), float(state.get("prior", 0.0))

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: cold, without clicks."""
        more, nothing = copy(self), torch.zeros(len(text))
        more.sum = self.sum.with_items(text)
        more.degree, more.agreement = torch.cat([self.degree, nothing]), torch.cat([self.agreement, nothing])
        more.num_words = torch.cat([self.num_words, _count_words(text)])
        return more


class StackConfig(HybridConfig):
    """Settings of the stack."""

    graph: tuple[str, ...] = Field(
        ("sign", "text-ease", "transitions"), min_length=1, max_length=8, description="models of the graph branch"
    )


class Stack(Hybrid):
    """Any experts behind one gate; by default those that rank best on validation: text-EASE in item-kNN's place."""

    name: ClassVar[str] = "stack"
    config_class: ClassVar[type[Config]] = StackConfig


MOST_DECOYS = 5_000  # while the gate is fitted
ITEM_FEATURES = ("log clicks", "agreement of its text with its neighbours'", "log words")
QUERY_FEATURES = ("log history length", "mean log clicks of the history", "correlation of the branches")


def _count_words(text: TextVectors) -> Tensor:
    """Words per text (n,); 1 for a text that is not available, 0 without any."""
    if text.texts is None:
        return text.present.float()
    return torch.tensor([float(len((each or "").split())) for each in text.texts])


@torch.no_grad()
def _agreement(graph: Bipartite, text: Tensor) -> Tensor:
    """Cosine (num_items,) of an item's text with the mean text of what its users clicked besides; 0 if unknown."""
    around = graph.to_items @ (graph.to_users @ text)  # (num_items, text_dim), the item itself included
    others = around - _row_squares(graph.to_items)[:, None] * text  # without the text of the item itself
    known = others.norm(dim=1) > 1e-5 * around.norm(dim=1)  # smaller: rounding errors, its users clicked nothing else
    return F.cosine_similarity(text, others * known[:, None], dim=1, eps=1e-8)


def _row_squares(matrix: Tensor) -> Tensor:
    """Sum of squares per row (n,) of a sparse CSR matrix."""
    sums = torch.zeros(matrix.shape[0])
    rows = torch.repeat_interleave(torch.arange(matrix.shape[0]), matrix.crow_indices().diff())
    return sums.index_add(0, rows, matrix.values().square())
