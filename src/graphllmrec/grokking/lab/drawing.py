"""A run as one small picture: both levels over the steps, the detector's states as a band, events and truth as marks.

Drawn by hand, with the CSS variables of evaluate/page.css, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphllmrec.grokking.detector import State
from graphllmrec.grokking.lab.protocol import ScoredRun
from graphllmrec.grokking.lab.rules import ObservedRun
from graphllmrec.grokking.lab.trajectory import Curve, Trajectory
from graphllmrec.grokking.lab.truth import Truth, levels

WIDTH, HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 30, 432, 10, 148
BANDS: dict[State, str] = {
    "baseline": "var(--grid)",
    "memorised": "var(--s4)",
    "plateau": "var(--s5)",
    "generalising": "var(--s2)",
    "settled": "var(--s0)",
}


def picture(judged: ScoredRun) -> str:
    """The SVG of a run."""
    run, seen = judged.trajectory, judged.observed
    last = max(int(run.step[-1]), 1)
    parts = [*frame(), *step_labels(last), *_bands(run, seen.states, last)]
    for part, colour in (("train", "var(--muted)"), ("valid", "var(--ink)")):
        parts.append(line(run.step.tolist(), levels(run, part), colour))
    parts += _marks(seen, judged.truth, last)
    return svg(f"{run.name}: training and validation level over {last} steps", parts)


def svg(label: str, parts: Sequence[str]) -> str:
    """A drawing; `label` says what it shows to whoever cannot see it."""
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(label)}'>{''.join(parts)}</svg>"


def _x(step: float, last: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * step / last


def _y(level: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * level


def frame(low: float = 0.0) -> list[str]:
    """Axis of values between `low` and 1."""
    parts = []
    for level in (0, 0.5, 1):
        y = _y(level)
        parts.append(f"<line x1='{_LEFT}' x2='{_RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--grid)'/>")
        parts.append(_text(_LEFT - 5, y + 4, f"{low + (1 - low) * level:g}", "end"))
    return parts


def step_labels(last: int) -> list[str]:
    """Both ends of the axis of steps."""
    return [_text(_LEFT, HEIGHT - 8, "0", "middle"), _text(_RIGHT, HEIGHT - 8, f"{last:,} steps", "end")]


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


def line(steps: Sequence[int], values: Curve, colour: str) -> str:
    """A curve (n,) of values between 0 and 1."""
    last = max(steps[-1], 1)
    points = " ".join(f"{_x(step, last):.1f},{_y(value):.1f}" for step, value in zip(steps, values, strict=True))
    return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.6'/>"


def _marks(seen: ObservedRun, truth: Truth, last: int) -> list[str]:
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
        parts.append(mark(event.detected, last, event.kind, good=event.kind == "generalising"))
    return parts


def mark(step: int, last: int, name: str, *, good: bool = True) -> str:
    """A line with a name where something happened."""
    x, colour = _x(step, last), "var(--good)" if good else "var(--bad)"
    drawn = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM + 16}' stroke='{colour}' stroke-width='2'/>"
    return drawn + _text(min(x + 4, WIDTH - 70), _TOP + 10, name, "start", colour)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--muted)") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='11' fill='{colour}'>{escape(text)}</text>"
