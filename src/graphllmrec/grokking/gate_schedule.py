"""Gate schedules: the share of a gate that goes to a branch during training, e.g. to one that generalises late.

A schedule is called after every validation and returns a share per branch: the part of the gate that goes to this
branch whatever the gate has learned (`shifted`). It is mixed into γ, not added to the gate's logit: near zero training
loss AdamW would undo a logit offset (docs/decisions/012). Four schedules:

    grokking   s · lift · 2^(-t / (h · d))   after the event of a branch (grokking/detector.py), from when the branch
                                             alone does as well as the fused score: lift is the rise of its
                                             validation level, t the steps since the event was detected, d the steps
                                             from memorisation to the event; 0 before, and again after a collapse
    ratio      ΔG / ΔO², as shares           gradient blending's overfitting-to-generalisation ratio (Wang et al. 2020,
                                             arXiv:1905.12681): ΔG is the decrease of the validation loss since the
                                             start, ΔO the increase of its gap to the training loss
    late       s · lift                      in the last third of the training, event or not
    none       0

s: `gate_schedule_strength`; h: `gate_schedule_half_life`. Without an event "grokking" returns 0, and the gate stays the
same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from graphllmrec.grokking.detector import Event, GrokkingDetector

GateScheduleName = Literal["grokking", "ratio", "late", "none"]
WHOLE = "fused"  # the detector's name for the score of all branches together, which has no gate
LATE_PHASE = 2 / 3  # of the steps: "late" begins here
MAX_SHIFT = 0.95  # of a gate: a part of what it has learned always counts
_LEAST = 1e-3  # of ΔG and ΔO


@dataclass(frozen=True)
class BranchMetrics:
    """Losses and metrics of one branch at one validation; names that end with "loss" are losses."""

    train: Mapping[str, float]
    valid: Mapping[str, float]


@dataclass(frozen=True)
class Snapshot:
    """What a schedule reads at a validation."""

    step: int  # of the optimiser
    steps: int  # of the whole training, at most
    branches: Mapping[str, BranchMetrics]  # those that the gate weighs
    detector: GrokkingDetector  # updated with this snapshot, for the branches and for `WHOLE`


GateSchedule = Callable[[Snapshot], dict[str, float]]  # share of the gate per branch


def shifted(gamma: Tensor, shift: Tensor) -> Tensor:
    """γ' = γ + |m| (target - γ), any shape, m () between -1 and 1; the target is 1 for m > 0, else 0. γ where m = 0."""
    return gamma + shift.abs() * ((shift > 0).to(gamma.dtype) - gamma)


def gate_shift(shares: Mapping[str, float], towards: str, away: str) -> float:
    """m, -MAX_SHIFT..MAX_SHIFT, of a gate whose γ is the weight of the branch `towards`."""
    return min(max(shares[towards] - shares[away], -MAX_SHIFT), MAX_SHIFT)


def build_gate_schedule(name: GateScheduleName, strength: float, half_life: float) -> GateSchedule:
    """A schedule by name; it keeps what it has seen, so every training needs its own."""
    if name == "grokking":
        return _Grokking(strength, half_life)
    if name == "ratio":
        return _Ratio()
    return _Late(strength) if name == "late" else lambda snapshot: dict.fromkeys(snapshot.branches, 0.0)


class _Grokking:
    def __init__(self, strength: float, half_life: float) -> None:
        self.strength, self.half_life = strength, half_life
        self.arrived: dict[str, Event] = {}  # branches that have reached the level of the whole since this event

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        return {name: self._share(name, snapshot) for name in snapshot.branches}

    def _share(self, name: str, snapshot: Snapshot) -> float:
        detector = snapshot.detector
        event = detector.event(name)
        if event is None:
            return 0.0
        if self.arrived.get(name) is not event:
            if detector.level(name) < detector.level(WHOLE):  # still rising: too early
                return 0.0
            self.arrived[name] = event
        distance = max(event.detected - event.evidence["memorised"], 1.0)
        half_lives = (snapshot.step - event.detected) / (self.half_life * distance)
        return self.strength * detector.lift(name) * math.exp2(-half_lives)


class _Ratio:
    def __init__(self) -> None:
        self.first: Mapping[str, BranchMetrics] = {}

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        self.first = self.first or snapshot.branches
        ratios = {name: _overfitting_ratio(self.first[name], now) for name, now in snapshot.branches.items()}
        return {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}


def _overfitting_ratio(then: BranchMetrics, now: BranchMetrics) -> float:
    """ΔG / ΔO²."""
    gained = then.valid["loss"] - now.valid["loss"]
    overfitted = (now.valid["loss"] - now.train["loss"]) - (then.valid["loss"] - then.train["loss"])
    return max(gained, _LEAST) / max(overfitted, _LEAST) ** 2


class _Late:
    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.first_levels: dict[str, float] = {}  # where the late phase begins

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        if snapshot.step < LATE_PHASE * snapshot.steps:
            return dict.fromkeys(snapshot.branches, 0.0)
        levels = {name: snapshot.detector.level(name) for name in snapshot.branches}
        self.first_levels = self.first_levels or levels
        return {name: self.strength * max(level - self.first_levels[name], 0.0) for name, level in levels.items()}
