"""The look of all figures, and SVG text for one HTML page.

Colours are written as CSS variables (`var(--s0)` … for models, `--muted`, `--grid`), so that one drawing serves
light and dark pages, and text is left as text in the font of the page. A model keeps its colour and marker in every
figure. The colours are colour-blind safe (after Okabe & Ito); the marker tells models apart where colours run out. The
baseline is grey and dashed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID, BASELINE, GOOD, BAD = "#1f2430", "#666d7a", "#e4e6eb", "#7a808c", "#00734f", "#b23b1e"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc5f9b", "#56a7dd", "#a87500", "#6a51a3")
MARKERS = "osD^vPX"
WIDTH, HEIGHT = 5.6, 3.7  # inches at 72 per inch: as wide as a phone, so that text keeps its size there
TEXT = 11  # pixels where the figure has its own width
ONE_LINE = 0.42  # inches below axes for ticks of one line and the axis label
LINE_GAP = 0.245  # inches between labels that stand below each other
_LABEL_GAP = 0.92 * LINE_GAP  # at the ends of lines
LETTER = 0.0148  # width of a letter, as a share of the figure's
LONGEST = 26  # letters of a name at the end of a line
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BASELINE: "--base", GOOD: "--good", BAD: "--bad"} | {
    colour: f"--s{place}" for place, colour in enumerate(SERIES)
}  # of page.css


@dataclass(frozen=True)
class Look:
    """How a model is drawn, everywhere."""

    colour: str
    marker: str
    dashed: bool = False
    width: float = 1.6


def looks(names: Sequence[str], baseline: str | None = None, best: str | None = None) -> dict[str, Look]:
    """A look for every model, by order of appearance; the best one's line is thicker."""
    out, place = {}, 0
    for name in names:
        if name == baseline:
            out[name] = Look(BASELINE, "o", dashed=True)
            continue
        marker = MARKERS[(place + place // len(SERIES)) % len(MARKERS)]
        out[name] = Look(SERIES[place % len(SERIES)], marker, width=2.6 if name == best else 1.6)
        place += 1
    return out


def css_colour(colour: str) -> str:
    """The CSS variable of a colour: "var(--s0)"."""
    return f"var({_VARIABLES[colour]})"


def new_figure(
    height: float = HEIGHT, *, left: float = 0.115, right: float = 0.75, below: float = 0.59
) -> tuple[Figure, Axes]:
    """A figure of `height` inches with its axes between `left` and `right` (shares of the width).

    What is right of the axes is room for names at the ends of lines; `below` them are the inches for the labels.
    """
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((left, below / height, right - left, 1 - (below + 0.15) / height))
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


def epoch_axis(axes: Axes) -> None:
    """Whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def vertical_mark(axes: Axes, x: float, name: str, colour: str = MUTED) -> None:
    """A line with a name where something happened; the name is left of the line in the right half."""
    low, high = axes.get_xlim()
    late = x > (low + high) / 2
    axes.axvline(x, color=colour, lw=1.4)
    axes.annotate(
        name, (x, 1), (-4 if late else 4, -1), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        va="top", ha="right" if late else "left", fontsize=TEXT, color=colour,
    )  # fmt: skip


def label_ends(axes: Axes, ends: Mapping[str, float], look: Mapping[str, Look]) -> None:
    """Names at the right ends of the lines, moved apart where they would overlap, with a thin leader to their line.

    Makes room for them: a figure of many lines grows, one of long names has narrower axes.
    """
    low, high = axes.get_ylim()
    names = sorted(ends, key=ends.__getitem__)
    shown = {name: shortened(name) for name in names}
    _make_room(axes, len(names), max(map(len, shown.values()), default=0))
    wanted = [(ends[name] - low) / (high - low) for name in names]
    tall = _inches(axes)
    for name, start, place in zip(names, wanted, spread_labels(wanted, _LABEL_GAP / tall), strict=True):
        line = {"arrowstyle": "-", "color": look[name].colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 0}
        axes.annotate(
            shown[name], (1.0, start), (1.045, place), xycoords="axes fraction", textcoords="axes fraction",
            va="center", fontsize=TEXT, color=look[name].colour, annotation_clip=False,
            fontweight="bold" if look[name].width > 2 else "normal",
            arrowprops=line | {"relpos": (0, 0.5)},  # from before the name, or a leader crosses the other names
        )  # fmt: skip


def shortened(name: str) -> str:
    """A name of at most LONGEST letters; the end is kept, as names of folders differ there."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _inches(axes: Axes) -> float:
    """Height of the axes."""
    return float(axes.get_position().height * axes.figure.get_size_inches()[1])  # type: ignore[union-attr]


def _make_room(axes: Axes, labels: int, letters: int) -> None:
    """Axes as high as so many labels below each other, and so narrow that names of so many letters fit beside them."""
    figure, tall = axes.figure, _inches(axes)
    height = float(figure.get_size_inches()[1])  # type: ignore[union-attr]
    more = max(_LABEL_GAP * (labels - 1) - tall, 0.0)
    box = axes.get_position()
    right = min(box.x1, 0.97 - LETTER * letters)
    below = box.y0 * height / (height + more)
    axes.set_position((box.x0, below, right - box.x0, (tall + more) / (height + more)))
    figure.set_size_inches(WIDTH, height + more)  # type: ignore[union-attr]


def spread_labels(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], as near to `wanted` (ascending) as they can be when neighbours keep `gap`.

    Least squares (pool adjacent violators); then all that is below 0 moves up, and above 1 down. Where there is no
    room for all between 0 and 1, they begin at 0.
    """
    blocks: list[list[float]] = []  # [sum of the wanted starts, members]: neighbours that touch move as one
    for place, value in enumerate(wanted):
        blocks.append([value - gap * place, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    highest = max(1 - gap * (len(starts) - 1), 0.0)
    return [min(max(start, 0.0), highest) + gap * place for place, start in enumerate(starts)]


def to_svg(figure: Figure, title: str) -> Markup:
    """The drawing as an <svg> element that takes its colours and its font from the page."""
    for label in figure.findobj(Text):
        label.set_parse_math(False)  # a name with $ is no formula
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|font-family: [^;\"]*(; )?", "", text, flags=re.DOTALL)
    text = re.sub(r'<metadata>.*?</metadata>| xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1, flags=re.DOTALL)
    key = "g" + hashlib.sha256(title.encode()).hexdigest()[:8]  # ids must be unique on the page
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))
