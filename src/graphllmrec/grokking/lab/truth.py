"""What counts as grokking in a trajectory, from its whole curves. Written down before the detector's thresholds were.

Levels of both parts as in grokking/detector.py, but with the chance levels the task knows, as a centred median of five
points. Then, in this order:

1. Memorised at T_m: the first point from which the training level is .9 or more and for the next twentieth of the run
   not below .85. Without it there is no event.
2. v0 = mean validation level over [T_m, 1.5 T_m]; v1 = the largest one after T_m; the rise is v1 - v0.
3. T_e, the time of the event: the first point after T_m at which the level has reached v0 + rise / 2.
4. There is an event if the rise is at least .25, T_e at least 2 T_m, and the training level not below .85 up to T_e.
   There is none if the rise is below .1, or if T_e is below 1.5 T_m. What lies between is unclear: it is counted
   neither for nor against a detector, and listed.
5. Onset: the last point before T_e at which the level is below v0 + rise / 10.
6. The event collapses at the first point after T_e from which the level is below v0 + rise / 2 for a twentieth of the
   run.

A detection is a hit if it comes between (T_e - T_m) / 10 before the onset and as long after T_e; its delay is
(detection - onset) / (T_e - T_m). The first detection of a run counts; any in a run without event is a false alarm, and
so is one before the hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from graphllmrec.grokking.lab.trajectory import Curve, Trajectory

Label = Literal["event", "none", "unclear"]


@dataclass(frozen=True)
class Truth:
    """What a trajectory shows; steps, or None where there is no such step."""

    label: Label
    memorised: int | None = None
    onset: int | None = None
    event: int | None = None
    collapse: int | None = None
    rise: float = 0.0

    @property
    def distance(self) -> int:
        """Steps from memorisation to the event."""
        return 0 if self.event is None or self.memorised is None else self.event - self.memorised


def levels(run: Trajectory, part: str) -> Curve:
    """Level (n,) of "train" or "valid", 0..1, not smoothed."""
    with np.errstate(invalid="ignore"):
        loss = np.clip(1 - run.curves[f"{part}_loss"] / run.chance_loss, 0, 1)
    metric = np.clip((run.curves[f"{part}_metric"] - run.chance_metric) / (1 - run.chance_metric), 0, 1)
    return (np.nan_to_num(loss) + metric) / 2


def truth_of(run: Trajectory) -> Truth:
    """The verdict of the module's rules on one run."""
    train, valid = (median_filter(levels(run, part), 5, mode="nearest") for part in ("train", "valid"))
    step, span = run.step, max(len(run.step) // 20, 1)
    known = _first_lasting(train >= 0.9, train >= 0.85, span)
    if known is None:
        return Truth("none")
    memorised = int(step[known])
    v0 = float(valid[(step >= memorised) & (step <= 1.5 * memorised)].mean())
    after = valid[known:]
    rise = float(after.max()) - v0
    half = known + int(np.argmax(after >= v0 + rise / 2))
    event = int(step[half])
    if rise < 0.1 or event < 1.5 * memorised:
        return Truth("none", memorised, rise=rise)
    below = np.flatnonzero(valid[:half] < v0 + rise / 10)
    onset = int(step[max(below[-1], known)]) if len(below) else memorised
    lost = _first_lasting(valid[half:] < v0 + rise / 2, valid[half:] < v0 + rise / 2, span)
    collapse = int(step[half + lost]) if lost is not None else None
    sure = rise >= 0.25 and event >= 2 * memorised and train[known : half + 1].min() >= 0.85
    return Truth("event" if sure else "unclear", memorised, onset, event, collapse, rise)


def _first_lasting(starts: NDArray[np.bool_], lasts: NDArray[np.bool_], span: int) -> int | None:
    """The first place where `starts` holds and `lasts` does for `span` points from there (or to the end)."""
    for place in np.flatnonzero(starts).tolist():
        if lasts[place : place + span].all():
            return int(place)
    return None
