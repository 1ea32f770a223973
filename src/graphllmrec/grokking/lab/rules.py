"""Rules that detect late generalisation in a run: the detector and the rules it is compared with.

A rule is a statistic, a value per point, and a threshold: it fires at the first point whose value is at least the
threshold. Every rule is causal: each value depends on the past only. The exception is `change_point`, which reads the
whole curve.

Rules start when the training data are memorised (training level .9, at step T_m), or, "after the wait", at 2 · T_m:
what rises before counts as ordinary learning. The second is part of the definition of an event (truth.py), as are the
levels; each rule is scored with and without it, so that the detector has no knowledge that the others lack.

Thresholds are chosen on the parts of collection.py to build on (protocol.py); the detector keeps those of
grokking/detector.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphllmrec.grokking.detector import LATE, MEMORISED, Event, GrokkingDetector, Scale, State
from graphllmrec.grokking.lab.trajectory import Curve, Trajectory
from graphllmrec.grokking.lab.truth import levels

_REFERENCE = 10  # points from memorisation on at which no rule fires without the wait
_WINDOW, _DELAYS, _SMALL = 20, 5, 1e-2  # of `residual`: points, points, share of the largest singular value


@dataclass(frozen=True)
class ObservedRun:
    """Output of the detector on a run."""

    events: list[Event]
    states: list[State]  # (n,) after each point


def observe(run: Trajectory) -> ObservedRun:
    """Run the detector over all points of a run, with the chance levels of its task."""
    scales = {"loss": Scale(run.chance_loss), "metric": Scale(run.chance_metric)}
    detector, events, states = GrokkingDetector(scales), [], []
    for step, train, valid, progress in run.points():
        events += detector.update(step, train=train, valid=valid, progress=progress)
        states.append(detector.state())
    return ObservedRun(events, states)


def first_detection(observed: ObservedRun) -> int | None:
    """The step at which the detector first reported "generalising"."""
    return next((event.detected for event in observed.events if event.kind == "generalising"), None)


@dataclass(frozen=True)
class Stretch:
    """The points of a run that a rule reads."""

    start: int  # memorisation: mean and deviation before a rise are those of the points start..first
    since: int  # first point of running extremes and sums
    first: int  # first point at which the rule may fire


Statistic = Callable[[Trajectory, Stretch], Curve]  # a value for each point from `first` on


@dataclass(frozen=True)
class Reading:
    """The values (m,) of a rule's statistic on a run, and their steps (m,)."""

    step: NDArray[np.int64]
    values: Curve

    def detect(self, threshold: float) -> int | None:
        """The first step with a value of at least `threshold`; None without one."""
        fired = np.flatnonzero(self.values >= threshold)
        return int(self.step[fired[0]]) if len(fired) else None

    @property
    def highest(self) -> float:
        """The largest value, at least 0: the score of the whole run."""
        return float(self.values.max(initial=0.0))


@dataclass(frozen=True)
class Rule:
    """A statistic and the thresholds to choose from."""

    statistic: Statistic
    thresholds: Sequence[float]
    wait: bool = True

    def read(self, run: Trajectory) -> Reading:
        """The statistic at all points at which the rule may fire."""
        stretch = find_stretch(run, self.wait)
        step = run.step[stretch.first :]
        return Reading(step, self.statistic(run, stretch) if len(step) else np.empty(0))


def find_stretch(run: Trajectory, wait: bool) -> Stretch:
    """The points from memorisation on, or from LATE times its step on; none if the run does not memorise."""
    known = np.flatnonzero(levels(run, "train") >= MEMORISED)
    start = int(known[0]) if len(known) else len(run.step)
    if not wait or not len(known):
        return Stretch(start, start, start + _REFERENCE)
    end = max(int(np.searchsorted(run.step, LATE * run.step[start])), start + 1)
    return Stretch(start, end, end)


def detector(run: Trajectory, stretch: Stretch) -> Curve:
    """The state machine of grokking/detector.py: 1 from its first event on."""
    detected = first_detection(observe(run))
    return (run.step[stretch.first :] >= (np.inf if detected is None else detected)).astype(np.float64)


def points(run: Trajectory, stretch: Stretch) -> Curve:
    """Rise of the validation metric above its minimum."""
    values = run.curves["valid_metric"][stretch.since :]
    return (values - np.minimum.accumulate(values))[stretch.first - stretch.since :]


def lift(run: Trajectory, stretch: Stretch) -> Curve:
    """Rise of the validation level above its mean from memorisation to the end of the wait."""
    values = levels(run, "valid")
    return values[stretch.first :] - float(values[stretch.start : stretch.first].mean())


def lift_since_wait(run: Trajectory, stretch: Stretch) -> Curve:
    """Rise of the validation level above the mean of all levels since the end of the wait."""
    return _above_running_mean(levels(run, "valid")[stretch.since :])[stretch.first - stretch.since :]


def lift_since_memorisation(run: Trajectory, stretch: Stretch) -> Curve:
    """Rise of the validation level above the mean of all levels since memorisation."""
    return _above_running_mean(levels(run, "valid")[stretch.start :])[stretch.first - stretch.start :]


def _above_running_mean(values: Curve) -> Curve:
    return values - values.cumsum() / np.arange(1, len(values) + 1)


def gap(run: Trajectory, stretch: Stretch) -> Curve:
    """Relative fall of the gap between training and validation level from its maximum."""
    return _relative_fall(levels(run, "train") - levels(run, "valid"), stretch)


def weight_norm(run: Trajectory, stretch: Stretch) -> Curve:
    """Relative fall of the weight norm from its maximum."""
    return _relative_fall(run.curves["weight_norm"], stretch)


def rank_collapse(run: Trajectory, stretch: Stretch) -> Curve:
    """Relative fall of the effective rank from its maximum."""
    return _relative_fall(run.curves["effective_rank"], stretch)


def _relative_fall(values: Curve, stretch: Stretch) -> Curve:
    values = values[stretch.since :]
    highest = np.maximum.accumulate(values)
    return ((highest - values) / np.maximum(highest, 1e-9))[stretch.first - stretch.since :]


def cusum(run: Trajectory, stretch: Stretch) -> Curve:
    """CUSUM (Page 1954) of the standardised validation levels, with an allowance of half a deviation per point."""
    values = levels(run, "valid")
    reference, total, totals = values[stretch.start : stretch.first], 0.0, []
    mean, std = float(reference.mean()), max(float(reference.std()), 1e-3)
    for value in values[stretch.first :]:
        total = max(total + (value - mean) / std - 0.5, 0.0)
        totals.append(total)
    return np.array(totals)


def page_hinkley(run: Trajectory, stretch: Stretch) -> Curve:
    """Page-Hinkley test (Hinkley 1971) on the validation level, with an allowance of .005 per point."""
    values = levels(run, "valid")[stretch.since :]
    means = values.cumsum() / np.arange(1, len(values) + 1)
    totals = (values - means - 0.005).cumsum()
    return (totals - np.minimum.accumulate(np.minimum(totals, 0)))[stretch.first - stretch.since :]


def residual(run: Trajectory, stretch: Stretch) -> Curve:
    """Residual of a linear model of the validation level (Hankel DMD) in the window that ends at each point.

    After Wang et al. 2026 (arXiv:2605.08237), who decompose distributions of log-probabilities; of these, curves hold
    the mean only. A window has _WINDOW points since memorisation; the model predicts each of them from the _DELAYS
    points before, by least squares without small singular values; the residual is the root of its mean squared error.
    """
    values = levels(run, "valid")[stretch.start :]
    found = np.zeros(len(values))
    if len(values) >= _WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW)  # (m, _WINDOW)
        windows = windows - windows.mean(1, keepdims=True)
        past = np.lib.stride_tricks.sliding_window_view(windows[:, :-1], _DELAYS, axis=1)  # (m, rows, _DELAYS)
        errors = windows[:, _DELAYS:, None] - past @ (
            np.linalg.pinv(past, rcond=_SMALL) @ windows[:, _DELAYS:, None]
        )  # (m, rows, 1)
        found[_WINDOW - 1 :] = np.sqrt(np.square(errors).mean((1, 2)))
    return found[stretch.first - stretch.start :]


def change_point(run: Trajectory, stretch: Stretch) -> Curve:
    """Offline: best single change of the mean validation level (binary segmentation); its rise, from its place on."""
    import ruptures

    values = levels(run, "valid")[stretch.since :]
    found = np.zeros(len(values))
    if len(values) >= 2 * _REFERENCE:
        [place, _] = ruptures.Binseg(model="l2", min_size=3, jump=1).fit(values).predict(n_bkps=1)
        found[place:] = values[place:].mean() - values[:place].mean()
    return found[stretch.first - stretch.since :]


_POINTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
_LIFTS = (0.03, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, 0.2)
_FALLS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
_SUMS = (5.0, 20.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
_TOTALS = (0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0)
_RESIDUALS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01)

RULES: dict[str, Rule] = {
    "detector": Rule(detector, (1.0,)),
    "+.1 after the wait": Rule(lift_since_wait, (0.1,)),
    "+.15 after the wait": Rule(lift_since_wait, (0.15,)),
    "lift since the wait": Rule(lift_since_wait, _LIFTS),
    "lift above the wait": Rule(lift, _LIFTS),
    "lift since memorisation": Rule(lift_since_memorisation, _LIFTS),
    "points": Rule(points, _POINTS),
    "gap": Rule(gap, _FALLS),
    "weight norm": Rule(weight_norm, _FALLS),
    "effective rank": Rule(rank_collapse, _FALLS),
    "CUSUM": Rule(cusum, _SUMS),
    "Page-Hinkley": Rule(page_hinkley, _TOTALS),
    "DMD residual": Rule(residual, _RESIDUALS),
    "change point, offline": Rule(change_point, _POINTS),
    "+2 points, no wait": Rule(points, (0.02,), wait=False),
    "points, no wait": Rule(points, _POINTS, wait=False),
    "gap, no wait": Rule(gap, _FALLS, wait=False),
    "weight norm, no wait": Rule(weight_norm, _FALLS, wait=False),
    "effective rank, no wait": Rule(rank_collapse, _FALLS, wait=False),
    "CUSUM, no wait": Rule(cusum, _SUMS, wait=False),
    "Page-Hinkley, no wait": Rule(page_hinkley, _TOTALS, wait=False),
    "DMD residual, no wait": Rule(residual, _RESIDUALS, wait=False),
    "change point, offline, no wait": Rule(change_point, _POINTS, wait=False),
}
