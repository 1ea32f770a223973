"""Figures of the grokking lab: levels of a run with the detector's states below, and curves of several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from graphllmrec.grokking.detector import Event, State
from graphllmrec.report.plots.look import BAD, GOOD, GRID, INK, MUTED, SERIES, new_figure, to_svg, vertical_mark

Floats = NDArray[np.float64]
STATES: dict[State, str] = {
    "baseline": GRID,
    "memorised": SERIES[4],
    "plateau": SERIES[5],
    "generalising": SERIES[2],
    "settled": SERIES[0],
}
_HEIGHT = 2.7  # inches
_TOP = 1.14  # of the axis of values: names of events stand above the curves


@dataclass(frozen=True)
class LevelRun:
    """A training in levels: 0 is chance, 1 is perfect; with what the definition and the detector say of it."""

    title: str
    caption: str
    name: str  # with all settings: unique on the page
    step: Sequence[int]  # (n,)
    train: Floats  # (n,) level
    valid: Floats  # (n,)
    states: Sequence[State]  # (n,) of the detector after every point
    events: Sequence[Event]  # what the detector said
    defined: Sequence[int] = ()  # steps of onset and event as defined from the whole curve


def levels_figure(run: LevelRun) -> Markup:
    """Both levels over the steps, the detector's states as a band below, events and definition as marks."""
    figure, axes = new_figure(_HEIGHT, left=0.075, right=0.985, below=0.5)
    last = max(int(run.step[-1]), 1)
    _step_axis(axes, last)
    axes.set_ylim(0, _TOP)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(axis="x", pad=18)
    axes.plot(run.step, run.train, color=MUTED, lw=1.6)
    axes.plot(run.step, run.valid, color=INK, lw=1.6)
    _band(axes, run)
    for step in run.defined:
        axes.axvline(step, color=MUTED, lw=1, ls=(0, (3, 3)))
    for event in run.events:
        if event.kind != "memorised":
            vertical_mark(axes, event.detected, event.kind, GOOD if event.kind == "generalising" else BAD)
    return to_svg(figure, f"{run.name}: training and validation level over {last} steps")


def steps_figure(
    step: Sequence[int], curves: Mapping[str, Floats], colours: Mapping[str, str], title: str, *,
    low: float = 0.0, events: Sequence[Event] = (),
) -> Markup:  # fmt: skip
    """Curves (n,) over the steps, with the events; the axis of values goes from `low` to 1."""
    figure, axes = new_figure(_HEIGHT, left=0.085, right=0.985, below=0.3)
    _step_axis(axes, int(step[-1]))
    axes.set_ylim(low, low + (1 - low) * _TOP)
    axes.set_yticks(np.linspace(low, 1, 5))
    for name, values in curves.items():
        axes.plot(step, values, color=colours[name], lw=1.6)
    for event in events:
        vertical_mark(axes, event.detected, event.branch, GOOD)
    return to_svg(figure, title)


def _step_axis(axes: Axes, last: int) -> None:
    axes.set_xlim(0, last)
    axes.set_xticks([0, last], ["0", f"{last:,} steps"])
    axes.get_xticklabels()[-1].set_horizontalalignment("right")


def _band(axes: Axes, run: LevelRun) -> None:
    """A strip below the axis, a piece per stretch of one state."""
    ends = [place for place in range(1, len(run.states)) if run.states[place] != run.states[place - 1]]
    for start, end in zip([0, *ends], [*ends, len(run.states) - 1], strict=True):
        left, right = run.step[start], run.step[end]
        axes.broken_barh(
            [(left, max(right - left, run.step[-1] / 800))], (-0.115, 0.07), color=STATES[run.states[start]], lw=0,
            clip_on=False, transform=axes.get_xaxis_transform(),
        )  # fmt: skip
