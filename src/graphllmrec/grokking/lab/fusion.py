"""Two branches trained together, one of which generalises late: a test of gate schedules (grokking/gate_schedule.py).

Each user likes all items of one block. A share of all pairs with clicked items is known; some items have no clicks.

    graph branch   s_G(u, i) = x_u · y_i               small initial weights; it learns and overfits as usual
    text branch    s_T(u, i) = a_u · (W t_i + v_i)     t_i: text vector of the item's block, small; v_i: free vector of
                                                       the item, 0 without clicks. Large initial weights and weight
                                                       decay: it memorises with v_i early and finds the blocks late
    fused          s = (1 - γ_i) s_G + γ_i s_T         γ_i = σ(g_0 + g_1 log(1 + clicks)), centred; 1 without clicks
    loss           cross-entropy of the known pairs, summed over fused, graph and text scores

The other pairs are halved: validation pairs serve to choose static weights and to detect events, test pairs to report.
The gate starts at the static weight with the largest area under the validation curve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.grokking.detector import Event, GrokkingDetector, Scale
from graphllmrec.grokking.gate_schedule import (
    WHOLE,
    BranchMetrics,
    GateSchedule,
    GateScheduleName,
    Snapshot,
    build_gate_schedule,
    gate_shift,
    shifted,
)
from graphllmrec.grokking.lab.tasks import ndcg
from graphllmrec.grokking.lab.trajectory import Curve
from graphllmrec.nn.vectors import unit
from graphllmrec.rng import torch_rng
from graphllmrec.train.checkpoint import raw_bytes

World = Literal["late", "no decay", "small start"]
WORLDS: tuple[World, ...] = ("late", "no decay", "small start")  # in the last two no late event is expected
STATIC = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # static weights of the text branch
SCHEDULES: tuple[GateScheduleName, ...] = ("grokking", "ratio", "late")
STRENGTH, HALF_LIFE = 2.0, 16.0
FIRST_SEED = 10  # smaller seeds served to choose the schedule and its settings
_STEPS, _EVERY = 3000, 25
_USERS, _CLICKED, _NEW, _BLOCKS, _TEXT_DIM, _EMBEDDING_DIM = 48, 64, 16, 8, 16, 60


@dataclass(frozen=True)
class Curves:
    """The curves of one fusion run."""

    step: list[int]  # (n,)
    valid: Curve  # (n,) NDCG of the fused scores on validation pairs
    test: Curve  # (n,)
    branches: dict[str, Curve]  # (n,) validation NDCG of "graph" and "text"
    gate: Curve  # (n,) mean γ of clicked items
    events: list[Event]
    digest: str  # SHA-256 of the final weights

    @property
    def area(self) -> float:
        """Mean test NDCG over all points."""
        return float(self.test.mean())

    @property
    def final(self) -> float:
        """Test NDCG at the last point."""
        return float(self.test[-1])


class _Net(nn.Module):
    """Both branches, the gate and the data."""

    def __init__(self, seed: int, world: World, init: float) -> None:
        super().__init__()
        random, items = torch_rng(seed, "lab/fusion"), _CLICKED + _NEW
        block = torch.randint(_BLOCKS, (items,), generator=random)
        self.liked = (torch.arange(_USERS)[:, None] % _BLOCKS == block[None, :]).float()
        self.known = torch.rand(_USERS, items, generator=random) < 0.35
        self.known[:, _CLICKED:] = False
        half = torch.rand(_USERS, items, generator=random) < 0.5
        self.valid, self.test = ~self.known & half, ~self.known & ~half
        self.text_features = 0.15 * unit(torch.randn(_BLOCKS, _TEXT_DIM, generator=random))[block]
        text_scale = 0.3 if world == "small start" else 8.0

        def draw(rows: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, _EMBEDDING_DIM, generator=random) * scale / _EMBEDDING_DIM**0.5)

        self.x, self.y = draw(_USERS, 0.3), draw(items, 0.3)
        self.a, self.w, self.v = (
            draw(_USERS, text_scale),
            draw(_TEXT_DIM, text_scale / _TEXT_DIM**0.5),
            draw(items, text_scale),
        )
        self.biases = nn.Parameter(torch.zeros(2))
        self.gate = nn.Parameter(torch.tensor([float(np.log(init / (1 - init))), 0.0]))
        clicks = self.known.sum(0).float().log1p()
        self.clicks, self.new = clicks - clicks[:_CLICKED].mean(), ~self.known.any(0)
        self.shift = torch.zeros(())  # m of the gate schedule

    def branch_scores(self) -> tuple[Tensor, Tensor]:
        """s_G and s_T, (users, items) each."""
        clicked = (~self.new).float()
        graph = (self.x @ self.y.T + self.biases[0]) * clicked
        return graph, self.a @ (self.text_features @ self.w + self.v * clicked[:, None]).T + self.biases[1]

    def gamma(self, static: float | None) -> Tensor:
        """γ (items,): learned and shifted, or `static` for clicked items."""
        learned = torch.sigmoid(self.gate[0] + self.gate[1] * self.clicks)
        gamma = shifted(learned, self.shift) if static is None else torch.full_like(learned, static)
        return torch.where(self.new, 1.0, gamma)

    def loss(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of the pairs in `mask`."""
        return F.binary_cross_entropy_with_logits(scores[mask], self.liked[mask])

    def measure(self, scores: Tensor) -> BranchMetrics:
        """Loss and NDCG of these scores on training and validation pairs."""
        parts = {}
        for part, mask in (("train", self.known), ("valid", self.valid)):
            parts[part] = {"loss": float(self.loss(scores, mask)), "ndcg": ndcg(scores, self.liked, mask)}
        return BranchMetrics(**parts)


def train_fusion(
    seed: int,
    schedule: GateScheduleName = "none",
    *,
    world: World = "late",
    init: float = 0.5,
    static: float | None = None,
) -> Curves:
    """Train both branches with a gate that starts at `init`, or with a static weight of the text branch."""
    net, gate_schedule = _Net(seed, world, init), build_gate_schedule(schedule, STRENGTH, HALF_LIFE)
    decay = 0.0 if world == "no decay" else 0.5
    groups = [
        {"params": [net.a, net.w, net.v], "weight_decay": decay},
        {"params": [net.x, net.y, net.biases, net.gate], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.98))
    chance = ndcg(torch.zeros(net.liked.shape), net.liked, net.valid)
    detector = GrokkingDetector({"loss": Scale(float(np.log(2))), "ndcg": Scale(chance)})
    rows, events = [], list[Event]()
    for step in range(_STEPS + 1):
        graph, text = net.branch_scores()
        gamma = net.gamma(static)
        fused = (1 - gamma) * graph + gamma * text
        if step % _EVERY == 0:
            with torch.no_grad():
                found = {"graph": net.measure(graph), "text": net.measure(text)}
                whole = net.measure(fused)
                rows.append(
                    [whole.valid["ndcg"], ndcg(fused, net.liked, net.test)]
                    + [each.valid["ndcg"] for each in found.values()]
                    + [float(gamma[:_CLICKED].mean())]
                )
                events += _update(net, gate_schedule, detector, Snapshot(step, _STEPS, found, detector), whole)
        loss = sum((net.loss(scores, net.known) for scores in (fused, graph, text)), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    table = np.array(rows)
    digest = hashlib.sha256(b"".join(raw_bytes(weights) for weights in net.parameters())).hexdigest()
    branches = {"graph": table[:, 2], "text": table[:, 3]}
    steps = list(range(0, _STEPS + 1, _EVERY))
    return Curves(steps, table[:, 0], table[:, 1], branches, table[:, 4], events, digest)


def _update(
    net: _Net, gate_schedule: GateSchedule, detector: GrokkingDetector, snapshot: Snapshot, whole: BranchMetrics
) -> Iterator[Event]:
    """Update the detector, then set the shift of the gate. Yields the events of the branches."""
    detector.update(snapshot.step, train=whole.train, valid=whole.valid, branch=WHOLE)
    for name, each in snapshot.branches.items():
        yield from detector.update(snapshot.step, train=each.train, valid=each.valid, branch=name)
    net.shift.fill_(gate_shift(gate_schedule(snapshot), "text", "graph"))


def train_variants(seed: int) -> dict[str, Curves]:
    """All variants on one seed: the static weights with the best area and best final value, the gate per schedule."""
    static = {weight: train_fusion(seed, static=weight) for weight in STATIC}
    best_area = max(static, key=lambda weight: float(static[weight].valid.mean()))
    best_final = max(static, key=lambda weight: float(static[weight].valid[-1]))
    found = {"static, best on the way": static[best_area], "static, best in the end": static[best_final]}
    found["gate"] = train_fusion(seed, init=best_area)
    return found | {f"gate, {name}": train_fusion(seed, name, init=best_area) for name in SCHEDULES}


@dataclass(frozen=True)
class NoEventRun:
    """A world in which no late event is expected, trained without and with the gate schedule "grokking"."""

    detected: bool  # an event was detected nevertheless
    identical: bool  # final weights of both runs are the same, bit by bit


def train_no_event(seed: int, world: World) -> NoEventRun:
    """Train without and with the schedule, and compare."""
    plain, scheduled = (train_fusion(seed, schedule, world=world) for schedule in ("none", "grokking"))
    detected = any(event.kind == "generalising" for event in scheduled.events)
    return NoEventRun(detected, plain.digest == scheduled.digest)


def compare_variants(seeds: Sequence[int], runs: Sequence[dict[str, Curves]]) -> list[dict[str, Any]]:
    """Mean area and final test NDCG per variant, and the paired difference "gate, grokking" - variant.

    p: exact paired sign-flip test over the seeds, two-sided; its minimum is .0625 for five seeds and .002 for ten.
    """
    rows = []
    for name in runs[0]:
        row: dict[str, Any] = {"name": name, "seeds": len(seeds)}
        for what in ("area", "final"):
            ours = np.array([getattr(run["gate, grokking"], what) for run in runs])
            other = np.array([getattr(run[name], what) for run in runs])
            row[what] = {"mean": float(other.mean()), "std": float(other.std(ddof=1)) if len(other) > 1 else None}
            if name != "gate, grokking":
                row[what] |= {"difference": float((ours - other).mean()), "p": sign_flips(ours - other)}
        rows.append(row)
    return rows


def sign_flips(differences: Curve) -> float:
    """p, exact: share of all 2^n sign patterns (n ≤ 20) whose sum of differences (n,) is at least as far from 0."""
    signs = 1 - 2 * ((np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))) & 1)
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean())
