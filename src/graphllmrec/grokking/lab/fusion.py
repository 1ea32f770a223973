"""Two branches trained together, one of which generalises late: what the gate should make of it (grokking/gate_schedule.py).

Users like whole blocks of items, and a share of all pairs with clicked items is known. Some items have no click.

    graph branch   s_G(u, i) = x_u · y_i                        starts small, learns and overfits in the ordinary way
    text branch    s_T(u, i) = a_u · (W t_i + v_i)              t_i: the block's direction, short; v_i: what it can know
                                                                an item's clicks by; starts large and decays: it has
                                                                learned them by heart long before it finds the blocks
    fused          s = (1 - γ_i) s_G + γ_i s_T                  γ_i = σ(g_0 + g_1 log(1 + clicks)); 1 without clicks
    loss           of the fused scores, plus of both branches alone: cross-entropy of the known pairs

Half of the other pairs are for validation: by them static weights are chosen and events are seen; the rest is the test.
The gate starts at the static weight whose area under the validation curve is the largest.
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
WORLDS: tuple[World, ...] = ("late", "no decay", "small start")  # in the last two, the text branch does not come late
STATIC = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # weights of the text branch
CONTROLS: tuple[GateScheduleName, ...] = ("grokking", "ratio", "late")
STRENGTH, HALF_LIFE = 2.0, 16.0
FIRST_SEED = 10  # those below were seen while the control was chosen
_STEPS, _EVERY = 3000, 25
_USERS, _CLICKED, _NEW, _BLOCKS, _WORDS, _DIMS = 48, 64, 16, 8, 16, 60


@dataclass(frozen=True)
class Course:
    """A training and what came of it."""

    step: list[int]  # (n,)
    valid: Curve  # (n,) NDCG of the fused scores on validation pairs
    test: Curve  # (n,)
    branches: dict[str, Curve]  # (n,) validation NDCG of "graph" and "text" alone
    gate: Curve  # (n,) mean γ of clicked items
    events: list[Event]
    digest: str  # of all weights in the end

    @property
    def area(self) -> float:
        """Mean test NDCG over the training."""
        return float(self.test.mean())

    @property
    def final(self) -> float:
        """Test NDCG in the end."""
        return float(self.test[-1])


class _Net(nn.Module):
    """Both branches and the gate, with the pairs they learn from."""

    def __init__(self, seed: int, world: World, first: float) -> None:
        super().__init__()
        random, items = torch_rng(seed, "lab/fusion"), _CLICKED + _NEW
        block = torch.randint(_BLOCKS, (items,), generator=random)
        self.liked = (torch.arange(_USERS)[:, None] % _BLOCKS == block[None, :]).float()
        self.known = torch.rand(_USERS, items, generator=random) < 0.35
        self.known[:, _CLICKED:] = False
        half = torch.rand(_USERS, items, generator=random) < 0.5
        self.valid, self.test = ~self.known & half, ~self.known & ~half
        self.words = 0.15 * unit(torch.randn(_BLOCKS, _WORDS, generator=random))[block]
        large = 0.3 if world == "small start" else 8.0

        def drawn(rows: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, _DIMS, generator=random) * scale / _DIMS**0.5)

        self.x, self.y = drawn(_USERS, 0.3), drawn(items, 0.3)
        self.a, self.w, self.v = drawn(_USERS, large), drawn(_WORDS, large / _WORDS**0.5), drawn(items, large)
        self.biases = nn.Parameter(torch.zeros(2))
        self.gate = nn.Parameter(torch.tensor([float(np.log(first / (1 - first))), 0.0]))
        clicks = self.known.sum(0).float().log1p()
        self.clicks, self.new = clicks - clicks[:_CLICKED].mean(), ~self.known.any(0)
        self.moved = torch.zeros(())

    def branch_scores(self) -> tuple[Tensor, Tensor]:
        """s_G and s_T (users, items) each."""
        seen = (~self.new).float()
        graph = (self.x @ self.y.T + self.biases[0]) * seen
        return graph, self.a @ (self.words @ self.w + self.v * seen[:, None]).T + self.biases[1]

    def gamma(self, static: float | None) -> Tensor:
        """γ (items,)."""
        learned = torch.sigmoid(self.gate[0] + self.gate[1] * self.clicks)
        gamma = shifted(learned, self.moved) if static is None else torch.full_like(learned, static)
        return torch.where(self.new, 1.0, gamma)

    def loss_of(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of the pairs in `mask`."""
        return F.binary_cross_entropy_with_logits(scores[mask], self.liked[mask])

    def measured(self, scores: Tensor) -> BranchMetrics:
        """Loss and NDCG of a branch."""
        parts = {}
        for part, mask in (("train", self.known), ("valid", self.valid)):
            parts[part] = {"loss": float(self.loss_of(scores, mask)), "ndcg": ndcg(scores, self.liked, mask)}
        return BranchMetrics(**parts)


def follow(
    seed: int,
    control: GateScheduleName = "none",
    *,
    world: World = "late",
    first: float = 0.5,
    static: float | None = None,
) -> Course:
    """Train under a gate that starts at `first`, or with the static weight `static` of the text branch."""
    net, decides = _Net(seed, world, first), build_gate_schedule(control, STRENGTH, HALF_LIFE)
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
                found = {"graph": net.measured(graph), "text": net.measured(text)}
                whole = net.measured(fused)
                rows.append(
                    [whole.valid["ndcg"], ndcg(fused, net.liked, net.test)]
                    + [each.valid["ndcg"] for each in found.values()]
                    + [float(gamma[:_CLICKED].mean())]
                )
                events += _told(net, decides, detector, Snapshot(step, _STEPS, found, detector), whole)
        loss = sum((net.loss_of(scores, net.known) for scores in (fused, graph, text)), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    table = np.array(rows)
    digest = hashlib.sha256(b"".join(raw_bytes(weights) for weights in net.parameters())).hexdigest()
    branches = {"graph": table[:, 2], "text": table[:, 3]}
    steps = list(range(0, _STEPS + 1, _EVERY))
    return Course(steps, table[:, 0], table[:, 1], branches, table[:, 4], events, digest)


def _told(
    net: _Net, decides: GateSchedule, detector: GrokkingDetector, moment: Snapshot, whole: BranchMetrics
) -> Iterator[Event]:
    """Show a moment to the detector, and move the gate as the control decides. Yields what happened to the branches."""
    detector.update(moment.step, train=whole.train, valid=whole.valid, branch=WHOLE)
    for name, each in moment.branches.items():
        yield from detector.update(moment.step, train=each.train, valid=each.valid, branch=name)
    net.moved.fill_(gate_shift(decides(moment), "text", "graph"))


def courses(seed: int) -> dict[str, Course]:
    """Every way to fuse, on one seed: static weights chosen by area and by the end, the gate under every control."""
    static = {weight: follow(seed, static=weight) for weight in STATIC}
    by_area = max(static, key=lambda weight: float(static[weight].valid.mean()))
    by_end = max(static, key=lambda weight: float(static[weight].valid[-1]))
    found = {"static, best on the way": static[by_area], "static, best in the end": static[by_end]}
    found["gate"] = follow(seed, first=by_area)
    return found | {f"gate, {name}": follow(seed, name, first=by_area) for name in CONTROLS}


@dataclass(frozen=True)
class Quiet:
    """A training in a world where no branch should come late, with and without a control by events."""

    told: bool  # did the detector tell an event all the same?
    identical: bool  # are all weights the same, bit by bit?


def quiet(seed: int, world: World) -> Quiet:
    """Train both ways."""
    plain, controlled = (follow(seed, control, world=world) for control in ("none", "grokking"))
    told = any(event.kind == "generalising" for event in controlled.events)
    return Quiet(told, plain.digest == controlled.digest)


def compare_courses(seeds: Sequence[int], runs: Sequence[dict[str, Course]]) -> list[dict[str, Any]]:
    """Mean area and final test NDCG of every way over the seeds, and the paired difference of "gate, grokking" to it.

    p: exact paired sign-flip test over the seeds, two-sided; with five seeds it cannot be below .0625, with ten .002.
    """
    rows = []
    for name in runs[0]:
        row: dict[str, Any] = {"name": name, "seeds": len(seeds)}
        for what in ("area", "final"):
            mine = np.array([getattr(run["gate, grokking"], what) for run in runs])
            other = np.array([getattr(run[name], what) for run in runs])
            row[what] = {"mean": float(other.mean()), "std": float(other.std(ddof=1)) if len(other) > 1 else None}
            if name != "gate, grokking":
                row[what] |= {"difference": float((mine - other).mean()), "p": _sign_flips(mine - other)}
        rows.append(row)
    return rows


def _sign_flips(differences: Curve) -> float:
    """Share of all 2^n signs of the differences (n ≤ 20) whose sum is at least as far from 0."""
    signs = 1 - 2 * ((np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))) & 1)
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean())
