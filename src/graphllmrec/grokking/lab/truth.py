"""The ground truth of a run: does its whole curve show grokking? Fixed before the detector's thresholds were chosen.

Levels as in grokking/detector.py, with the chance levels of the task and a centred median of five points. Then:

1. T_m, memorisation: the first point at which the training level is .9 or more and stays at .85 or more for the next
   twentieth of the run. Without T_m there is no event.
2. v0: mean validation level over [T_m, 1.5 T_m]; v1: largest validation level after T_m; rise: v1 - v0.
3. T_e, the event: the first point after T_m at which the validation level reaches v0 + rise / 2.
4. The label is "event" if the rise is at least .25, T_e at least 2 T_m, and the training level at least .85 up to T_e.
   It is "none" if the rise is below .1 or T_e below 1.5 T_m. All other runs are "unclear": they are listed, but left
   out of every count.
5. Onset: the last point from T_m to T_e at which the level is below v0 + rise / 10; T_m if there is none.
6. Collapse: the first point after T_e from which the level stays below v0 + rise / 2 for a twentieth of the run.

A detection is a hit from (T_e - T_m) / 10 before the onset to (T_e - T_m) / 10 after T_e. Its delay is
(detection - onset) / (T_e - T_m). Only the first detection of a run counts. It is a false alarm in a run without event,
and before the time of a hit.
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
    """Label and steps of a run; None where a step does not exist."""

    label: Label
    memorised: int | None = None
    onset: int | None = None
    event: int | None = None
    collapse: int | None = None
    rise: float = 0.0

    @property
    def distance(self) -> int:
        """Steps from memorisation to the event, T_e - T_m."""
        return 0 if self.event is None or self.memorised is None else self.event - self.memorised


def levels(run: Trajectory, part: str) -> Curve:
    """Level (n,) of the part "train" or "valid", 0..1, not smoothed."""
    with np.errstate(invalid="ignore"):
        loss = np.clip(1 - run.curves[f"{part}_loss"] / run.chance_loss, 0, 1)
    metric = np.clip((run.curves[f"{part}_metric"] - run.chance_metric) / (1 - run.chance_metric), 0, 1)
    return (np.nan_to_num(loss) + metric) / 2


def find_truth(run: Trajectory) -> Truth:
    """Apply the rules of the module docstring to one run."""
    train, valid = (median_filter(levels(run, part), 5, mode="nearest") for part in ("train", "valid"))
    step, span = run.step, max(len(run.step) // 20, 1)
    start = _first_lasting(train >= 0.9, train >= 0.85, span)
    if start is None:
        return Truth("none")
    memorised = int(step[start])
    v0 = float(valid[(step >= memorised) & (step <= 1.5 * memorised)].mean())
    after = valid[start:]
    rise = float(after.max()) - v0
    half = start + int(np.argmax(after >= v0 + rise / 2))
    event = int(step[half])
    if rise < 0.1 or event < 1.5 * memorised:
        return Truth("none", memorised, rise=rise)
    below = np.flatnonzero(valid[:half] < v0 + rise / 10)
    onset = int(step[max(below[-1], start)]) if len(below) else memorised
    fall = _first_lasting(valid[half:] < v0 + rise / 2, valid[half:] < v0 + rise / 2, span)
    collapse = int(step[half + fall]) if fall is not None else None
    sure = rise >= 0.25 and event >= 2 * memorised and train[start : half + 1].min() >= 0.85
    return Truth("event" if sure else "unclear", memorised, onset, event, collapse, rise)


def _first_lasting(starts: NDArray[np.bool_], lasts: NDArray[np.bool_], span: int) -> int | None:
    """The first place where `starts` holds, and `lasts` for the `span` points from there (or to the end)."""
    for place in np.flatnonzero(starts).tolist():
        if lasts[place : place + span].all():
            return int(place)
    return None
