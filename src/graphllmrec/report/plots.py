"""The figures of a report, as SVG text for one HTML page.

Colours are written as CSS variables (`var(--s0)` … for models, `--muted`, `--grid`), so that one drawing serves
light and dark pages, and text is left as text in the font of the page. A model keeps its colour and marker in every
figure. The colours are colour-blind safe (after Okabe & Ito); the marker tells models apart where colours run out. The
baseline is grey and dashed.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.evaluation.metrics import mean_interval

MUTED, GRID, BASELINE = "#666d7a", "#e4e6eb", "#7a808c"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc5f9b", "#56a7dd", "#a87500", "#6a51a3")
MARKERS = "osD^vPX"
STRATUM_AXES = {
    "item_degree": "training clicks of the target item",
    "item_popularity": "popularity of the target item",
    "user_activity": "length of the user's history",
}
SIZE = (5.6, 3.7)  # inches at 72 per inch: as wide as a phone, so that text keeps its size there
TEXT = 11  # pixels where the figure has its own width


@dataclass(frozen=True)
class Look:
    """How a model is drawn, everywhere."""

    colour: str
    marker: str
    dashed: bool = False
    width: float = 1.6


@dataclass(frozen=True)
class GateTable:
    """What a gate does with every item: γ, the weight of the text branch, and in which context the item counts."""

    degree: NDArray[np.int64]  # (n,) training clicks
    gamma: NDArray[np.float32]  # (n,) in [0, 1]
    contexts: Mapping[str, NDArray[np.float32]]  # {"cold/tail": (n,) membership in [0, 1], …}; {} without contexts


def looks(names: Sequence[str], baseline: str | None = None, best: str | None = None) -> dict[str, Look]:
    """A look for every model, by order of appearance; the best one's line is thicker."""
    out, place = {}, 0
    for name in names:
        if name == baseline:
            out[name] = Look(BASELINE, "o", dashed=True)
            continue
        out[name] = Look(
            SERIES[place % len(SERIES)],
            MARKERS[(place + place // len(SERIES)) % len(MARKERS)],
            width=2.6 if name == best else 1.6,
        )
        place += 1
    return out


def strata_figure(evaluations: Mapping[str, Evaluation], kind: str, metric: str, look: Mapping[str, Look]) -> str:
    """A metric in every stratum of `kind`, a line per model with 95 % intervals, labelled at its right end."""
    first = next(iter(evaluations.values()))
    strata = [name for name, row in first.strata[kind].items() if row["users"]]
    figure, axes = _figure()
    ends = {}
    places = np.linspace(-0.15, 0.15, len(evaluations)) if len(evaluations) > 1 else [0.0]  # side by side
    for place, (name, entry) in zip(places, evaluations.items(), strict=True):
        values = [entry.within(kind, stratum)[metric].to_numpy() for stratum in strata]
        means = np.array([value.mean() for value in values])
        low, high = np.array([mean_interval(value) for value in values]).T
        x = np.arange(len(strata)) + place
        style = look[name]
        axes.plot(x, means, color=style.colour, lw=style.width, ls="--" if style.dashed else "-", marker=style.marker,
                  ms=5, zorder=3 if style.width > 2 else 2)  # fmt: skip
        axes.vlines(x, low, high, color=style.colour, lw=1, alpha=0.55)
        ends[name] = float(means[-1])
    users = [f"{first.strata[kind][name]['users']:,.0f}" for name in strata]
    axes.set_xticks(range(len(strata)), [f"{name}\n{count}" for name, count in zip(strata, users, strict=True)])
    axes.set_xlabel(f"{STRATUM_AXES[kind]} / users")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.3, len(strata) - 0.7)
    _label_ends(axes, ends, look)
    return _svg(figure, f"{metric} by {kind.replace('_', ' ')} for {', '.join(evaluations)}")


def gate_figure(gates: Mapping[str, GateTable], look: Mapping[str, Look]) -> str:
    """γ against training clicks (log axis with a place for 0): median and middle half of the items, per model."""
    figure, axes = _figure()
    ends = {}
    for name, gate in gates.items():
        x, groups = _by_degree(gate.degree)
        low, middle, high = np.array([np.quantile(gate.gamma[rows], [0.25, 0.5, 0.75]) for rows in groups]).T
        style = look[name]
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, lw=0)
        axes.plot(x, middle, color=style.colour, lw=2.2, marker=style.marker, ms=4.5)
        ends[name] = float(middle[-1])
    axes.set_ylim(0, 1)
    _degree_axis(axes, [gate.degree for gate in gates.values()])
    axes.set_ylabel("γ: weight of the text branch")
    _label_ends(axes, ends, look)
    return _svg(figure, f"gate by training clicks for {', '.join(gates)}")


def gate_course_figure(entries: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> str:
    """γ of these groups of items by epoch, from the log lines with a "gate": median, and the middle half as band."""
    figure, axes = _figure()
    course, style, ends = gate_course(entries), looks(groups), {}
    for name in groups:
        points = [(number, gate[name]) for number, gate in enumerate(course, 1) if name in gate]
        x = [number for number, _ in points]
        low, middle, high = ([row[key] for _, row in points] for key in ("q25", "q50", "q75"))
        axes.fill_between(x, low, high, color=style[name].colour, alpha=0.15, lw=0)
        axes.plot(x, middle, color=style[name].colour, lw=2, marker=style[name].marker, ms=4.5)
        ends[name] = float(middle[-1])
    axes.set_xlabel("epochs logged")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("γ: weight of the text branch")
    _label_ends(axes, ends, style)
    return _svg(figure, f"gate over training for {', '.join(groups)}")


def gate_course(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Mapping[str, float]]]:
    """The gate's summaries (nn/gate.py, `gate_summary`) in the order they were logged."""
    return [entry["gate"] for entry in entries if isinstance(entry.get("gate"), Mapping)]


def branch_course(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The log lines that tell what single branches can do (train/monitor.py)."""
    return [entry for entry in entries if isinstance(entry.get("branches"), Mapping)]


def branches_figure(entries: Sequence[Mapping[str, Any]], part: str) -> str:
    """NDCG@20 of every branch on "train" or "valid", or the share of the gate it was given ("share"), by epoch."""
    figure, axes = _figure()
    course = branch_course(entries)
    names = list(course[0]["branches" if part != "share" else "share"])
    style, ends = looks(names), {}
    for name in names:
        values = [
            entry["share"][name] if part == "share" else entry["branches"][name][part]["ndcg@20"] for entry in course
        ]
        axes.plot([entry["epoch"] for entry in course], values, color=style[name].colour, lw=2)
        ends[name] = values[-1]
    for event in late_events(entries):
        axes.axvline(event["epoch"], color="0.5", lw=1)
        told = f" {event['branch']}: {event['kind']}"
        axes.text(event["epoch"], 1, told, transform=axes.get_xaxis_transform(), fontsize=7, va="top")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of the gate" if part == "share" else "NDCG@20")
    _label_ends(axes, ends, style)
    return _svg(figure, f"{part} of branches {', '.join(names)} by epoch")


def late_events(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What happened to branches after they had memorised the training data."""
    return [entry for entry in entries if entry.get("event") == "grokking" and entry["kind"] != "memorised"]


def contexts_figure(gate: GateTable) -> str:
    """Mean membership of the items in every context against training clicks; at any degree they add up to 1."""
    figure, axes = _figure()
    x, groups = _by_degree(gate.degree)
    style = looks(list(gate.contexts))
    ends = {}
    for name, membership in gate.contexts.items():
        share = [float(membership[rows].mean()) for rows in groups]
        axes.plot(x, share, color=style[name].colour, lw=2, marker=style[name].marker, ms=4.5)
        ends[name] = share[-1]
    axes.set_ylim(0, 1)
    _degree_axis(axes, [gate.degree])
    axes.set_ylabel("mean membership")
    _label_ends(axes, ends, style)
    return _svg(figure, f"membership in {', '.join(gate.contexts)} by training clicks")


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, look: Mapping[str, Look]) -> str:
    """The logged value `key` by epoch, a line per model. A metric's best epoch is ringed, a loss starts at 1.

    Losses of different models are different quantities, so only their course can share an axis.
    """
    figure, axes = _figure()
    ends = {}
    for name, entries in curves.items():
        x, y = _course(entries, key)
        style = look[name]
        if "@" in key:
            best = int(y.argmax())
            axes.plot(x[best], y[best], marker="o", ms=8, mfc="none", mec=style.colour, mew=1.6, ls="none")
        else:
            y = y / y[0]
        axes.plot(x, y, color=style.colour, lw=style.width)
        ends[name] = float(y[-1])
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if "@" not in key:
        axes.set_ylabel(f"{key}, first epoch = 1")
    axes.set_ylim(bottom=0)
    _label_ends(axes, ends, look)
    return _svg(figure, f"{key} by epoch for {', '.join(curves)}")


def _course(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs and values of `key`; where a later stage counts its epochs from the start again, they count through."""
    x, y, before, last = [], [], 0.0, 0.0
    for entry in entries:
        if "epoch" in entry and not str(entry.get("stage", "")).startswith("gate-fold"):  # only there to compare with
            if entry["epoch"] < last:
                before += last
            last = entry["epoch"]
            if key in entry:
                x.append(before + last)
                y.append(float(entry[key]))
    return np.array(x), np.array(y)


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


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.115, 0.16, 0.635, 0.8))  # room for names at the right ends of the lines
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=GRID, lw=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=TEXT)
    axes.tick_params(axis="x", length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, fontsize=TEXT)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _label_ends(axes: Axes, ends: Mapping[str, float], look: Mapping[str, Look]) -> None:
    """Names at the right ends of the lines, moved apart where they would overlap, with a thin leader to their line."""
    low, high = axes.get_ylim()
    names = sorted(ends, key=ends.__getitem__)
    wanted = [(ends[name] - low) / (high - low) for name in names]
    for name, start, place in zip(names, wanted, _spread(wanted, 0.066), strict=True):
        axes.annotate(
            name, (1.0, start), (1.045, place), xycoords="axes fraction", textcoords="axes fraction", va="center",
            fontsize=TEXT, color=look[name].colour, fontweight="bold" if look[name].width > 2 else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look[name].colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions as near to `wanted` (ascending) as they can be when neighbours keep `gap` (least squares)."""
    blocks: list[list[float]] = []  # [sum of the wanted starts, members]: neighbours that touch move as one
    for place, value in enumerate(wanted):
        blocks.append([value - gap * place, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    return [start + gap * place for place, start in enumerate(starts)]


def _svg(figure: Figure, title: str) -> str:
    """The drawing as an <svg> element that takes its colours and its font from the page."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|font-family: [^;\"]*(; )?", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1, flags=re.DOTALL)
    key = "g" + hashlib.sha256(title.encode()).hexdigest()[:8]  # ids must be unique on the page
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", text)
    colours = {MUTED: "--muted", GRID: "--grid", BASELINE: "--base"}
    colours |= {colour: f"--s{place}" for place, colour in enumerate(SERIES)}
    for colour, variable in colours.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
