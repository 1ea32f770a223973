"""Figures of gates and trainings: γ by clicks and over epochs, contexts, validation and loss curves, branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from graphllmrec.report.plots.look import (
    ONE_LINE,
    TEXT,
    Look,
    epoch_axis,
    label_ends,
    looks,
    new_figure,
    to_svg,
    vertical_mark,
)

GAMMA_AXIS = "γ: weight of the text branch"
_MANY = 30  # points of a curve
Log = Sequence[Mapping[str, Any]]  # entries of log.jsonl


@dataclass(frozen=True)
class GateTable:
    """What a gate does with every item: γ, the weight of the text branch, and in which context the item counts."""

    degree: NDArray[np.int64]  # (n,) training clicks
    gamma: NDArray[np.float32]  # (n,) in [0, 1]
    contexts: Mapping[str, NDArray[np.float32]]  # {"cold/tail": (n,) membership in [0, 1], …}; {} without contexts

    def shares_contexts(self, other: GateTable) -> bool:
        """Do the items belong to the same contexts, by the same names?"""
        return (
            self.contexts.keys() == other.contexts.keys()
            and np.array_equal(self.degree, other.degree)
            and all(np.array_equal(values, other.contexts[name]) for name, values in self.contexts.items())
        )


@dataclass(frozen=True)
class Curve:
    """Logged values of one training stage."""

    stage: str  # its name; "stage 2" where the log has none
    begins: float  # epochs of the stages before
    epochs: list[float]  # (n,) counted through all stages
    values: list[float]  # (n,)

    @property
    def own_epochs(self) -> list[float]:
        """Epochs of this stage (n,)."""
        return [epoch - self.begins for epoch in self.epochs]


def gate_figure(gates: Mapping[str, GateTable], look: Mapping[str, Look]) -> Markup:
    """γ against training clicks (log axis with a place for 0): median and middle half of the items, per model."""
    figure, axes = new_figure(below=ONE_LINE)
    ends: dict[str, float] = {}
    drawn: list[NDArray[np.float64]] = []
    for name, gate in gates.items():
        x, groups = _by_degree(gate.degree)
        bands = np.array([np.quantile(gate.gamma[rows], [0.25, 0.5, 0.75]) for rows in groups]).T
        ends[name] = _band(axes, x, bands, look[name], again=any(np.array_equal(bands, other) for other in drawn))
        drawn.append(bands)
    axes.set_ylim(0, 1)
    _degree_axis(axes, [gate.degree for gate in gates.values()])
    axes.set_ylabel(GAMMA_AXIS)
    label_ends(axes, ends, look)
    return to_svg(figure, f"gate by training clicks for {', '.join(gates)}")


def contexts_figure(gate: GateTable, names: str) -> Markup:
    """Mean membership of the items in every context against training clicks; at any degree they add up to 1."""
    figure, axes = new_figure(below=ONE_LINE)
    x, groups = _by_degree(gate.degree)
    for name, style in looks(list(gate.contexts)).items():
        share = [float(gate.contexts[name][rows].mean()) for rows in groups]
        axes.plot(x, share, color=style.colour, lw=2, marker=style.marker, ms=4.5, label=name)
    axes.set_ylim(0, 1)
    _degree_axis(axes, [gate.degree])
    axes.set_ylabel("mean membership")
    axes.legend(  # most curves end at 0, where names at their ends would be in each other's way
        loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=TEXT, labelcolor="linecolor",
        handlelength=1.4, handletextpad=0.5,
    )  # fmt: skip
    return to_svg(figure, f"membership in {', '.join(gate.contexts)} by training clicks for {names}")


def gate_log(entries: Log) -> list[Mapping[str, Any]]:
    """The log entries with summaries of the gate (evaluation/strata.py, `gate_summary`)."""
    return [entry for entry in entries if isinstance(entry.get("gate"), Mapping)]


def gate_log_figure(entries: Log, groups: Sequence[str], title: str) -> Markup:
    """γ of these groups of items by epoch: median, and the middle half as band."""
    figure, axes = new_figure(below=ONE_LINE)
    style, ends = looks(groups), {}
    for name in groups:
        rows = [(entry["epoch"], entry["gate"][name]) for entry in gate_log(entries) if name in entry["gate"]]
        bands = np.array([[row[key] for key in ("q25", "q50", "q75")] for _, row in rows]).T
        ends[name] = _band(axes, [epoch for epoch, _ in rows], bands, style[name])
    epoch_axis(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(GAMMA_AXIS)
    label_ends(axes, ends, style)
    return to_svg(figure, title)


def curves_figure(curves: Mapping[str, Curve], key: str, look: Mapping[str, Look], title: str) -> Markup:
    """The logged value `key` by epoch, a line per model.

    A metric's best epoch is ringed. A loss is relative to its first epoch: losses of different models are different
    quantities, so only their course can share an axis.
    """
    figure, axes = new_figure(below=ONE_LINE)
    ends, drawn = {}, []
    for name, curve in curves.items():
        values = curve.values if "@" in key else [value / curve.values[0] for value in curve.values]
        ends[name] = values[-1]
        _curve(axes, curve.own_epochs, values, look[name], again=(curve.epochs, curve.values) in drawn)
        drawn.append((curve.epochs, curve.values))
        if "@" in key:
            best = max(range(len(values)), key=values.__getitem__)
            point = curve.own_epochs[best], values[best]
            axes.plot(*point, marker="o", ms=8, mfc="none", mec=look[name].colour, mew=1.6, ls="none")
    epoch_axis(axes)
    if "@" not in key:
        axes.set_ylabel(f"{key}, first epoch = 1")
    label_ends(axes, ends, look)
    return to_svg(figure, f"{title} for {', '.join(curves)}")


def curves_by_stage(logs: Mapping[str, Log], key: str) -> dict[str, dict[str, Curve]]:
    """The curves that may share a figure: {stage: {model: its curve}}; models of one stage are all under "".

    Stages of one training minimise different losses over epochs of their own, so they are never one curve.
    """
    curves = {name: stage_curves(entries, key) for name, entries in logs.items()}
    apart = dict.fromkeys(curve.stage for found in curves.values() if len(found) > 1 for curve in found)
    groups: dict[str, dict[str, Curve]] = {stage: {} for stage in ("", *apart)}
    for name, found in curves.items():
        for curve in found:
            groups[curve.stage if curve.stage in apart else ""][name] = curve
    return {stage: group for stage, group in groups.items() if group}


def stage_curves(entries: Log, key: str) -> list[Curve]:
    """The values of `key`, a curve per stage that has any; epochs count on where a stage begins at the start again.

    Trainings of the gate on folds are left out: they are only there to compare with.
    """
    curves: list[Curve] = []
    before, last, stage = 0.0, 0.0, None
    for entry in entries:
        if entry.get("event", "epoch") != "epoch" or "epoch" not in entry or _is_fold(entry):
            continue
        if not curves or entry.get("stage") != stage or entry["epoch"] < last:
            before += last
            name, known = str(entry.get("stage") or ""), [curve.stage for curve in curves]
            curves.append(Curve(name if name and name not in known else f"stage {len(curves) + 1}", before, [], []))
        last, stage = entry["epoch"], entry.get("stage")
        if key in entry:
            curves[-1].epochs.append(before + last)
            curves[-1].values.append(float(entry[key]))
    return [curve for curve in curves if curve.values]


def branch_log(entries: Log) -> list[Mapping[str, Any]]:
    """The log entries that say what single branches can do (train/monitor.py)."""
    return [entry for entry in entries if isinstance(entry.get("branches"), Mapping)]


def gate_shares(entry: Mapping[str, Any]) -> Mapping[str, float]:
    """The share of the gate that each branch was handed; {} where nothing decides on it."""
    found: Mapping[str, float] = entry.get("share", entry.get("prior", {}))  # "prior": in logs of version 0.1
    return found


def branches_figure(entries: Log, part: str, title: str) -> Markup:
    """NDCG@20 of every branch on "train" or "valid", or the "share" of the gate it was handed, by epoch."""
    figure, axes = new_figure(below=ONE_LINE)
    rows = branch_log(entries)
    curves = {
        name: [gate_shares(row)[name] if part == "share" else row["branches"][name][part]["ndcg@20"] for row in rows]
        for name in (gate_shares(rows[0]) if part == "share" else rows[0]["branches"])
    }
    style = looks(list(curves))
    for name, values in curves.items():
        axes.plot([row["epoch"] for row in rows], values, color=style[name].colour, lw=2)
    for event in late_events(entries):
        vertical_mark(axes, event["epoch"], f"{event['branch']}: {event['kind']}")
    epoch_axis(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of the gate" if part == "share" else "NDCG@20")
    label_ends(axes, {name: values[-1] for name, values in curves.items()}, style)
    return to_svg(figure, title)


def late_events(entries: Log) -> list[Mapping[str, Any]]:
    """What happened to branches after they had memorised the training data."""
    return [entry for entry in entries if entry.get("event") == "grokking" and entry["kind"] != "memorised"]


def _is_fold(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("stage", "")).startswith("gate-fold")


def _curve(axes: Axes, x: Sequence[float], values: Sequence[float], style: Look, *, again: bool) -> None:
    """A line; dashed where it lies on an earlier one, so that both colours are seen."""
    alone = "." if len(values) == 1 else ""  # a line of one point cannot be seen
    axes.plot(x, values, color=style.colour, lw=style.width, ls=(0, (4, 4)) if again else "-", marker=alone)


def _band(axes: Axes, x: Sequence[float], quartiles: NDArray[np.float64], style: Look, *, again: bool = False) -> float:
    """The median as a line (dashed on an earlier one), the middle half as a band (3, n); returns the last median."""
    low, middle, high = quartiles
    axes.fill_between(x, low, high, color=style.colour, alpha=0.18, lw=0)
    line = (0, (4, 4)) if again else "-"
    marker = "" if again or len(x) > _MANY else style.marker  # markers that touch would be a thick line
    axes.plot(x, middle, color=style.colour, lw=2, ls=line, marker=marker, ms=4.5)
    return float(middle[-1])


def _by_degree(degree: NDArray[np.int64]) -> tuple[list[float], list[NDArray[np.int64]]]:
    """Items in bins of equal width on a log scale, few-click items apart: mean degree and rows of every bin in use."""
    edges = np.unique(np.concatenate([[0, 1, 2, 3], np.geomspace(4, max(int(degree.max()), 4) + 1, 12).round()]))
    bins = np.searchsorted(edges, degree, side="right")
    groups = [np.flatnonzero(bins == number) for number in np.unique(bins)]
    return [float(degree[rows].mean()) for rows in groups], groups


def _degree_axis(axes: Axes, degrees: Sequence[NDArray[np.int64]]) -> None:
    highest = max(int(degree.max()) for degree in degrees)
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xlim(-0.15, max(highest, 2) * 1.1)
    axes.set_xticks([0, *(10**power for power in range(len(str(highest))))])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    axes.set_xlabel("training clicks of the item")
