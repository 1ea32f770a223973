"""The lab's outcome: a table of rules and pictures of runs, as one HTML page without outside files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from graphllmrec.evaluate.html import document
from graphllmrec.lab.drawing import BANDS, picture
from graphllmrec.lab.protocol import Judged, RuleScores


def page_of(runs: Sequence[Judged], table: Mapping[str, RuleScores] | None) -> str:
    """The page. `runs`: those to draw; `table`: of protocol.compare, where all parts were made."""
    body = ["<h1>Grokking lab</h1>"]
    body.append(
        "<p class='protocol'>Training level grey, validation level black: 0 is who knows nothing, 1 is perfect. "
        "Dashed: onset and event as defined from the whole curve. Coloured lines: what the detector said, and when.</p>"
    )
    keys = "".join(
        f"<span class='key' style='background:{colour}'></span>{state} &nbsp; " for state, colour in BANDS.items()
    )
    body.append(f"<p class='note'>The strip below each picture: {keys}</p>")
    if table is not None:
        body.append("<h2>Rules, on runs that were not used to build them</h2>")
        for part in next(iter(table.values())).parts:
            if part != "build":
                body += [f"<h3>{escape(part).capitalize()}</h3>", _table(table, part)]
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


def _table(table: Mapping[str, RuleScores], part: str) -> str:
    head = "<tr><th>rule</th><th>threshold</th><th>events hit</th><th>recall</th><th>false alarms</th>"
    head += "<th>per run</th><th>median delay</th></tr>"
    rows = []
    for name, rule in table.items():
        threshold, found = rule.threshold, rule.parts[part]
        cells = [
            escape(name),
            f"{threshold:g}" if threshold else "",
            f"{found.hits} of {found.events}",
            "" if found.recall is None else f"{found.recall:.2f}",
            f"{found.false_alarms} in {found.runs}",
            "" if found.alarms_per_run is None else f"{found.alarms_per_run:.3f}",
            percent(found.delay),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def _figure(judged: Judged) -> str:
    run = judged.run
    return (
        f"<figure><h3>{escape(run.task)}: {escape(run.kind)}</h3>{picture(judged)}"
        f"<figcaption>{escape(judged.made.name)}. {escape(judged.outcome)}.</figcaption></figure>"
    )
