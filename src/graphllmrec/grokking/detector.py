"""Grokking, watched while it happens: generalisation that comes long after the training data are memorised.

What a training reports is turned into one level between 0 (who knows nothing) and 1 (perfect) per part,

    level = mean of   1 - loss / chance loss   and   (metric - chance) / (perfect - chance),   each within [0, 1],

as a median of the last `_MEDIAN` updates. A state machine follows it:

    baseline      the training level is below `MEMORISED`
    memorised     it is not; validation is given until `LATE` times that step to follow, as in ordinary learning
    plateau       validation has stayed where it was: its level then is the floor
    generalising  validation has risen by `LIFT` and by `NOISE` standard deviations of a single update above the floor,
                  with the training data still memorised: this is the event
    settled       it rises no more

and back: `collapse` when half of the rise is lost again, from where the next event may come; `baseline` when the
training data are forgotten. Thresholds are shares of what can be reached, so they are the same for every task; what a
task has to say is its chance level, and for ranking metrics that cannot reach 1, what is perfect. Loss and metric count
alike, because a metric that only counts hits can jump where nothing jumps (Schaeffer et al. 2023, arXiv:2304.15004).

An update costs a few operations on numbers, and nothing is kept but numbers. How often the detector is right:
docs/grokking.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

State = Literal["baseline", "memorised", "plateau", "generalising", "settled"]
Kind = Literal["memorised", "generalising", "collapse", "forgotten"]

MEMORISED = 0.9  # training level from which the training data are known by heart
FORGOTTEN = 0.8  # and below which they are not any more
LATE = 2.0  # times the step of memorisation: whatever validation does before is ordinary learning
LIFT = 0.1  # of the validation level above its floor
NOISE = 5.0  # standard deviations of a single level, from changes between updates
_MEDIAN = 5  # updates that a level is the median of
_CONFIRMED = 3  # updates in a row before a state changes, but for the event
_REST = 0.2  # share of the step number without a new best level after which an event is over
_EARLIEST, _USUAL = 0.2, 5.0  # delays, in units of 1 / (learning rate · weight decay), between which events come


@dataclass(frozen=True)
class Scale:
    """What a metric is for somebody who knows nothing, and at best; a loss falls from `chance` to 0."""

    chance: float | None = None  # None: of a loss its first value, of a metric 0
    perfect: float = 1.0  # of a metric


@dataclass(frozen=True)
class Event:
    """Something that happened in a branch."""

    kind: Kind
    branch: str
    onset: int  # step at which it began, as far as can be told
    detected: int  # step of the update that told it
    confidence: float  # 1 - the chance that noise alone goes so far, at most
    evidence: Mapping[str, float]  # levels, floor, noise, and how progress measures moved since memorisation

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass
class _Branch:
    """All that is kept of one branch."""

    name: str
    state: State = "baseline"
    step: int = -1  # of the last update
    first: dict[str, float] = field(default_factory=dict)  # chance losses that nobody has told
    train: deque[float] = field(default_factory=lambda: deque(maxlen=_MEDIAN))
    valid: deque[float] = field(default_factory=lambda: deque(maxlen=_MEDIAN))
    streaks: dict[str, tuple[int, int]] = field(default_factory=dict)  # updates in a row something held, since when
    memorised: int = 0  # step
    then: dict[str, float] = field(default_factory=dict)  # progress measures at that step
    floor: float = 0.0  # mean validation level on the plateau
    seen: int = 0  # updates the floor is the mean of
    jumps: float = 0.0  # mean square of the validation level's changes between updates, while nothing rises
    looks: int = 0  # updates that this is the mean of
    onset: int = 0  # last step at which the level was near the floor
    event: Event | None = None  # the one that lasts
    best: float = 0.0  # level since
    best_at: int = 0

    def holds(self, what: str, condition: bool, step: int) -> int | None:
        """The step since when a condition has held, once it has for _CONFIRMED updates in a row."""
        count, since = self.streaks.get(what, (0, step))
        self.streaks[what] = (count + 1, since if count else step) if condition else (0, step)
        return self.streaks[what][1] if self.streaks[what][0] >= _CONFIRMED else None

    @property
    def noise(self) -> float:
        """Standard deviation of a single validation level: from changes, which a slow rise hardly adds to."""
        return math.sqrt(self.jumps / 2)

    def turn(self, state: State) -> None:
        """Go over to another state."""
        self.state = state
        self.streaks.clear()


class GrokkingDetector:
    """Follows any number of branches of a training; see the module for what it looks for.

    >>> detector = GrokkingDetector(scales={"ndcg@20": Scale(perfect=0.12)})
    >>> for step in range(0, 10_000, 100):
    ...     events = detector.update(step, train={"loss": 0.01}, valid={"loss": 4.0, "ndcg@20": 0.01}, branch="graph")
    """

    def __init__(self, scales: Mapping[str, Scale] | None = None) -> None:
        """`scales`: per name of a value; a name that ends with "loss" is a loss, every other a metric."""
        self.scales = dict(scales or {})
        self._branches: dict[str, _Branch] = {}

    def update(
        self,
        step: int,
        *,
        train: Mapping[str, float],
        valid: Mapping[str, float],
        branch: str = "",
        progress: Mapping[str, float] | None = None,
    ) -> list[Event]:
        """Take in what was measured at `step`; returns what has happened, mostly nothing.

        `train` and `valid` name losses and metrics alike; at least one each. `progress`: weight norm, effective rank,
        gradient norm, or whatever else should stand in the evidence. Raises ValueError without a value, or when steps
        do not rise. Values that are not finite count as knowing nothing.
        """
        if not train or not valid:
            raise ValueError("a detector needs at least one training and one validation value per update")
        known = self._branches.setdefault(branch, _Branch(branch))
        if step <= known.step:
            raise ValueError(f"steps must rise: {step} after {known.step}")
        known.step = step
        known.train.append(self._level(train, known.first, "train "))
        known.valid.append(self._level(valid, known.first, "valid "))
        event = _advance(known, median(known.train), median(known.valid), dict(progress or {}))
        return [event] if event is not None else []

    def state(self, branch: str = "") -> State:
        """Where a branch stands."""
        return self._branches[branch].state if branch in self._branches else "baseline"

    def lift(self, branch: str = "") -> float:
        """How far the validation level of a branch is above its floor since its event, 0..1; 0 without an event."""
        known = self._branches.get(branch)
        if known is None or known.event is None:
            return 0.0
        return max(median(known.valid) - known.floor, 0.0)

    def level(self, branch: str = "") -> float:
        """The validation level of a branch, 0..1; 0 before its first update."""
        return median(self._branches[branch].valid) if branch in self._branches else 0.0

    def event(self, branch: str = "") -> Event | None:
        """The event by which a branch generalises, unless it has collapsed since."""
        known = self._branches.get(branch)
        return None if known is None else known.event

    def waits_until(
        self, learning_rate: float, weight_decay: float, branch: str = "", budget: float = math.inf
    ) -> float | None:
        """The step until which an event is plausible, for a branch that has memorised and not generalised; else None.

        The delay after memorisation is about log(|θ|² then / |θ|² in the end) / (learning rate · weight decay) for
        decoupled decay; events came at `_EARLIEST` to `_USUAL` times the factor before the logarithm. Without decay, or
        when not even the earliest comes within `budget` steps, there is no reason to wait.
        """
        known = self._branches.get(branch)
        if known is None or known.state not in ("memorised", "plateau") or learning_rate * weight_decay <= 0:
            return None
        delay = 1 / (learning_rate * weight_decay)
        if known.memorised + _EARLIEST * delay > budget:
            return None
        return min(known.memorised + _USUAL * delay, budget)

    def _level(self, values: Mapping[str, float], first: dict[str, float], part: str) -> float:
        """0..1, the mean over losses and metrics."""
        levels = []
        for name, value in values.items():
            scale = self.scales.get(name, Scale())
            if name.endswith("loss"):
                chance = scale.chance if scale.chance is not None else first.setdefault(part + name, value)
                level = 1 - value / chance if chance > 0 else 0.0
            else:
                chance = scale.chance or 0.0
                level = (value - chance) / (scale.perfect - chance)
            levels.append(min(max(level, 0.0), 1.0) if math.isfinite(level) else 0.0)
        return sum(levels) / len(levels)


def _advance(known: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    """Move a branch on by one update at these levels."""
    if known.state != "baseline" and known.holds("forgotten", train < FORGOTTEN, known.step) is not None:
        known.turn("baseline")
        known.event = None
        return _event(known, "forgotten", known.step, train, valid, progress)
    if known.state == "baseline":
        return _in_baseline(known, train, valid, progress)
    if known.state == "memorised":
        _in_memorised(known, valid)
        return None
    if known.state == "plateau":
        return _in_plateau(known, train, valid, progress)
    return _after_the_event(known, train, valid, progress)


def _in_baseline(known: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    since = known.holds("memorised", train >= MEMORISED, known.step)
    if since is None:
        return None
    known.turn("memorised")
    known.memorised, known.then, known.seen, known.looks = since, progress, 0, 0
    return _event(known, "memorised", since, train, valid, progress)


def _in_memorised(known: _Branch, valid: float) -> None:
    known.seen += 1
    _learn_noise(known)
    if known.step < LATE * known.memorised or known.seen < _MEDIAN:
        return
    if valid >= MEMORISED:  # learned together with the training data: nothing is left to come
        known.floor, known.best, known.best_at = 0.0, valid, known.step
        known.turn("settled")
    else:
        _begin_plateau(known, valid)


def _learn_noise(known: _Branch) -> None:
    """Take the newest change of the level into the mean."""
    if len(known.valid) > 1:
        known.looks += 1
        known.jumps += ((known.valid[-1] - known.valid[-2]) ** 2 - known.jumps) / known.looks


def _begin_plateau(known: _Branch, valid: float) -> None:
    known.floor, known.seen, known.onset, known.event = valid, 1, known.step, None
    known.turn("plateau")


def _in_plateau(known: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    lift, noise = valid - known.floor, known.noise
    if lift < LIFT / 4:  # what may be the rise itself stays out
        known.seen += 1
        known.floor += lift / known.seen
        _learn_noise(known)
    if lift < max(LIFT / 4, 2 * noise):
        known.onset = known.step
    risen = lift >= max(LIFT, NOISE * noise) and train >= MEMORISED
    if not risen:  # at once: a median of five asks for three of them
        return None
    known.turn("generalising")
    known.best, known.best_at = valid, known.step
    known.event = _event(known, "generalising", known.onset, train, valid, progress)
    return known.event


def _after_the_event(known: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    since = known.holds("fallen", valid < (known.floor + known.best) / 2, known.step)
    if since is not None:
        event = _event(known, "collapse", since, train, valid, progress)
        _begin_plateau(known, valid)
        return event
    if valid > known.best:
        known.best, known.best_at = valid, known.step
    if known.state == "generalising" and known.step - known.best_at > _REST * known.step:
        known.state = "settled"
    return None


def _event(known: _Branch, kind: Kind, onset: int, train: float, valid: float, progress: dict[str, float]) -> Event:
    """An event with its evidence."""
    noise = known.noise
    evidence = {"train": train, "valid": valid, "floor": known.floor, "noise": noise, "memorised": known.memorised}
    for name, value in progress.items():
        if known.then.get(name):
            evidence[f"{name} since memorised"] = value / known.then[name]
    beyond = (valid - known.floor) / max(noise, 1e-3) if kind == "generalising" else NOISE
    tail = math.erfc(beyond / math.sqrt(2)) / 2 * max(known.seen, 1)  # of so many looks
    return Event(kind, known.name, onset, known.step, 1 - min(tail, 1.0), evidence)
