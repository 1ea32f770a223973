"""What the gate's prior makes of a training's course: more weight for a branch that generalises late.

A control is asked after every validation, and answers with a prior per branch: the share of the gate that goes to it
whatever the gate has learned (`handed_over`). A share and not a term within the gate, because training data that are
known by heart teach the gate nothing, and whatever it is given it can unlearn. Four of them, in one seam, so that they
can be compared:

    grokking   s · lift · 2^(-t / (h · d))   after the event of a branch (grokking/detector.py), from when it does as well
                                             alone as all together: lift is how far its validation level has risen, t
                                             steps after the event was told, d steps from memorisation to it; 0
                                             before, and again after a collapse
    ratio      ΔG / ΔO², as shares           gradient blending's overfitting-to-generalisation ratio (Wang et al. 2020,
                                             arXiv:1905.12681): ΔG is what the validation loss has lost since the
                                             start, ΔO how much its gap to the training loss has grown
    late       s · lift                      since the last third of the training began, event or not
    none       0

s: `gate_schedule_strength`; h: `gate_schedule_half_life`. Without an event "grokking" answers 0, and weights stay what they are to
the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from graphllmrec.grokking.detector import Event, GrokkingDetector

GateScheduleName = Literal["grokking", "ratio", "late", "none"]
WHOLE = "fused"  # the detector's name for all branches together, which no gate weighs
LATE_PHASE = 2 / 3  # of the steps, from where "late" counts
MOST = 0.95  # of the gate that is handed over: what it has learned always counts
_LEAST = 1e-3  # of ΔG and ΔO


@dataclass(frozen=True)
class Measured:
    """Losses and metrics of one branch at one time; names that end with "loss" are losses."""

    train: Mapping[str, float]
    valid: Mapping[str, float]


@dataclass(frozen=True)
class Moment:
    """What a control is shown."""

    step: int  # of the optimiser
    steps: int  # of the whole training, at most
    branches: Mapping[str, Measured]  # those between which the gate decides
    detector: GrokkingDetector  # it has seen this moment already, and `WHOLE` beside the branches


Control = Callable[[Moment], dict[str, float]]  # prior per branch


def handed_over(gamma: Tensor, moved: Tensor) -> Tensor:
    """γ' = γ + |m| (target - γ), any shape, m () between -1 and 1; the target is 1 for m > 0, else 0. γ where m = 0."""
    return gamma + moved.abs() * ((moved > 0).to(gamma.dtype) - gamma)


def moved_by(priors: Mapping[str, float], towards: str, away: str) -> float:
    """m, -MOST..MOST, of a gate whose γ is the share of the branch `towards`."""
    return min(max(priors[towards] - priors[away], -MOST), MOST)


def build_gate_schedule(name: GateScheduleName, strength: float, half_life: float) -> Control:
    """A control by name; it keeps what it has seen, so every training needs its own."""
    if name == "grokking":
        return _Grokking(strength, half_life)
    if name == "ratio":
        return _Ratio()
    return _Late(strength) if name == "late" else lambda moment: dict.fromkeys(moment.branches, 0.0)


class _Grokking:
    def __init__(self, strength: float, half_life: float) -> None:
        self.strength, self.half_life = strength, half_life
        self.arrived: dict[str, Event] = {}  # branches that have done as well as the whole since this event

    def __call__(self, moment: Moment) -> dict[str, float]:
        return {name: self._prior(name, moment) for name in moment.branches}

    def _prior(self, name: str, moment: Moment) -> float:
        detector = moment.detector
        event = detector.event(name)
        if event is None:
            return 0.0
        if self.arrived.get(name) is not event:
            if detector.level(name) < detector.level(WHOLE):  # it is on its way up: too early
                return 0.0
            self.arrived[name] = event
        distance = max(event.detected - event.evidence["memorised"], 1.0)
        half_lives = (moment.step - event.detected) / (self.half_life * distance)
        return self.strength * detector.lift(name) * math.exp2(-half_lives)


class _Ratio:
    def __init__(self) -> None:
        self.start: Mapping[str, Measured] = {}

    def __call__(self, moment: Moment) -> dict[str, float]:
        self.start = self.start or moment.branches
        ratios = {}
        for name, now in moment.branches.items():
            then = self.start[name]
            gained = then.valid["loss"] - now.valid["loss"]
            overfitted = (now.valid["loss"] - now.train["loss"]) - (then.valid["loss"] - then.train["loss"])
            ratios[name] = max(gained, _LEAST) / max(overfitted, _LEAST) ** 2
        return {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}


class _Late:
    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.floor: dict[str, float] = {}

    def __call__(self, moment: Moment) -> dict[str, float]:
        if moment.step < LATE_PHASE * moment.steps:
            return dict.fromkeys(moment.branches, 0.0)
        levels = {name: moment.detector.level(name) for name in moment.branches}
        self.floor = self.floor or levels
        return {name: self.strength * max(level - self.floor[name], 0.0) for name, level in levels.items()}
