"""Curves of single branches while a model trains, for the grokking detector and the gate schedule.

At every validation each branch ranks for the same sample of users, twice: the last click of their training history
from the clicks before it ("train": what has been learned), and a validation click from the training history ("valid").
Both give the cross-entropy of that click among all items ("loss") and NDCG@20; equal scores count against the click
(evaluation/rank.py). The detector (grokking/detector.py) follows these figures, a gate schedule
(grokking/gate_schedule.py) turns its findings into shares of the gate, and early stopping waits while an event is still
to come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.evaluation.metrics import TUNING_CUTOFF, gains
from graphllmrec.evaluation.rank import rank_of_target
from graphllmrec.grokking.detector import GrokkingDetector, Scale
from graphllmrec.grokking.gate_schedule import WHOLE, BranchMetrics, GateSchedule, Snapshot
from graphllmrec.protocol import Queries
from graphllmrec.rng import rng

Scorer = Callable[[Queries], Tensor]  # -> (B, num_items)
MoveGate = Callable[[Mapping[str, float]], None]  # takes the share of every branch
_CHUNK = 2**20  # scores made at a time: 4 MiB


class BranchMonitor:
    """Measures the branches of one training at every validation."""

    def __init__(
        self,
        split: Split,
        branches: Mapping[str, Scorer],
        *,
        seed: int,
        users: int,
        learning_rate: float,
        weight_decay: float,
        gate_schedule: GateSchedule | None = None,
        move: MoveGate | None = None,
    ) -> None:
        """`users`: size of the sample at most. `gate_schedule` computes shares, `move` sets them in the gate.

        `split` must have a user with a validation click, and a user with two training clicks.
        """
        self.branches, self.learning_rate, self.weight_decay = branches, learning_rate, weight_decay
        self.gate_schedule, self.move = gate_schedule, move
        size = max(_CHUNK // max(split.num_items, 1), 16)
        self.samples = {
            "train": _Sample(*_last_clicks(split, seed, users), size),
            "valid": _Sample(*_validation_clicks(split, seed, users), size),
        }
        chance = {"loss": Scale(float(np.log(max(split.num_items, 2))))}
        self.detector = GrokkingDetector(chance)
        self.shares = dict.fromkeys((name for name in branches if name != WHOLE), 0.0)  # of the gate

    def look(self, step: int, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure at `step` of `steps` and move the gate. Returns figures for the log, and the detector's events."""
        found = {name: BranchMetrics(**{part: sample.measure(score) for part, sample in self.samples.items()})
                 for name, score in self.branches.items()}  # fmt: skip
        events = self._update(step, steps, found)
        figures: dict[str, Any] = {"branches": {name: vars(each) for name, each in found.items()}}
        figures["states"] = {name: self.detector.state(name) for name in found}
        if self.gate_schedule is not None:
            figures["share"] = self.shares
            if self.move is not None:
                self.move(self.shares)
        return figures, events

    def recall(self, step: int, steps: int, figures: Mapping[str, Any]) -> None:
        """Take in what `look` has measured in an earlier attempt at the same training."""
        found = {name: BranchMetrics(**each) for name, each in figures.get("branches", {}).items()}
        if found:
            self._update(step, steps, found)

    def waits(self, step: int, steps: int) -> dict[str, Any] | None:
        """Why stopping at `step` would be too early: {"branch": name, "state": …, "until": step}; None if it is not."""
        for name in self.branches:
            if self.detector.state(name) == "generalising":
                until: float | None = steps  # still rising
            else:
                until = self.detector.waits_until(self.learning_rate, self.weight_decay, name, budget=steps)
            if until is not None and step < until:
                return {"branch": name, "state": self.detector.state(name), "until": round(until)}
        return None

    def _update(self, step: int, steps: int, found: Mapping[str, BranchMetrics]) -> list[dict[str, Any]]:
        """Give the figures to the detector and the gate schedule. Returns the events."""
        events = []
        for name, each in found.items():
            for event in self.detector.update(step, train=each.train, valid=each.valid, branch=name):
                events.append(event.to_json())
        if self.gate_schedule is not None:
            gated = {name: found[name] for name in self.shares}
            self.shares = self.gate_schedule(Snapshot(step, steps, gated, self.detector))
        return events


class _Sample:
    """Queries with one target item each; scored `size` at a time."""

    def __init__(self, queries: Queries, targets: Ints, size: int) -> None:
        self.queries, self.targets, self.size = queries, targets, size

    @torch.no_grad()
    def measure(self, score: Scorer) -> dict[str, float]:
        """Mean cross-entropy of the targets among all items that are not in the history, and NDCG@20."""
        loss = gain = 0.0
        for start in range(0, len(self.targets), self.size):
            rows = np.arange(start, min(start + self.size, len(self.targets)), dtype=np.int64)
            histories, target = self.queries.histories.take(rows), torch.from_numpy(self.targets[rows])
            scores = score(Queries(self.queries.users[rows], histories)).float().clone()
            own = scores.gather(1, target[:, None])  # (b, 1): a target that is in the history, too, can be found
            scores[torch.from_numpy(histories.row_of_entry), torch.from_numpy(histories.items)] = -torch.inf
            scores.scatter_(1, target[:, None], own)
            loss += float(F.cross_entropy(scores, target, reduction="sum"))
            rank = rank_of_target(scores, own)  # (b,)
            gain += float(gains(rank, TUNING_CUTOFF)[rank <= TUNING_CUTOFF].sum())
        return {"loss": loss / len(self.targets), f"ndcg@{TUNING_CUTOFF}": gain / len(self.targets)}


def _validation_clicks(split: Split, seed: int, limit: int) -> tuple[Queries, Ints]:
    """The first validation click of up to `limit` users."""
    targets = split.targets("valid")
    users = _draw_users(np.flatnonzero(targets.lengths), seed, limit)
    return Queries.of(split.known("valid"), users), targets.items[targets.indptr[users]]


def _last_clicks(split: Split, seed: int, limit: int) -> tuple[Queries, Ints]:
    """The last training click of up to `limit` users, queried by the clicks before it."""
    known = split.train.histories(split.num_users)
    users = _draw_users(np.flatnonzero(known.lengths > 1), seed, limit)
    mine = known.take(users)
    last = mine.indptr[1:] - 1
    before = Histories(mine.indptr - np.arange(len(mine.indptr)), np.delete(mine.items, last))
    return Queries(users, before), mine.items[last]


def _draw_users(users: Ints, seed: int, limit: int) -> Ints:
    if len(users) > limit:
        users = np.sort(rng(seed, "branch-watch").choice(users, limit, replace=False))
    return users.astype(np.int64)
