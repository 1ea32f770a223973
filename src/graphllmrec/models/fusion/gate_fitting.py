"""Fit the context gate on validation targets: z-scores of the experts, cross-entropy, folds, the cold lift.

The items clicked after validation differ from those clicked in it: they are newer, and have fewer training clicks. How
contexts drift from one step to the next is measured one step back (`context_drift`), and targets weigh accordingly:

    ρ_c = share of context c among validation clicks / its share among the last training clicks, within [1/2, 2]
    weight of a target = Σ_c π_c ρ_c, scaled to a mean of 1

For ρ, contexts are computed from the training clicks without each user's last one.

The experts do not change while the gate is fitted. So their z-scores for the validation queries are computed once and
kept in half precision, for as many users as `_HELD` numbers allow.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.evaluation.metrics import TUNING_CUTOFF, gains, ideal_gains
from graphllmrec.evaluation.rank import rank_of_target
from graphllmrec.nn.gate import CONTEXTS, ContextGate, GateInputs, head_degree, memberships
from graphllmrec.protocol import Queries, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.device import to_device
from graphllmrec.train.loop import TrainedConfig, TrainingStage, train
from graphllmrec.train.validation import tuning_users

FOLDS = 3
LIFTS = (0.1, 0.2, 0.35, *(step / 4 for step in range(2, 21)))  # added to context biases, tried in this order
_HELD = 600_000_000  # z-scores kept at a time: 1.2 GB
_ROWS = 256  # queries scored at a time
_RARE = 0.001  # share of a context below which its drift is noise
_LOWEST = -1e4  # of an item that must not be ranked


@dataclass(frozen=True)
class GateTargets:
    """z-scores of E experts for U validation queries, and their P targets."""

    experts: Tensor  # (E, U, num_items) float16
    features: Tensor  # (U, G) of the queries
    known: Histories  # U rows: items that are masked
    row: Tensor  # (P,) query of every target
    target: Tensor  # (P,) item
    count: Tensor  # (U,) targets per query
    weight: Tensor  # (U,) of a query, 1 on average

    def to(self, device: torch.device) -> GateTargets:
        """The same on another device."""
        parts: dict[str, Any] = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **parts)

    def weighted(self, contexts: Tensor, drift: Tensor) -> GateTargets:
        """The same with queries weighted by the drift (5,) of their targets' contexts (num_items, 5)."""
        targets = contexts.index_select(0, self.target) @ drift  # (P,)
        total = targets.new_zeros(len(self.count)).index_add_(0, self.row, targets) / self.count.clamp_min(1)
        return replace(self, weight=total / total.mean())

    def mean(self, values: Tensor) -> float:
        """Weighted mean of a value per query (U,)."""
        return float((values * self.weight).mean())

    def centred(self, centre: Tensor) -> GateTargets:
        """The same with features relative to `centre` (G,)."""
        return replace(self, features=self.features - centre)

    def scores(self, gate: ContextGate, inputs: GateInputs, rows: Tensor) -> Tensor:
        """Gated scores (n, num_items) of these queries; masked items are last."""
        weights, bias = gate.weigh_items(inputs)
        factors = gate.query_factors(self.features.index_select(0, rows))  # (n, E)
        total = bias.expand(len(rows), -1)
        for expert, zscores in enumerate(self.experts):
            part = zscores.index_select(0, rows).float()
            total = total + part * weights[:, expert] * factors[:, expert, None]
        seen = self.known.take(rows.cpu().numpy())
        mask = torch.zeros(total.shape, dtype=torch.bool, device=total.device)
        mask[to_device(seen.row_of_entry, total.device), to_device(seen.items, total.device)] = True
        return total.masked_fill(mask, _LOWEST)

    @torch.no_grad()
    def ndcg(self, gate: ContextGate, inputs: GateInputs, queries: Tensor | None = None) -> Tensor:
        """NDCG@20 per query (n,); equal scores count against a target."""
        queries = torch.arange(len(self.count), device=self.row.device) if queries is None else queries
        total = self.weight.new_zeros(len(self.count))
        for rows in torch.split(queries, _ROWS):
            scores = self.scores(gate, inputs, rows)
            place = torch.full_like(self.count, -1)
            place[rows] = torch.arange(len(rows), device=rows.device)
            pairs = (place.index_select(0, self.row) >= 0).nonzero()[:, 0]
            scores = scores.index_select(0, place.index_select(0, self.row[pairs]))
            rank = rank_of_target(scores, scores.gather(1, self.target[pairs, None]))
            total.index_add_(0, self.row[pairs], gains(rank, TUNING_CUTOFF))
        return (total / ideal_gains(self.count, TUNING_CUTOFF))[queries]


def build_gate_targets(model: Any, task: Task, degree: Tensor, text: list[int], most_users: int) -> GateTargets:
    """The z-scores of a fitted sum of experts (models/fusion/z_sum.py) for at most so many validation users.

    `text`: which of its experts are the text branch.
    """
    split, names = task.split, model.branches
    room = max(_HELD // (len(names) * max(split.num_items, 1)), 1)
    users = tuning_users(split, task.seed, min(most_users, room))
    known, targets = split.known("valid"), split.targets("valid").take(users)
    experts = torch.empty(len(names), len(users), split.num_items, dtype=torch.float16)
    features = []
    task.logger.begin("score for the gate", len(users))
    for start in range(0, len(users), _ROWS):
        queries = Queries.of(known, users[start : start + _ROWS])
        block = torch.stack([model.branch_scores(queries, name) for name in names])  # (E, b, num_items)
        experts[:, start : start + _ROWS] = block.clamp(-6e4, 6e4)
        features.append(query_features(queries, block, degree, text))
        task.logger.advance(len(queries))
    row, item = torch.from_numpy(targets.row_of_entry), torch.from_numpy(targets.items)
    count, weight = torch.from_numpy(targets.lengths), torch.ones(len(users))
    return GateTargets(experts, torch.cat(features), known.take(users), row, item, count, weight)


def context_drift(split: Split, cold_degree: float) -> Tensor:
    """ρ (5,) of the contexts; 1 where clicks were not split by their order. Reads train and validation only."""
    if not split.ordered or split.kind != "leave-last-out" or not len(split.valid):
        return torch.ones(len(CONTEXTS))
    known = split.train.histories(split.num_users)
    last = known.indptr[1:][known.lengths > 1] - 1  # a user's only click stays
    before = np.bincount(np.delete(known.items, last), minlength=split.num_items)
    contexts = memberships(torch.from_numpy(before), cold_degree, head_degree(before))
    earlier, later = (contexts[torch.from_numpy(items)].mean(0) for items in (known.items[last], split.valid.item))
    return ((later + _RARE) / (earlier + _RARE)).nan_to_num(1.0).clamp(0.5, 2.0)


def query_features(queries: Queries, experts: Tensor, degree: Tensor, text: list[int]) -> Tensor:
    """Features (B, 3): log history length, mean log clicks of the history, correlation of both branches.

    experts (E, B, num_items): z-scores, so a mean product is a correlation; `text`: which of them are the text branch.
    """
    histories = queries.histories
    length = torch.from_numpy(histories.lengths).float()
    logs = degree.log1p().index_select(0, torch.from_numpy(histories.items))
    total = torch.zeros(len(length)).index_add_(0, torch.from_numpy(histories.row_of_entry), logs)
    graph = [place for place in range(len(experts)) if place not in text]
    agree = torch.zeros(len(length))
    if graph and text:
        agree = (experts[graph[0]] * experts[text[0]]).mean(1)  # the leading expert of each
    return torch.stack([length.log1p() / 3, total / length.clamp_min(1) / 5, agree], dim=1)


def fit_gate(
    name: str,
    gate: ContextGate,
    inputs: GateInputs,
    targets: GateTargets,
    config: Any,
    task: Task,
    pairs: Ints | None = None,
    watch: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Minimise the cross-entropy of the targets `pairs` (all by default) among all items; changes `gate` in place.

    Gate, inputs and targets are on the device of `config`.
    """
    device = targets.row.device
    start = {key: value.detach().clone() for key, value in gate.named_parameters()}
    chosen = to_device(np.arange(len(targets.row)) if pairs is None else pairs, device)

    def loss(rows: Ints, _at: At) -> Tensor:
        picked = chosen[to_device(rows, device)]
        scores = targets.scores(gate, inputs, targets.row.index_select(0, picked))
        drift = sum((value - start[key]).square().sum() for key, value in gate.named_parameters())
        pull = config.l2 * drift / (2 * len(chosen))
        entropy = F.cross_entropy(scores, targets.target.index_select(0, picked), reduction="none")
        weight = targets.weight.index_select(0, targets.row.index_select(0, picked))
        out: Tensor = (entropy * weight).mean() + pull
        return out

    settings: TrainedConfig = config
    # z-scores are relative to all items of their query: equal ones of all targets mean equal z-scores
    own = targets.experts[:, targets.row, targets.target]  # (E, P)
    inside = (targets.features, targets.weight, *inputs.__dict__.values(), own)
    train(TrainingStage(name, gate, len(chosen), loss, None, settings, inputs=inside, figures=watch), task)


@dataclass(frozen=True)
class Folds:
    """Gates that are fitted without a part of the queries each."""

    gates: list[ContextGate]
    held_out: list[Tensor]  # query rows per gate; together all of them

    def ndcg(self, inputs: GateInputs, targets: GateTargets) -> Tensor:
        """NDCG@20 (U,) of every query under the gate that was fitted without it."""
        found = targets.weight.new_zeros(len(targets.count))
        for gate, rows in zip(self.gates, self.held_out, strict=True):
            found[rows] = targets.ndcg(gate, inputs, rows)
        return found


def out_of_fold(gate: ContextGate, inputs: GateInputs, targets: GateTargets, config: Any, task: Task) -> Folds:
    """FOLDS gates, each fitted without a part of the queries, from the present values of `gate`."""
    fold = rng(task.seed, "gate/folds").integers(0, FOLDS, len(targets.count))
    gates, held_out = [], []
    for number in range(FOLDS):
        one = deepcopy(gate)
        pairs = np.flatnonzero(fold[targets.row.cpu().numpy()] != number)
        rows = to_device(np.flatnonzero(fold == number), targets.row.device)
        if len(pairs) and len(rows):
            fit_gate(f"gate-fold-{number + 1}", one, inputs, targets, config, task, pairs)
            gates.append(one)
            held_out.append(rows)
    return Folds(gates, held_out)


@torch.no_grad()
def lift_cold(
    gate: ContextGate, inputs: GateInputs, targets: GateTargets, budget: float, folds: Folds
) -> dict[str, Any]:
    """Raise the biases of the cold contexts, then that of new items, within `budget`. Returns lift and trials of both.

    Each is raised as far as NDCG@20 loses no more than half of `budget` of itself. The loss is measured on `folds`,
    gates that are lifted alike and are fitted without the targets they rank. Without a target of its kind in
    validation a context is not lifted.
    """
    done = {}
    for kind in ("cold", "new"):
        raised = targets.weight.new_tensor([name.startswith(kind) for name in CONTEXTS])
        count = int((inputs.contexts[targets.target] @ raised > 0.5).sum())
        done[kind] = _lift(raised, folds, inputs, targets, budget / 2 if count else 0.0) | {"targets": count}
        gate.context_bias.add_(done[kind]["lift"] * raised)
    return done


def _lift(raised: Tensor, folds: Folds, inputs: GateInputs, targets: GateTargets, budget: float) -> dict[str, Any]:
    """Raise the biases of the contexts `raised` (5,) of all gates in place, as far as the budget allows."""
    starts = [one.context_bias.detach().clone() for one in folds.gates]
    before, lift = targets.mean(folds.ndcg(inputs, targets)), 0.0
    tried = {"0.0": before}

    def raise_by(candidate: float) -> None:
        for one, start in zip(folds.gates, starts, strict=True):
            one.context_bias.copy_(start + candidate * raised)

    for candidate in LIFTS if budget else ():
        raise_by(candidate)
        tried[str(candidate)] = value = targets.mean(folds.ndcg(inputs, targets))
        if value < before * (1 - budget):
            break
        lift = candidate
    raise_by(lift)
    return {"lift": lift, "tried": tried}
