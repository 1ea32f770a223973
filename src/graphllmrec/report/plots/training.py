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
Log = Sequence[Mapping[str, Any]]  # entries of log.jsonl


@dataclass(frozen=True)
class GateTable:
    """What a gate does with every item: γ, the weight of the text branch, and in which context the item counts."""

    degree: NDArray[np.int64]  # (n,) training clicks
    gamma: NDArray[np.float32]  # (n,) in [0, 1]
    contexts: Mapping[str, NDArray[np.float32]]  # {"cold/tail": (n,) membership in [0, 1], …}; {} without contexts

    def shares_contexts(self, other: GateTable) -> bool:
        """Do the items belong to the same contexts?"""
        return np.array_equal(self.degree, other.degree) and all(
            name in other.contexts and np.array_equal(values, other.contexts[name])
            for name, values in self.contexts.items()
        )


@dataclass(frozen=True)
class Curve:
    """Logged values of one training stage."""

    epochs: list[float]  # (n,) counted through all stages
    values: list[float]  # (n,)


def gate_figure(gates: Mapping[str, GateTable], look: Mapping[str, Look]) -> Markup:
    """γ against training clicks (log axis with a place for 0): median and middle half of the items, per model."""
    figure, axes = new_figure()
    ends = {}
    for name, gate in gates.items():
        x, groups = _by_degree(gate.degree)
        bands = np.array([np.quantile(gate.gamma[rows], [0.25, 0.5, 0.75]) for rows in groups]).T
        ends[name] = _band(axes, x, bands, look[name])
    axes.set_ylim(0, 1)
    _degree_axis(axes, [gate.degree for gate in gates.values()])
    axes.set_ylabel(GAMMA_AXIS)
    label_ends(axes, ends, look)
    return to_svg(figure, f"gate by training clicks for {', '.join(gates)}")


def contexts_figure(gate: GateTable, names: str) -> Markup:
    """Mean membership of the items in every context against training clicks; at any degree they add up to 1."""
    figure, axes = new_figure()
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
    figure, axes = new_figure()
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


def curves_figure(logs: Mapping[str, Log], key: str, look: Mapping[str, Look]) -> Markup:
    """The logged value `key` by epoch, a line per model and stage.

    A metric's best epoch is ringed. A loss is relative to the first epoch of its stage: losses of different models and
    stages are different quantities, so only their course can share an axis. Earlier stages are dotted.
    """
    figure, axes = new_figure()
    ends = {}
    for name, entries in logs.items():
        curves = stage_curves(entries, key)
        for curve in curves:
            ends[name] = _curve(axes, curve, look[name], relative="@" not in key, dotted=curve is not curves[-1])
        if "@" in key:
            points = [point for curve in curves for point in zip(curve.epochs, curve.values, strict=True)]
            best = max(points, key=lambda point: point[1])
            axes.plot(*best, marker="o", ms=8, mfc="none", mec=look[name].colour, mew=1.6, ls="none")
    epoch_axis(axes)
    if "@" not in key:
        axes.set_ylabel(f"{key}, first epoch = 1")
    label_ends(axes, ends, look)
    return to_svg(figure, f"{key} by epoch for {', '.join(logs)}")


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
            curves.append(Curve([], []))
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
    figure, axes = new_figure()
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


def _curve(axes: Axes, curve: Curve, style: Look, *, relative: bool, dotted: bool) -> float:
    """One stage, relative to its first value or as it is; returns the last value."""
    values = [value / curve.values[0] for value in curve.values] if relative else curve.values
    alone = "." if len(values) == 1 else ""  # a line of one point cannot be seen
    axes.plot(curve.epochs, values, color=style.colour, lw=style.width, ls=":" if dotted else "-", marker=alone)
    return values[-1]


def _band(axes: Axes, x: Sequence[float], quartiles: NDArray[np.float64], style: Look) -> float:
    """The median as a line, the middle half as a band (3, n); returns the last median."""
    low, middle, high = quartiles
    axes.fill_between(x, low, high, color=style.colour, alpha=0.18, lw=0)
    axes.plot(x, middle, color=style.colour, lw=2, marker=style.marker, ms=4.5)
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
