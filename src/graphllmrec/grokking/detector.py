"""Detect grokking during training: validation improves long after the training data are memorised.

The losses and metrics of a branch are reduced to one level per part (training, validation), from 0 (chance) to 1
(perfect):

    level = mean of   1 - loss / chance loss   and   (metric - chance) / (perfect - chance),   each within [0, 1],

then the median of the last `_MEDIAN` updates. A state machine follows the two levels of each branch:

    baseline      the training level is below `MEMORISED`
    memorised     the training level has reached `MEMORISED`; until `LATE` times that step, a rise of the validation
                  level counts as ordinary learning
    plateau       that step has passed: the end of the wait
    generalising  the validation level is above the plateau level, its mean since memorisation, by `LIFT` and by `NOISE`
                  standard deviations of a single level; it has risen since the end of the wait, too; and the training
                  data are still memorised: this is the event
    settled       the validation level has stopped rising

The mean since memorisation follows a drift, and has not yet followed a rise that began before the end of the wait. So a
lift of .05 is enough, and slow rises are detected early. That is a rule of two lines; what makes so small a lift usable
is the condition on noise. The deviation of a single level is estimated from second differences over `_MEDIAN` updates:
noise and wandering count, a steady rise does not.

Two transitions lead back: `collapse`, to the plateau, when half of the rise is lost; `forgotten`, to the baseline, when
the training level falls below `FORGOTTEN`. Thresholds are shares of the range from chance to perfect, so they are the
same for every task. A task only gives its chance level and, for a ranking metric that cannot reach 1, its best value.
Loss and metric have equal weight, because a metric that counts hits can jump while the loss is smooth (Schaeffer et al.
2023, arXiv:2304.15004).

One update is a few scalar operations; memory does not grow with the number of updates. Accuracy: docs/grokking.md.
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

MEMORISED = 0.9  # training level from which the training data count as memorised
FORGOTTEN = 0.8  # training level below which they no longer do
LATE = 2.0  # times the step of memorisation; a rise before counts as ordinary learning
LIFT = 0.05  # least rise of the validation level above the plateau level
SINCE_WAIT = 0.25  # least rise since the end of the wait, times LIFT
NOISE = 6.0  # least rise in standard deviations of a single level
_MEDIAN = 5  # updates in the median
_CONFIRMED = 3  # consecutive updates before a change of state; an event needs one
_REST = 0.2  # share of the step number without a new best level after which an event has settled
_EARLIEST, _USUAL = 0.2, 5.0  # range of delays seen, in units of 1 / (learning rate · weight decay)


@dataclass(frozen=True)
class Scale:
    """Chance level and best value of a metric. A loss runs from `chance` to 0."""

    chance: float | None = None  # None: the first value of a loss, 0 for a metric
    perfect: float = 1.0  # metrics only


@dataclass(frozen=True)
class Event:
    """A change in how a branch learns."""

    kind: Kind
    branch: str
    onset: int  # estimated step at which it began
    detected: int  # step of the update that detected it
    confidence: float  # 1 - an upper bound of the probability that noise alone reaches this level
    evidence: Mapping[str, float]  # levels, plateau level, noise, ratios of progress measures since memorisation

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass
class _Branch:
    """State of one branch."""

    name: str
    state: State = "baseline"
    step: int = -1  # of the last update
    initial_losses: dict[str, float] = field(default_factory=dict)  # chance levels of losses without a scale
    train: deque[float] = field(default_factory=lambda: deque(maxlen=_MEDIAN))
    valid: deque[float] = field(default_factory=lambda: deque(maxlen=2 * _MEDIAN + 1))
    streaks: dict[str, tuple[int, int]] = field(default_factory=dict)  # condition -> (consecutive updates, first step)
    memorised: int = 0  # step
    initial_progress: dict[str, float] = field(default_factory=dict)  # progress measures at memorisation
    plateau: float = 0.0  # mean validation level since memorisation, up to an event
    num_levels: int = 0  # updates in this mean
    waited: float = 0.0  # validation level at the end of the wait
    square_bend: float = 0.0  # mean squared second difference of the validation level over _MEDIAN updates
    num_bends: int = 0  # updates in this mean
    onset: int = 0  # last step at which the level was close to the plateau level
    event: Event | None = None  # the current "generalising" event
    best: float = 0.0  # best validation level since the event
    best_step: int = 0

    def held_since(self, condition: str, value: bool, step: int) -> int | None:
        """The first step of the streak, once a condition has held for _CONFIRMED consecutive updates."""
        count, since = self.streaks.get(condition, (0, step))
        self.streaks[condition] = (count + 1, since if count else step) if value else (0, step)
        return self.streaks[condition][1] if self.streaks[condition][0] >= _CONFIRMED else None

    @property
    def valid_level(self) -> float:
        """The median of the last _MEDIAN validation levels."""
        return median(list(self.valid)[-_MEDIAN:])

    @property
    def noise(self) -> float:
        """Standard deviation of a single validation level: a second difference has six times its variance."""
        return math.sqrt(self.square_bend / 6)

    def enter(self, state: State) -> None:
        """Change the state and clear all streaks."""
        self.state = state
        self.streaks.clear()


class GrokkingDetector:
    """Follows any number of branches of one training; the module docstring defines the states.

    >>> detector = GrokkingDetector(scales={"ndcg@20": Scale(perfect=0.12)})
    >>> for step in range(0, 10_000, 100):
    ...     events = detector.update(step, train={"loss": 0.01}, valid={"loss": 4.0, "ndcg@20": 0.01}, branch="graph")
    """

    def __init__(self, scales: Mapping[str, Scale] | None = None) -> None:
        """`scales` by name of a value; a name that ends with "loss" is a loss, every other name a metric."""
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
        """Add the values measured at `step`. Returns the new events, usually none.

        `train` and `valid`: losses and metrics by name, at least one each. `progress`: measures such as weight norm,
        effective rank or gradient norm, which are reported in the evidence of an event. Values that are not finite
        count as chance level. Raises ValueError without a value, or when steps do not rise.
        """
        if not train or not valid:
            raise ValueError("a detector needs at least one training and one validation value per update")
        tracked = self._branches.setdefault(branch, _Branch(branch))
        if step <= tracked.step:
            raise ValueError(f"steps must rise: {step} after {tracked.step}")
        tracked.step = step
        tracked.train.append(self._level(train, tracked.initial_losses, "train "))
        tracked.valid.append(self._level(valid, tracked.initial_losses, "valid "))
        event = _advance(tracked, median(tracked.train), tracked.valid_level, dict(progress or {}))
        return [event] if event is not None else []

    def state(self, branch: str = "") -> State:
        """The current state of a branch."""
        return self._branches[branch].state if branch in self._branches else "baseline"

    def lift(self, branch: str = "") -> float:
        """Rise of the validation level above the plateau level, 0..1; 0 without a current event."""
        tracked = self._branches.get(branch)
        if tracked is None or tracked.event is None:
            return 0.0
        return max(tracked.valid_level - tracked.plateau, 0.0)

    def level(self, branch: str = "") -> float:
        """The validation level of a branch, 0..1; 0 before its first update."""
        return self._branches[branch].valid_level if branch in self._branches else 0.0

    def event(self, branch: str = "") -> Event | None:
        """The current "generalising" event of a branch; None without one, or after a collapse."""
        tracked = self._branches.get(branch)
        return None if tracked is None else tracked.event

    def waits_until(
        self, learning_rate: float, weight_decay: float, branch: str = "", budget: float = math.inf
    ) -> float | None:
        """The last step at which an event is plausible; None unless the branch has memorised and not generalised.

        With decoupled weight decay the delay after memorisation is about
        log(|θ|² at memorisation / |θ|² at the end) / (learning rate · weight decay). Observed delays are `_EARLIEST` to
        `_USUAL` times 1 / (learning rate · weight decay). None also without weight decay, and when even the earliest
        delay ends after `budget` steps.
        """
        tracked = self._branches.get(branch)
        if tracked is None or tracked.state not in ("memorised", "plateau") or learning_rate * weight_decay <= 0:
            return None
        delay = 1 / (learning_rate * weight_decay)
        if tracked.memorised + _EARLIEST * delay > budget:
            return None
        return min(tracked.memorised + _USUAL * delay, budget)

    def _level(self, values: Mapping[str, float], initial_losses: dict[str, float], part: str) -> float:
        """Mean level over losses and metrics, 0..1."""
        levels = []
        for name, value in values.items():
            scale = self.scales.get(name, Scale())
            if name.endswith("loss"):
                chance = scale.chance if scale.chance is not None else initial_losses.setdefault(part + name, value)
                level = 1 - value / chance if chance > 0 else 0.0
            else:
                chance = scale.chance or 0.0
                level = (value - chance) / (scale.perfect - chance)
            levels.append(min(max(level, 0.0), 1.0) if math.isfinite(level) else 0.0)
        return sum(levels) / len(levels)


def _advance(branch: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    """One step of the state machine."""
    if branch.state != "baseline" and branch.held_since("forgotten", train < FORGOTTEN, branch.step) is not None:
        branch.enter("baseline")
        branch.event = None
        return _event(branch, "forgotten", branch.step, train, valid, progress)
    if branch.state == "baseline":
        return _advance_baseline(branch, train, valid, progress)
    if branch.state == "memorised":
        _advance_memorised(branch, valid)
        return None
    if branch.state == "plateau":
        return _advance_plateau(branch, train, valid, progress)
    return _advance_after_event(branch, train, valid, progress)


def _advance_baseline(branch: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    since = branch.held_since("memorised", train >= MEMORISED, branch.step)
    if since is None:
        return None
    branch.enter("memorised")
    branch.memorised, branch.initial_progress, branch.event = since, progress, None
    branch.plateau, branch.num_levels, branch.square_bend, branch.num_bends = 0.0, 0, 0.0, 0
    return _event(branch, "memorised", since, train, valid, progress)


def _advance_memorised(branch: _Branch, valid: float) -> None:
    _update_means(branch)
    if branch.step < LATE * branch.memorised or branch.num_levels < _MEDIAN:
        return
    if valid >= MEMORISED:  # learned together with the training data: no room for a late rise
        branch.plateau, branch.best, branch.best_step = 0.0, valid, branch.step
        branch.enter("settled")
    else:
        _enter_plateau(branch, valid)


def _update_means(branch: _Branch) -> None:
    """Add the newest level to the mean since memorisation, and its second difference to the noise."""
    branch.num_levels += 1
    branch.plateau += (branch.valid[-1] - branch.plateau) / branch.num_levels
    apart = min(_MEDIAN, (branch.num_levels - 1) // 2)  # less than _MEDIAN close to memorisation
    if apart:
        bend = branch.valid[-1] - 2 * branch.valid[-1 - apart] + branch.valid[-1 - 2 * apart]
        branch.num_bends += 1
        branch.square_bend += (bend**2 - branch.square_bend) / branch.num_bends


def _enter_plateau(branch: _Branch, valid: float) -> None:
    branch.waited, branch.onset, branch.event = valid, branch.step, None
    branch.enter("plateau")


def _advance_plateau(branch: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    lift, noise = valid - branch.plateau, branch.noise
    if lift < max(LIFT / 4, 2 * noise):
        branch.onset = branch.step
    rises = lift >= max(LIFT, NOISE * noise) and valid - branch.waited >= SINCE_WAIT * LIFT
    if rises and train >= MEMORISED and branch.num_bends >= _MEDIAN:
        # no streak needed: in a median of five, three levels have risen
        branch.enter("generalising")
        branch.best, branch.best_step = valid, branch.step
        branch.event = _event(branch, "generalising", branch.onset, train, valid, progress)
        return branch.event
    _update_means(branch)
    return None


def _advance_after_event(branch: _Branch, train: float, valid: float, progress: dict[str, float]) -> Event | None:
    since = branch.held_since("fallen", valid < (branch.plateau + branch.best) / 2, branch.step)
    if since is not None:
        event = _event(branch, "collapse", since, train, valid, progress)
        branch.plateau, branch.num_levels = valid, 1
        _enter_plateau(branch, valid)
        return event
    if valid > branch.best:
        branch.best, branch.best_step = valid, branch.step
    if branch.state == "generalising" and branch.step - branch.best_step > _REST * branch.step:
        branch.state = "settled"
    return None


def _event(branch: _Branch, kind: Kind, onset: int, train: float, valid: float, progress: dict[str, float]) -> Event:
    """An event with its evidence."""
    noise = branch.noise
    evidence = {"train": train, "valid": valid, "plateau": branch.plateau}
    evidence |= {"noise": noise, "memorised": branch.memorised}
    for name, value in progress.items():
        if branch.initial_progress.get(name):
            evidence[f"{name} since memorised"] = value / branch.initial_progress[name]
    deviations = (valid - branch.plateau) / max(noise, 1e-3) if kind == "generalising" else NOISE
    tail = (
        math.erfc(deviations / math.sqrt(2)) / 2 * max(branch.num_levels, 1)
    )  # union bound over the plateau's updates
    return Event(kind, branch.name, onset, branch.step, 1 - min(tail, 1.0), evidence)
