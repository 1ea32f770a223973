"""Figures of evaluations: a metric by stratum as lines or bars, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.evaluation.metrics import mean_interval
from graphllmrec.report.elements import difference_cell
from graphllmrec.report.format import UNEQUAL, integer, percent, significance
from graphllmrec.report.plots.look import (
    BAD,
    GOOD,
    GRID,
    INK,
    LETTER,
    LINE_GAP,
    MUTED,
    TEXT,
    WIDTH,
    Look,
    label_ends,
    new_figure,
    to_svg,
)

STRATUM_AXES = {
    "item_degree": "training clicks of the target item",
    "item_popularity": "popularity of the target item",
    "user_activity": "length of the user's history",
}
FARTHEST = 1.0  # +100 %: one large difference must not press all others together
_LONGEST = 30  # letters of a name
_TICK = 0.8  # inches that a percentage on the axis needs
_COLOURS = {"good": GOOD, "bad": BAD, "same": MUTED}


@dataclass(frozen=True)
class Difference:
    """A relative difference of two models, with its interval; None where the second one's mean is 0."""

    name: str
    relative: float | None
    interval: tuple[float, float] | None
    difference: float
    p: float
    unequal: bool = False  # the two were tuned with unequal numbers of trials: drawn grey, whatever p


@dataclass(frozen=True)
class Bar:
    """The mean of a model in a stratum, with its interval."""

    mean: float
    low: float
    high: float


def strata_figure(evaluations: Mapping[str, Evaluation], kind: str, metric: str, look: Mapping[str, Look]) -> Markup:
    """A metric in every stratum of `kind`, a line per model with 95 % intervals, labelled at its right end."""
    first = next(iter(evaluations.values()))
    strata = [name for name, row in first.strata[kind].items() if row["users"]]
    figure, axes = new_figure()
    ends = {}
    places = np.linspace(-0.15, 0.15, len(evaluations)) if len(evaluations) > 1 else [0.0]  # side by side
    for place, (name, entry) in zip(places, evaluations.items(), strict=True):
        values = [entry.within(kind, stratum)[metric].to_numpy() for stratum in strata]
        bars = [Bar(float(value.mean()), *mean_interval(value)) for value in values]
        _line(axes, np.arange(len(strata)) + place, bars, look[name])
        ends[name] = bars[-1].mean
    _stratum_axis(axes, {name: int(first.strata[kind][name]["users"]) for name in strata}, STRATUM_AXES[kind])
    side = 0.3 if len(strata) > 1 else 0.6
    axes.set_xlim(-side, len(strata) - 1 + side)
    label_ends(axes, ends, look)
    return to_svg(figure, f"{metric} by {kind.replace('_', ' ')} for {', '.join(evaluations)}")


def bars_figure(
    bars: Mapping[str, Sequence[Bar]], users: Mapping[str, int], look: Mapping[str, Look], title: str
) -> Markup:
    """A bar per model in every stratum, with intervals. `bars`: by model, in the order of `users` (by stratum)."""
    figure, axes = new_figure(right=0.985)
    width = min(0.84 / len(bars), 0.22)
    for number, (name, row) in enumerate(bars.items()):
        x = np.arange(len(users)) + width * (number + 0.5 - len(bars) / 2)
        axes.bar(x, [bar.mean for bar in row], width * 0.9, color=look[name].colour)
        axes.vlines(x, [bar.low for bar in row], [bar.high for bar in row], color=INK, lw=1, alpha=0.65)
    _stratum_axis(axes, users, STRATUM_AXES["item_degree"])
    axes.set_xlim(-0.5, len(users) - 0.5)
    return to_svg(figure, title)


def forest_figure(rows: Sequence[Difference], title: str) -> Markup:
    """Relative difference and 95 % interval, a line each; green: better, red: worse, grey: not significant.

    What lies beyond FARTHEST ends at the right edge; the figure beside it says how large it is.
    """
    names = [row.name if len(row.name) <= _LONGEST else row.name[: _LONGEST - 1] + "…" for row in rows]
    left = min(0.03 + LETTER * max(map(len, names)), 0.45)
    figure, axes = new_figure(LINE_GAP * (len(rows) + 0.5) + 0.45, left=left, right=0.7, below=0.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _difference_axis(axes, rows)
    for y, row in enumerate(rows):
        _difference(axes, y, row)
    axes.set_yticks(range(len(rows)), names, color=INK)
    return to_svg(figure, title)


def _line(axes: Axes, x: np.ndarray, bars: Sequence[Bar], style: Look) -> None:
    axes.plot(
        x, [bar.mean for bar in bars], color=style.colour, lw=style.width, ls="--" if style.dashed else "-",
        marker=style.marker, ms=5, zorder=3 if style.width > 2 else 2, clip_on=False,
    )  # fmt: skip
    axes.vlines(x, [bar.low for bar in bars], [bar.high for bar in bars], color=style.colour, lw=1, alpha=0.55)


def _stratum_axis(axes: Axes, users: Mapping[str, int], title: str) -> None:
    axes.set_xticks(range(len(users)), [f"{name}\n{integer(count)}" for name, count in users.items()])
    axes.set_xlabel(f"{title} / users")
    axes.set_ylim(bottom=0)


def _difference_axis(axes: Axes, rows: Sequence[Difference]) -> None:
    """From the lowest end to the highest one, FARTHEST at most; always with 0."""
    ends = [value for row in rows for value in (*(row.interval or ()), row.relative or 0.0)]
    low, high = min(*ends, 0.0), min(max(*ends, 0.0), FARTHEST)
    margin = 0.05 * max(high - low, 0.01)
    axes.set_xlim(low - margin, high + margin)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, lw=1)
    axes.axvline(0, color=MUTED, lw=1, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(int(axes.get_position().width * WIDTH / _TICK), 1)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0) if value else "0"))


def _difference(axes: Axes, y: int, row: Difference) -> None:
    cell = difference_cell(row.relative, row.difference, row.p)
    colour = MUTED if row.unequal else _COLOURS[significance(row.difference, row.p)]
    mark = f" {UNEQUAL}" if row.unequal else ""
    axes.annotate(
        f"{cell.text}{mark}  {cell.note}", (1.0, y), (12, 0), xycoords=axes.get_yaxis_transform(),
        textcoords="offset points", va="center", fontsize=TEXT, color=colour,
    )  # fmt: skip
    if row.relative is not None and row.interval is not None:
        axes.hlines(y, *np.minimum(row.interval, axes.get_xlim()[1]), color=colour, lw=1.6)
        axes.plot(min(row.relative, axes.get_xlim()[1]), y, marker="o", ms=6, color=colour, clip_on=False)
