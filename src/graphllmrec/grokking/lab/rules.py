"""Rules that say when a run began to generalise: ours, and the ones that it is compared with.

Every rule is shown the points of a run one after the other and may look at nothing later, but for `change_point`, which
sees the whole curve. All of them wait until the training data are memorised (training level .9). The thresholds of the
others are chosen on the build part (protocol.py), ours are those of grokking/detector.py.
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
_FIRST = 10  # points after memorisation that a rule takes its reference from


@dataclass(frozen=True)
class Watched:
    """What the detector said of a run."""

    events: list[Event]
    states: list[State]  # (n,) after every point


def watch(run: Trajectory) -> Watched:
    """Show a run to the detector, with the chance levels that its task knows."""
    scales = {"loss": Scale(run.chance_loss), "metric": Scale(run.chance_metric)}
    detector, events, states = GrokkingDetector(scales), [], []
    for step, train, valid, progress in run.points():
        events += detector.update(step, train=train, valid=valid, progress=progress)
        states.append(detector.state())
    return Watched(events, states)


def first_event(seen: Watched) -> int | None:
    """The step at which the detector first said that a run generalises."""
    return next((event.detected for event in seen.events if event.kind == "generalising"), None)


def detector(run: Trajectory, _threshold: float = 0.0) -> int | None:
    """The state machine of grokking/detector.py."""
    return first_event(watch(run))


def two_points(run: Trajectory, threshold: float) -> int | None:
    """The validation metric is `threshold` above its lowest value since memorisation ("+2 points" at .02)."""
    return _since_memory(run, run.curves["valid_metric"], lambda seen: seen[-1] - seen.min() >= threshold)


def gap(run: Trajectory, threshold: float) -> int | None:
    """The gap between training and validation level has lost this share of its largest value."""
    values = levels(run, "train") - levels(run, "valid")
    return _since_memory(run, values, lambda seen: seen[-1] <= (1 - threshold) * seen.max())


def weight_norm(run: Trajectory, threshold: float) -> int | None:
    """The norm of all weights has lost this share of its largest value."""
    return _since_memory(run, run.curves["weight_norm"], lambda seen: seen[-1] <= (1 - threshold) * seen.max())


def rank_collapse(run: Trajectory, threshold: float) -> int | None:
    """The effective rank has lost this share of its largest value."""
    return _since_memory(run, run.curves["effective_rank"], lambda seen: seen[-1] <= (1 - threshold) * seen.max())


def cusum(run: Trajectory, threshold: float) -> int | None:
    """Page's sum (1954) of standardised validation levels, less half a deviation each, is above `threshold`."""
    step, values = _from_memory(run, levels(run, "valid"))
    if len(values) <= _FIRST:
        return None
    mean, std = values[:_FIRST].mean(), max(float(values[:_FIRST].std()), 1e-3)
    total = 0.0
    for at, value in zip(step[_FIRST:], values[_FIRST:], strict=True):
        total = max(total + (value - mean) / std - 0.5, 0.0)
        if total > threshold:
            return int(at)
    return None


def page_hinkley(run: Trajectory, threshold: float) -> int | None:
    """The sum of deviations from the running mean (less .005 each) is `threshold` above its lowest (Hinkley 1971)."""
    step, values = _from_memory(run, levels(run, "valid"))
    mean = total = lowest = 0.0
    for count, (at, value) in enumerate(zip(step, values, strict=True), start=1):
        mean += (value - mean) / count
        total += value - mean - 0.005
        lowest = min(lowest, total)
        if count > _FIRST and total - lowest > threshold:
            return int(at)
    return None


def change_point(run: Trajectory, threshold: float) -> int | None:
    """Offline: the best single change of the mean (binary segmentation, ruptures), if it is a rise of `threshold`."""
    import ruptures

    step, values = _from_memory(run, levels(run, "valid"))
    if len(values) < 2 * _FIRST:
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


def _from_memory(run: Trajectory, values: Any) -> tuple[Any, Any]:
    """Steps and values from the first point at which the training data are memorised."""
    known = np.flatnonzero(levels(run, "train") >= MEMORISED)
    start = int(known[0]) if len(known) else len(values)
    return run.step[start:], values[start:]


def _since_memory(run: Trajectory, values: Any, fires: Callable[[Any], bool]) -> int | None:
    step, values = _from_memory(run, values)
    for place in range(_FIRST, len(values)):
        if fires(values[: place + 1]):
            return int(step[place])
    return None
