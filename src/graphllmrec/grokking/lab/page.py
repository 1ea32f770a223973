"""The lab's outcome: a table of rules and pictures of runs, as one HTML page without outside files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from graphllmrec.grokking.lab.drawing import BANDS, picture
from graphllmrec.grokking.lab.protocol import RuleScores, ScoredRun
from graphllmrec.report.html import document, figure, table


def page_of(runs: Sequence[ScoredRun], rules: Mapping[str, RuleScores] | None) -> str:
    """The page. `runs`: those to draw; `rules`: of protocol.compare, where all parts were made."""
    body = ["<h1>Grokking lab</h1>"]
    body.append(
        "<p class='protocol'>Training level grey, validation level black: 0 is who knows nothing, 1 is perfect. "
        "Dashed: onset and event as defined from the whole curve. Coloured lines: what the detector said, and when.</p>"
    )
    keys = "".join(
        f"<span class='key' style='background:{colour}'></span>{state} &nbsp; " for state, colour in BANDS.items()
    )
    body.append(f"<p class='note'>The strip below each picture: {keys}</p>")
    if rules is not None:
        body.append("<h2>Rules, on runs that were not used to build them</h2>")
        for part in next(iter(rules.values())).parts:
            if part != "build":
                body += [f"<h3>{escape(part).capitalize()}</h3>", _scores(rules, part)]
        body.append(
            "<p class='note'>Delay: from onset to detection, in distances from memorisation to the event; below 0 it "
            "came before a tenth of the rise was done. Thresholds of all rules but the first two were chosen on other "
            "runs.</p>"
        )
    body.append("<h2>Runs</h2>")
    body.append(f"<div class='figures'>{''.join(_figure(each) for each in runs)}</div>")
    return document("Grokking lab", body)


def percent(share: float | None) -> str:
    """A delay for people."""
    return "" if share is None else f"{100 * share:+.0f} %".replace("-", "−")


def _scores(rules: Mapping[str, RuleScores], part: str) -> str:
    rows = []
    for name, rule in rules.items():
        threshold, found = rule.threshold, rule.parts[part]
        row = [
            escape(name),
            f"{threshold:g}" if threshold else "",
            f"{found.hits} of {found.events}",
            "" if found.recall is None else f"{found.recall:.2f}",
            f"{found.false_alarms} in {found.runs}",
            "" if found.alarms_per_run is None else f"{found.alarms_per_run:.3f}",
            percent(found.delay),
        ]
        rows.append(row)
    return table(("rule", "threshold", "events hit", "recall", "false alarms", "per run", "median delay"), rows)


def _figure(judged: ScoredRun) -> str:
    run = judged.run
    return figure(f"{run.task}: {run.kind}", picture(judged), f"{judged.trajectory.name}. {judged.outcome}.")
