"""What single branches of a model can do while it trains: their curves, the grokking detector, the gate's prior.

At every validation each branch ranks for the same sample of people, twice: the last click of their training history
from what came before ("train": it has been learned), and a validation click from the training history ("valid"). Both
give the cross-entropy of that click among all items ("loss") and NDCG@20. The detector (grokking/detector.py) follows
them, a control (grokking/gate_schedule.py) turns what it says into the gate's prior, and early stopping waits where an event is
still to come.
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
from graphllmrec.grokking.detector import GrokkingDetector, Scale
from graphllmrec.grokking.gate_schedule import WHOLE, Control, Measured, Moment
from graphllmrec.protocol import Queries
from graphllmrec.rng import rng

Scorer = Callable[[Queries], Tensor]  # -> (B, num_items)
Move = Callable[[Mapping[str, float]], None]  # takes the prior of every branch
_CUTOFF = 20
_CHUNK = 2**20  # scores made at a time: 4 MiB


class BranchMonitor:
    """Follows the branches of one training."""

    def __init__(
        self,
        split: Split,
        branches: Mapping[str, Scorer],
        *,
        seed: int,
        users: int,
        learning_rate: float,
        weight_decay: float,
        control: Control | None = None,
        move: Move | None = None,
    ) -> None:
        """`users`: size of the sample at most. `control` decides on priors, `move` hands them to the gate.

        `split` must have somebody with a validation click, and somebody with two training clicks.
        """
        self.branches, self.learning_rate, self.weight_decay = branches, learning_rate, weight_decay
        self.control, self.move = control, move
        size = max(_CHUNK // max(split.num_items, 1), 16)
        self.parts = {
            "train": _Asked(*_last_clicks(split, seed, users), size),
            "valid": _Asked(*_validation_clicks(split, seed, users), size),
        }
        chance = {"loss": Scale(float(np.log(max(split.num_items, 2))))}
        self.detector = GrokkingDetector(chance)
        self.priors = dict.fromkeys((name for name in branches if name != WHOLE), 0.0)  # share of the gate they get

    def look(self, step: int, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure at `step` of `steps` and move the gate. Returns figures for the log, and what has happened."""
        found = {name: Measured(**{part: asked.of(score) for part, asked in self.parts.items()})
                 for name, score in self.branches.items()}  # fmt: skip
        events = self._take_in(step, steps, found)
        figures: dict[str, Any] = {"branches": {name: vars(each) for name, each in found.items()}}
        figures["states"] = {name: self.detector.state(name) for name in found}
        if self.control is not None:
            figures["prior"] = self.priors
            if self.move is not None:
                self.move(self.priors)
        return figures, events

    def recall(self, step: int, steps: int, figures: Mapping[str, Any]) -> None:
        """Take in what `look` has measured in an earlier attempt at the same training."""
        found = {name: Measured(**each) for name, each in figures.get("branches", {}).items()}
        if found:
            self._take_in(step, steps, found)

    def waits(self, step: int, steps: int) -> dict[str, Any] | None:
        """Why stopping at `step` would be too early: {"branch": name, "state": …, "until": step}; None if it is not."""
        for name in self.branches:
            if self.detector.state(name) == "generalising":
                until: float | None = steps  # it rises still
            else:
                until = self.detector.waits_until(self.learning_rate, self.weight_decay, name, budget=steps)
            if until is not None and step < until:
                return {"branch": name, "state": self.detector.state(name), "until": round(until)}
        return None

    def _take_in(self, step: int, steps: int, found: Mapping[str, Measured]) -> list[dict[str, Any]]:
        events = []
        for name, each in found.items():
            for event in self.detector.update(step, train=each.train, valid=each.valid, branch=name):
                events.append(event.to_json())
        if self.control is not None:
            gated = {name: found[name] for name in self.priors}
            self.priors = self.control(Moment(step, steps, gated, self.detector))
        return events


class _Asked:
    """People, what is known of them, and one item that each of them wants; scored `size` at a time."""

    def __init__(self, queries: Queries, wanted: Ints, size: int) -> None:
        self.queries, self.wanted, self.size = queries, wanted, size

    @torch.no_grad()
    def of(self, score: Scorer) -> dict[str, float]:
        """Mean cross-entropy of the wanted items among all that are not in the history, and NDCG@20."""
        loss = gain = 0.0
        for start in range(0, len(self.wanted), self.size):
            rows = np.arange(start, min(start + self.size, len(self.wanted)), dtype=np.int64)
            histories = self.queries.histories.take(rows)
            wanted = torch.from_numpy(self.wanted[rows])
            scores = score(Queries(self.queries.users[rows], histories)).float().clone()
            own = scores.gather(1, wanted[:, None])  # (b, 1): wanted again or not, it can be found
            scores[torch.from_numpy(histories.row_of_entry), torch.from_numpy(histories.items)] = -torch.inf
            scores.scatter_(1, wanted[:, None], own)
            loss += float(F.cross_entropy(scores, wanted, reduction="sum"))
            rank = (scores >= own).sum(1)  # 1 = first; equals count as better
            gain += float((1 / torch.log2(rank + 1.0))[rank <= _CUTOFF].sum())
        return {"loss": loss / len(self.wanted), "ndcg@20": gain / len(self.wanted)}


def _validation_clicks(split: Split, seed: int, limit: int) -> tuple[Queries, Ints]:
    """The first validation click of up to `limit` people."""
    targets = split.targets("valid")
    users = _sample(np.flatnonzero(targets.lengths), seed, limit)
    return Queries.of(split.known("valid"), users), targets.items[targets.indptr[users]]


def _last_clicks(split: Split, seed: int, limit: int) -> tuple[Queries, Ints]:
    """The last training click of up to `limit` people, asked with the ones before."""
    known = split.train.histories(split.num_users)
    users = _sample(np.flatnonzero(known.lengths > 1), seed, limit)
    mine = known.take(users)
    last = mine.indptr[1:] - 1
    before = Histories(mine.indptr - np.arange(len(mine.indptr)), np.delete(mine.items, last))
    return Queries(users, before), mine.items[last]


def _sample(users: Ints, seed: int, limit: int) -> Ints:
    if len(users) > limit:
        users = np.sort(rng(seed, "branch-watch").choice(users, limit, replace=False))
    return users.astype(np.int64)
