"""Fit the context gate on validation targets: a board of the experts' z-scores, cross-entropy, folds, the cold lift.

What comes after validation is not quite like it: items that are clicked late are newer, and have fewer training clicks.
How contexts drift from one step to the next is seen one step back (`context_drift`), and targets weigh accordingly:

    ρ_c = share of context c among validation clicks / its share among the last training clicks, within [1/2, 2]
    weight of a target = Σ_c π_c ρ_c, scaled to a mean of 1

For ρ, contexts go by the training clicks without each user's last one.

The experts do not change while the gate is fitted. So their z-scores for the validation queries are made once and kept
in half precision, for as many users as `_HELD` numbers allow.
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
from graphllmrec.nn.gate import CONTEXTS, ContextGate, GateInputs, head_degree_of, memberships
from graphllmrec.protocol import Queries, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.loop import TrainedConfig, TrainingStage, train
from graphllmrec.train.validation import tuning_users

FOLDS = 3
LIFTS = (0.1, 0.2, 0.35, *(step / 4 for step in range(2, 21)))  # added to priors, tried in this order
CUT = 20  # NDCG@CUT is what counts
_HELD = 600_000_000  # z-scores kept at a time: 1.2 GB
_ROWS = 256  # queries scored at a time
_RARE = 0.001  # share of a context below which its drift is noise
_LOWEST = -1e4  # of an item that must not be ranked


@dataclass(frozen=True)
class Board:
    """z-scores of E experts for U validation queries, and their P targets."""

    experts: Tensor  # (E, U, num_items) float16
    features: Tensor  # (U, G) of the queries
    known: Histories  # U rows: what may not be ranked
    row: Tensor  # (P,) query of every target
    target: Tensor  # (P,) item
    count: Tensor  # (U,) targets per query
    weight: Tensor  # (U,) what a query counts, 1 on average

    def weighted(self, contexts: Tensor, drift: Tensor) -> Board:
        """The same with queries that count as the contexts (num_items, 5) of their targets drift (5,)."""
        targets = contexts.index_select(0, self.target) @ drift  # (P,)
        total = torch.zeros(len(self.count)).index_add_(0, self.row, targets) / self.count.clamp_min(1)
        return replace(self, weight=total / total.mean())

    def mean(self, values: Tensor) -> float:
        """Weighted mean of a value per query (U,)."""
        return float((values * self.weight).mean())

    def centred(self, centre: Tensor) -> Board:
        """The same with features relative to `centre` (G,)."""
        return replace(self, features=self.features - centre)

    def scores(self, gate: ContextGate, inputs: GateInputs, rows: Tensor) -> Tensor:
        """Gated scores (n, num_items) of these queries; what they know is at the bottom."""
        weights, prior = gate.of_items(inputs)
        factors = gate.of_queries(self.features.index_select(0, rows))  # (n, E)
        total = prior.expand(len(rows), -1)
        for expert, zscores in enumerate(self.experts):
            part = zscores.index_select(0, rows).float()
            total = total + part * weights[:, expert] * factors[:, expert, None]
        seen = self.known.take(rows.numpy())
        mask = torch.zeros(total.shape, dtype=torch.bool)
        mask[torch.from_numpy(seen.row_of_entry), torch.from_numpy(seen.items)] = True
        return total.masked_fill(mask, _LOWEST)

    @torch.no_grad()
    def ndcg(self, gate: ContextGate, inputs: GateInputs, queries: Tensor | None = None) -> Tensor:
        """NDCG@CUT per query (n,); equal scores count against a target."""
        queries = torch.arange(len(self.count)) if queries is None else queries
        discounts = 1 / torch.log2(torch.arange(CUT) + 2.0)
        ideal = discounts.cumsum(0)[self.count.clamp(1, CUT) - 1]
        gains = torch.zeros(len(self.count))
        for rows in torch.split(queries, _ROWS):
            scores = self.scores(gate, inputs, rows)
            place = torch.full((len(self.count),), -1)
            place[rows] = torch.arange(len(rows))
            pairs = (place.index_select(0, self.row) >= 0).nonzero()[:, 0]
            own = scores.index_select(0, place.index_select(0, self.row[pairs]))
            rank = (own >= own.gather(1, self.target[pairs, None])).sum(1) - 1
            gain = torch.where(rank < CUT, discounts[rank.clamp_max(CUT - 1)], 0.0)
            gains.index_add_(0, self.row[pairs], gain)
        return (gains / ideal)[queries]


def board_of(model: Any, task: Task, degree: Tensor, text: list[int], most_users: int) -> Board:
    """The board of a fitted sum of experts (models/fusion/z_sum.py) for at most so many validation users.

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
    return Board(experts, torch.cat(features), known.take(users), row, item, count, weight)


def context_drift(split: Split, cold_degree: float) -> Tensor:
    """ρ (5,) of the contexts; 1 where clicks were not split by their order. Looks at train and validation only."""
    if not split.ordered or split.kind != "leave-last-out" or not len(split.valid):
        return torch.ones(len(CONTEXTS))
    known = split.train.histories(split.num_users)
    last = known.indptr[1:][known.lengths > 1] - 1  # a user's only click stays
    before = np.bincount(np.delete(known.items, last), minlength=split.num_items)
    contexts = memberships(torch.from_numpy(before), cold_degree, head_degree_of(before))
    earlier, later = (contexts[torch.from_numpy(items)].mean(0) for items in (known.items[last], split.valid.item))
    return ((later + _RARE) / (earlier + _RARE)).nan_to_num(1.0).clamp(0.5, 2.0)


def query_features(queries: Queries, experts: Tensor, degree: Tensor, text: list[int]) -> Tensor:
    """Features (B, 3): log history length, mean log clicks of the history, correlation of both branches' scores.

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
    board: Board,
    config: Any,
    task: Task,
    pairs: Ints | None = None,
    watch: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Cross-entropy of the targets `pairs` (all by default) among all items, in place, from where the gate stands."""
    start = {key: value.detach().clone() for key, value in gate.named_parameters()}
    chosen = torch.arange(len(board.row)) if pairs is None else torch.from_numpy(pairs)

    def loss(rows: Ints, _at: At) -> Tensor:
        picked = chosen[torch.from_numpy(rows)]
        scores = board.scores(gate, inputs, board.row.index_select(0, picked))
        drift = sum((value - start[key]).square().sum() for key, value in gate.named_parameters())
        pull = config.prior * drift / (2 * len(chosen))
        entropy = F.cross_entropy(scores, board.target.index_select(0, picked), reduction="none")
        weight = board.weight.index_select(0, board.row.index_select(0, picked))
        out: Tensor = (entropy * weight).mean() + pull
        return out

    settings: TrainedConfig = config
    # z-scores are relative to all items of their query: where those of all targets agree, the boards do
    inside = (board.features, board.weight, *inputs.__dict__.values(), board.experts[:, board.row, board.target])
    train(TrainingStage(name, gate, len(chosen), loss, None, settings, inputs=inside, figures=watch), task)


@dataclass(frozen=True)
class Folds:
    """Gates that each have not seen a part of the queries."""

    gates: list[ContextGate]
    held_out: list[Tensor]  # query rows per gate; together all of them

    def ndcg(self, inputs: GateInputs, board: Board) -> Tensor:
        """NDCG@CUT (U,) of every query under the gate that was fitted without it."""
        found = torch.zeros(len(board.count))
        for gate, rows in zip(self.gates, self.held_out, strict=True):
            found[rows] = board.ndcg(gate, inputs, rows)
        return found


def out_of_fold(gate: ContextGate, inputs: GateInputs, board: Board, config: Any, task: Task) -> Folds:
    """FOLDS gates, each fitted without a part of the queries, from where `gate` stands."""
    fold = rng(task.seed, "gate/folds").integers(0, FOLDS, len(board.count))
    gates, held_out = [], []
    for number in range(FOLDS):
        one = deepcopy(gate)
        pairs = np.flatnonzero(fold[board.row.numpy()] != number)
        rows = torch.from_numpy(np.flatnonzero(fold == number))
        if len(pairs) and len(rows):
            fit_gate(f"gate-fold-{number + 1}", one, inputs, board, config, task, pairs)
            gates.append(one)
            held_out.append(rows)
    return Folds(gates, held_out)


@torch.no_grad()
def lift_cold(gate: ContextGate, inputs: GateInputs, board: Board, budget: float, folds: Folds) -> dict[str, Any]:
    """Raise the priors of the cold contexts, then that of new items, for what both may cost; what was done.

    Each is raised as far as NDCG@CUT gives up no more than half of `budget` of itself. What it gives up is asked of
    `folds`, gates that are lifted alike and have not seen the targets they rank. Without a target of its kind in
    validation nothing is known about a context, and nothing is lifted.
    """
    done = {}
    for kind in ("cold", "new"):
        raised = torch.tensor([name.startswith(kind) for name in CONTEXTS]).float()
        targets = int((inputs.contexts[board.target] @ raised > 0.5).sum())
        done[kind] = _lift(raised, folds, inputs, board, budget / 2 if targets else 0.0) | {"targets": targets}
        gate.prior.add_(done[kind]["lift"] * raised)
    return done


def _lift(raised: Tensor, folds: Folds, inputs: GateInputs, board: Board, budget: float) -> dict[str, Any]:
    """Raise the priors of the contexts `raised` (5,) of all gates in place, as far as the budget allows."""
    starts = [one.prior.detach().clone() for one in folds.gates]
    before, lift = board.mean(folds.ndcg(inputs, board)), 0.0
    tried = {"0.0": before}

    def raise_by(candidate: float) -> None:
        for one, start in zip(folds.gates, starts, strict=True):
            one.prior.copy_(start + candidate * raised)

    for candidate in LIFTS if budget else ():
        raise_by(candidate)
        tried[str(candidate)] = value = board.mean(folds.ndcg(inputs, board))
        if value < before * (1 - budget):
            break
        lift = candidate
    raise_by(lift)
    return {"lift": lift, "tried": tried}
