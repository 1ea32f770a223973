"""The figures of a study as SVG text: a forest plot of relative differences, and bars by item degree.

Drawn by hand because both are nothing but lines, boxes and words; colours are the CSS variables of the page
(evaluate/page.css), so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from graphllmrec.report.console import p_text
from graphllmrec.study.format import Json, percent

WIDTH, ROW, TEXT = 480, 24, 12
FARTHEST = 1.0  # +100 %: one large difference must not press all others together
COLOURS = 7  # --s0 … --s6 of the page


def forest(rows: Sequence[Json], title: str) -> str:
    """Relative difference and 95 % interval of every comparison, a line each; green: better, red: worse, grey: open.

    What lies beyond FARTHEST ends at the right edge; the figure beside it says how large it is.
    """
    names = [f"{row['a']} vs {row['b']}" for row in rows]
    left = min(20 + max(6.3 * len(name) for name in names), 200.0)
    right = WIDTH - 118.0
    ends = [value for row in rows for value in (*(row["relative_ci"] or ()), row["relative"] or 0.0)]
    low, high, step = _axis(min(*ends, 0.0), min(max(*ends, 0.0), FARTHEST), steps=3)

    def place(value: float) -> float:
        return left + (right - left) * (min(value, high) - low) / (high - low)

    height = ROW * len(rows) + 34
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        x, zero = place(value), abs(value) < step / 2
        stroke = "var(--muted)" if zero else "var(--grid)"
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='4' y2='{height - 26}' stroke='{stroke}'/>")
        parts.append(
            _text(
                x, height - 8, f"{100 * value:+.0f} %".replace("-", "−") if not zero else "0", "middle", "var(--muted)"
            )
        )
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = 4 + ROW * number + ROW / 2
        parts.append(_text(left - 10, y + 4, _cut(name, left), "end", "var(--ink)"))
        if row["relative"] is None:
            parts.append(_text(place(0) + 8, y + 4, "from 0", "start", "var(--muted)"))
            continue
        colour = verdict_colour(row)
        start, end = (place(value) for value in row["relative_ci"])
        parts.append(f"<line x1='{start:.1f}' x2='{end:.1f}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='2'/>")
        parts.append(f"<circle cx='{place(row['relative']):.1f}' cy='{y}' r='4.5' fill='{colour}'/>")
        parts.append(_text(right + 12, y + 4, f"{percent(row['relative'])}  {p_text(row['p_holm'])}", "start", colour))
    return _svg(height, title, parts)


def bars(entries: Sequence[Json], metric: str, baseline: str | None, title: str) -> str:
    """The metric by training clicks of the target item: a bar per model, 95 % intervals, the baseline grey."""
    strata = list(entries[0]["strata"]["item_degree"])
    rows = [[entry["strata"]["item_degree"][name] for name in strata] for entry in entries]
    low, high, step = _axis(0.0, max(row[metric]["ci"][1] for line in rows for row in line) or 1.0)
    left, top, bottom = 46.0, 8.0, 232.0
    group = (WIDTH - left - 8) / len(strata)
    width = min(group * 0.84 / len(entries), 26.0)

    def place(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for number in range(round((high - low) / step) + 1):
        y = place(number * step)
        parts.append(f"<line x1='{left}' x2='{WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--grid)'/>")
        parts.append(_text(left - 8, y + 4, f"{number * step:.3g}", "end", "var(--muted)"))
    colours = colours_of([entry["label"] for entry in entries], baseline)
    for number, name in enumerate(strata):
        middle = left + group * (number + 0.5)
        for which, (entry, line) in enumerate(zip(entries, rows, strict=True)):
            x = middle + width * (which - len(entries) / 2)
            mean, ends = line[number][metric]["mean"], line[number][metric]["ci"]
            says = f"{entry['label']}, {name}: {mean:.4f}"
            parts += _bar(x, width, [place(value) for value in (mean, *ends, 0.0)], colours[entry["label"]], says)
        parts.append(_text(middle, bottom + 18, name, "middle", "var(--ink)"))
        parts.append(_text(middle, bottom + 34, f"{rows[0][number]['users']:,} users", "middle", "var(--muted)"))
    return _svg(bottom + 42, title, parts)


def colours_of(labels: Sequence[str], baseline: str | None) -> dict[str, str]:
    """A colour for every model; the baseline is grey, colours repeat after seven."""
    others = [label for label in labels if label != baseline]
    found = {label: f"var(--s{place % COLOURS})" for place, label in enumerate(others)}
    return {label: found.get(label, "var(--base)") for label in labels}


def verdict_colour(row: Json) -> str:
    """Green or red for a difference that chance does not explain, grey otherwise."""
    if row["p_holm"] >= 0.05:
        return "var(--muted)"
    return "var(--good)" if row["difference"] > 0 else "var(--bad)"


def _bar(x: float, width: float, places: Sequence[float], colour: str, says: str) -> list[str]:
    mean, low, high, zero = places
    centre = x + width / 2
    return [
        f"<rect x='{x + 1:.1f}' y='{mean:.1f}' width='{width - 2:.1f}' height='{max(zero - mean, 0.5):.1f}' "
        f"fill='{colour}'><title>{escape(says)}</title></rect>",
        f"<line x1='{centre:.1f}' x2='{centre:.1f}' y1='{low:.1f}' y2='{high:.1f}' stroke='var(--ink)' opacity='.65'/>",
    ]


def _axis(low: float, high: float, steps: int = 5) -> tuple[float, float, float]:
    """Ends and step of an axis with about so many round steps around [low, high]."""
    raw = max(high - low, 1e-9) / steps
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _text(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'"
    return f"<text {place} font-size='{TEXT}' fill='{colour}'>{escape(words)}</text>"


def _cut(name: str, room: float) -> str:
    most = int(room / 6.3)
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f"<svg role='img' aria-label='{escape(title, quote=True)}' viewBox='0 0 {WIDTH} {height:.0f}'>"
    return "\n".join([head, *parts, "</svg>"])
