"""Rules that detect late generalisation in a run: the detector and the rules it is compared with.

Every rule is causal: at each point it uses the past only. The exception is `change_point`, which reads the whole curve.
All rules start when the training data are memorised (training level .9). Their thresholds are chosen on the part
"build" (protocol.py); the detector keeps those of grokking/detector.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphllmrec.grokking.detector import MEMORISED, Event, GrokkingDetector, Scale, State
from graphllmrec.grokking.lab.trajectory import Trajectory
from graphllmrec.grokking.lab.truth import levels

Rule = Callable[[Trajectory, float], int | None]  # (run, threshold) -> step of the detection
_REFERENCE = 10  # points from memorisation on at which no rule fires; CUSUM takes its mean and deviation from them


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


def detector(run: Trajectory, _threshold: float = 0.0) -> int | None:
    """The state machine of grokking/detector.py."""
    return first_detection(observe(run))


def two_points(run: Trajectory, threshold: float) -> int | None:
    """Rise of the validation metric above its minimum since memorisation ("+2 points": threshold .02)."""
    return _first_crossing(run, run.curves["valid_metric"], lambda past: past[-1] - past.min() >= threshold)


def gap(run: Trajectory, threshold: float) -> int | None:
    """Relative fall of the gap between training and validation level from its maximum since memorisation."""
    values = levels(run, "train") - levels(run, "valid")
    return _first_crossing(run, values, lambda past: past[-1] <= (1 - threshold) * past.max())


def weight_norm(run: Trajectory, threshold: float) -> int | None:
    """Relative fall of the weight norm from its maximum since memorisation."""
    return _first_crossing(run, run.curves["weight_norm"], lambda past: past[-1] <= (1 - threshold) * past.max())


def rank_collapse(run: Trajectory, threshold: float) -> int | None:
    """Relative fall of the effective rank from its maximum since memorisation."""
    return _first_crossing(run, run.curves["effective_rank"], lambda past: past[-1] <= (1 - threshold) * past.max())


def cusum(run: Trajectory, threshold: float) -> int | None:
    """CUSUM (Page 1954) of the standardised validation levels, with an allowance of half a deviation per point."""
    step, values = _after_memorisation(run, levels(run, "valid"))
    if len(values) <= _REFERENCE:
        return None
    mean, std = values[:_REFERENCE].mean(), max(float(values[:_REFERENCE].std()), 1e-3)
    total = 0.0
    for at, value in zip(step[_REFERENCE:], values[_REFERENCE:], strict=True):
        total = max(total + (value - mean) / std - 0.5, 0.0)
        if total > threshold:
            return int(at)
    return None


def page_hinkley(run: Trajectory, threshold: float) -> int | None:
    """Page-Hinkley test (Hinkley 1971) on the validation level, with an allowance of .005 per point."""
    step, values = _after_memorisation(run, levels(run, "valid"))
    mean = total = lowest = 0.0
    for count, (at, value) in enumerate(zip(step, values, strict=True), start=1):
        mean += (value - mean) / count
        total += value - mean - 0.005
        lowest = min(lowest, total)
        if count > _REFERENCE and total - lowest > threshold:
            return int(at)
    return None


def change_point(run: Trajectory, threshold: float) -> int | None:
    """Offline: best single change of the mean validation level (binary segmentation), if a rise of `threshold`."""
    import ruptures

    step, values = _after_memorisation(run, levels(run, "valid"))
    if len(values) < 2 * _REFERENCE:
        return None
    [place, _] = ruptures.Binseg(model="l2", min_size=3, jump=1).fit(values).predict(n_bkps=1)
    return int(step[place]) if values[place:].mean() - values[:place].mean() >= threshold else None


RULES: dict[str, tuple[Rule, Sequence[float]]] = {
    "detector": (detector, (0.0,)),
    "+2 points": (two_points, (0.02,)),
    "points, tuned": (two_points, (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)),
    "gap": (gap, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)),
    "weight norm": (weight_norm, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "effective rank": (rank_collapse, (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "CUSUM": (cusum, (5.0, 20.0, 100.0, 300.0, 1000.0, 3000.0)),
    "Page-Hinkley": (page_hinkley, (0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0)),
    "change point, offline": (change_point, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)),
}


def _after_memorisation(run: Trajectory, values: Any) -> tuple[Any, Any]:
    """Steps and values from the first memorised point on."""
    known = np.flatnonzero(levels(run, "train") >= MEMORISED)
    start = int(known[0]) if len(known) else len(values)
    return run.step[start:], values[start:]


def _first_crossing(run: Trajectory, values: Any, fires: Callable[[Any], bool]) -> int | None:
    """The first step at which `fires` is true of the values since memorisation."""
    step, values = _after_memorisation(run, values)
    for place in range(_REFERENCE, len(values)):
        if fires(values[: place + 1]):
            return int(step[place])
    return None
