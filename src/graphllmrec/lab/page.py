"""The lab's outcome: a table of rules and pictures of runs, as one HTML page without outside files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files

from graphllmrec.lab.collection import Run
from graphllmrec.lab.drawing import BANDS, picture
from graphllmrec.lab.protocol import Score, outcome
from graphllmrec.lab.rules import detector
from graphllmrec.lab.trajectory import Trajectory
from graphllmrec.lab.truth import truth_of

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Grokking lab</title>
<style>
{css}figure svg text {{ font-family: inherit; }}
</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
Pair = tuple[Run, Trajectory]


def page_of(runs: Sequence[Pair], table: Mapping[str, tuple[float, Score, Score]] | None) -> str:
    """The page. `runs`: those to draw; `table`: of protocol.compare, where both parts were made."""
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
        body += ["<h2>Rules, on runs that were not used to build them</h2>", _table(table)]
    body.append("<h2>Runs</h2>")
    body.append(f"<div class='figures'>{''.join(_figure(*pair) for pair in runs)}</div>")
    body.append(f"<footer class='note'>Made by graphllmrec {version('graphllmrec')}.</footer>")
    css = files("graphllmrec.evaluate").joinpath("page.css").read_text(encoding="utf-8")
    return _DOCUMENT.format(css=css, body="\n".join(body))


def _table(table: Mapping[str, tuple[float, Score, Score]]) -> str:
    head = "<tr><th>rule</th><th>threshold</th><th>events hit</th><th>recall</th><th>false alarms</th>"
    head += "<th>per run</th><th>median delay</th></tr>"
    rows = []
    for name, (threshold, _, found) in table.items():
        cells = [
            escape(name),
            f"{threshold:g}" if threshold else "",
            f"{found.hits} of {found.events}",
            f"{found.recall:.2f}",
            f"{found.false_alarms} in {found.runs}",
            f"{found.alarms_per_run:.3f}",
            f"{100 * found.delay:+.0f} %".replace("-", "−") if found.delays else "",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = (
        "<p class='note'>Delay: from onset to detection, in distances from memorisation to the event; below 0 it came "
        "before a tenth of the rise was done. Thresholds of all rules but the first two were chosen on other runs.</p>"
    )
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>{note}"


def _figure(run: Run, made: Trajectory) -> str:
    judged = outcome(truth_of(made), detector(made))
    return (
        f"<figure><h3>{escape(run.task)}: {escape(run.kind)}</h3>{picture(made)}"
        f"<figcaption>{escape(made.name)}. {escape(judged)}.</figcaption></figure>"
    )
