"""A run as one small picture: both levels over the steps, the detector's states as a band, events and truth as marks.

Drawn by hand, with the CSS variables of evaluate/page.css, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphllmrec.lab.protocol import Judged
from graphllmrec.lab.rules import Watched
from graphllmrec.lab.trajectory import Curve, Trajectory
from graphllmrec.lab.truth import Truth, levels
from graphllmrec.train.grokking import State

WIDTH, HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 30, 432, 10, 148
BANDS: dict[State, str] = {
    "baseline": "var(--grid)",
    "memorised": "var(--s4)",
    "plateau": "var(--s5)",
    "generalising": "var(--s2)",
    "settled": "var(--s0)",
}


def picture(judged: Judged) -> str:
    """The SVG of a run."""
    run, seen = judged.made, judged.seen
    last = max(int(run.step[-1]), 1)
    parts = [*_frame(last), *_bands(run, seen.states, last)]
    for part, colour in (("train", "var(--muted)"), ("valid", "var(--ink)")):
        parts.append(_line(run, levels(run, part), colour, last))
    parts += _marks(seen, judged.truth, last)
    label = escape(f"{run.name}: training and validation level over {last} steps")
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(parts)}</svg>"


def _x(step: float, last: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * step / last


def _y(level: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * level


def _frame(last: int) -> list[str]:
    parts = []
    for level in (0, 0.5, 1):
        y = _y(level)
        parts.append(f"<line x1='{_LEFT}' x2='{_RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--grid)'/>")
        parts.append(_text(_LEFT - 5, y + 4, f"{level:g}", "end"))
    parts.append(_text(_LEFT, HEIGHT - 8, "0", "middle"))
    parts.append(_text(_RIGHT, HEIGHT - 8, f"{last:,} steps", "end"))
    return parts


def _bands(run: Trajectory, states: Sequence[State], last: int) -> list[str]:
    """A strip below the axis, a piece per stretch of one state."""
    parts, start = [], 0
    for place in range(1, len(states) + 1):
        if place == len(states) or states[place] != states[start]:
            end = run.step[min(place, len(states) - 1)]
            left, right = _x(float(run.step[start]), last), _x(float(end), last)
            parts.append(
                f"<rect x='{left:.1f}' y='{_BOTTOM + 6}' width='{max(right - left, 0.5):.1f}' height='10' "
                f"fill='{BANDS[states[start]]}'><title>{states[start]}</title></rect>"
            )
            start = place
    return parts


def _line(run: Trajectory, values: Curve, colour: str, last: int) -> str:
    points = " ".join(f"{_x(step, last):.1f},{_y(value):.1f}" for step, value in zip(run.step, values, strict=True))
    return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.6'/>"


def _marks(seen: Watched, truth: Truth, last: int) -> list[str]:
    """Onset and event as the definition has them: dashed; what the detector said: a line with its name."""
    parts = []
    for step in (truth.onset, truth.event):
        if step is not None and truth.label == "event":
            x = _x(step, last)
            parts.append(
                f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM}' stroke='var(--muted)' "
                "stroke-dasharray='3 3'/>"
            )
    for event in seen.events:
        if event.kind == "memorised":
            continue
        x, colour = _x(event.detected, last), "var(--good)" if event.kind == "generalising" else "var(--bad)"
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM + 16}' stroke='{colour}' "
                     "stroke-width='2'/>")  # fmt: skip
        parts.append(_text(min(x + 4, WIDTH - 70), _TOP + 10, event.kind, "start", colour))
    return parts


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--muted)") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='11' fill='{colour}'>{escape(text)}</text>"
