"""What came of the fusion experiment (grokking/lab/fusion.py), as one HTML page without outside files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graphllmrec.grokking.lab.drawing import frame, line, mark, step_labels, svg
from graphllmrec.grokking.lab.fusion import Curves, NoEventRun
from graphllmrec.report.console import p_text
from graphllmrec.report.html import document, figure, table

_DRAWN = {
    "static, best on the way": "var(--s5)",
    "gate": "var(--s4)",
    "gate, grokking": "var(--s2)",
    "gate, ratio": "var(--s0)",
}


def fusion_page(ways: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[NoEventRun]], seed: int,
                drawn: Mapping[str, Curves]) -> str:  # fmt: skip
    """The page. `ways`: of compare_variants; `others`: per world without an event; `drawn`: the courses of one seed."""
    seeds = ways[0]["seeds"]
    body = [
        "<h1>Two branches, one of which generalises late</h1>",
        f"<p class='protocol'>NDCG of test pairs, mean over {seeds} seeds: over the training (area), and in the end. "
        "Static weights and the gate's start are chosen on validation pairs. p: exact paired sign-flip test against "
        "“gate, grokking”.</p>",
        _ways(ways),
    ]
    for world, runs in others.items():
        silent = [each for each in runs if not each.detected]
        body.append(
            f"<p>World “{escape(world)}”, in which no branch should come late: nothing is told in {len(silent)} of "
            f"{len(runs)} runs, and with and without the control all weights are identical to the last bit in "
            f"{sum(each.identical for each in silent)} of these.</p>"
        )
    keys = "".join(
        f"<span class='key' style='background:{colour}'></span>{escape(name)} &nbsp; "
        for name, colour in _DRAWN.items()
        if name in drawn
    )
    body.append(f"<h2>Seed {seed}</h2><p class='note'>{keys}</p><div class='figures'>")
    low = 0.4
    fused = [
        line(course.step, (course.test - low) / (1 - low), colour)
        for name, colour in _DRAWN.items()
        if (course := drawn.get(name))
    ]
    body.append(_figure("Test NDCG of the fused scores", drawn, fused, "Line: the event is told.", low))
    gates = [line(course.step, course.gate, colour) for name, colour in _DRAWN.items() if (course := drawn.get(name))]
    body.append(_figure("Share of the text branch", drawn, gates, "Mean γ of items with clicks."))
    event = drawn["gate, grokking"]
    alone = [
        line(event.step, event.branches[name], colour)
        for name, colour in (("graph", "var(--muted)"), ("text", "var(--ink)"))
    ]
    caption = "Validation NDCG of the graph branch (grey) and the text branch (black) under “gate, grokking”."
    body += [_figure("The branches alone", drawn, alone, caption), "</div>"]
    return document("Fusion in the grokking lab", body, "; all figures: fusion.json")


def _figure(title: str, drawn: Mapping[str, Curves], lines: Sequence[str], caption: str, low: float = 0) -> str:
    event = drawn["gate, grokking"]
    last = event.step[-1]
    marks = [mark(told.detected, last, told.branch) for told in event.events if told.kind == "generalising"]
    return figure(title, svg(title, [*frame(low), *step_labels(last), *lines, *marks]), caption)


def _ways(ways: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in ways:
        cells = [escape(row["name"])]
        for what in ("area", "final"):
            found = row[what]
            told = "difference" in found
            difference = f"{found['difference']:+.4f}".replace("-", "−") if told else ""
            cells += [f"{found['mean']:.4f}", difference, escape(p_text(found["p"])) if told else ""]
        rows.append(cells)
    return table(("", "area", "grokking is ahead", "p", "end", "grokking is ahead", "p"), rows)
