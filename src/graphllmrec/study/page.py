"""The outcome of a study as one self-contained HTML page, in the manner of report/page.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from graphllmrec.evaluation.evaluation import protocol_line
from graphllmrec.report.console import p_text
from graphllmrec.report.html import document, figure, table
from graphllmrec.study.drawing import bars, colours_of, forest, verdict_colour
from graphllmrec.study.format import (
    Json,
    about,
    compared,
    failures,
    interval,
    percent,
    seeds_text,
    settings_text,
    spread,
    trials_text,
    verdict,
)


def page_of(outcome: Json) -> str:
    """The whole page."""
    title = outcome["title"] or "Study"
    body = [f"<h1>{escape(title)}</h1>", f"<p class='protocol'>{escape(about(outcome))}</p>"]
    body += [f"<p>{escape(part)}</p>" for part in outcome["notes"].strip().split("\n\n") if part.strip()]
    body += [f"<p class='verdict'>{escape(verdict(outcome, name))}</p>" for name in outcome["data"]]
    body += [section for name in outcome["data"] for section in _data(outcome, name)]
    body += [*_settings(outcome), *_failures(outcome)]
    return document(title, body, "; all figures: study.json")


def _data(outcome: Json, data: str) -> Iterator[str]:
    entries = [entry for entry in outcome["entries"] if entry["data"] == data]
    protocol = outcome["data"][data]["protocol"]
    yield f"<h2>{escape(data)}</h2>"
    yield _overall(outcome, data, entries)
    yield f"<p class='note'>{escape(protocol_line(protocol)) if protocol else 'No results.'}</p>"
    rows = [row for row in outcome["comparisons"] if row["data"] == data and row["metric"] == outcome["metric"]]
    done = [entry for entry in entries if "strata" in entry]
    plain = [entry for entry in done if entry["placebo"] == "none"]
    figures = []
    if rows:
        caption = (
            "Relative difference of the first model to the second, 95 % interval; green or red where p < .05 (Holm). "
            "What is larger than the axis ends at its edge."
        )
        figures.append(figure("Who is better", forest(rows, f"differences in {outcome['metric']} on {data}"), caption))
    if plain:
        drawn = bars(plain, outcome["metric"], outcome["baseline"], f"{outcome['metric']} by item degree on {data}")
        key = _legend([entry["label"] for entry in plain], outcome["baseline"])
        caption = f"{outcome['metric']} by training clicks of the target item; lines: 95 % intervals over users."
        figures.append(figure("Who is good where", key + drawn, caption))
    yield f"<div class='figures'>{''.join(figures)}</div>"
    if done:
        yield _strata(outcome, done)
    yield from _comparisons(outcome, data)


def _overall(outcome: Json, data: str, entries: Sequence[Json]) -> str:
    metrics, baseline = outcome["metrics"], outcome["baseline"]
    best = {metric: max((e["test"][metric]["mean"] for e in entries if "test" in e), default=0.0) for metric in metrics}
    head = ["model", metrics[0], "95 % interval", "± seeds", *metrics[1:], "validation"]
    head += [f"vs {baseline}"] if baseline else []
    rows = []
    for entry in entries:
        if "test" not in entry:
            rows.append([escape(entry["label"]), "<span class='bad'>failed</span>", *[""] * (len(head) - 1)])
            continue
        values = [_number(entry["test"][metric]["mean"], best[metric]) for metric in metrics]
        low, high = entry["test"][metrics[0]]["ci"]
        row = [escape(entry["label"] + seeds_text(entry)), values[0], f"<span class='ci'>{low:.4f}–{high:.4f}</span>"]
        row += [f"<span class='ci'>{spread(entry['test'][metrics[0]]['std'])}</span>", *values[1:]]
        row.append(f"{entry['valid'][metrics[0]]:.4f}")
        row += [_versus(compared(outcome, data, entry["label"], baseline, metrics[0]))] if baseline else []
        rows.append([*row, f"{entry['fit_seconds']:,.1f}"])
    return table([*head, "fit, s"], rows)


def _strata(outcome: Json, entries: Sequence[Json]) -> str:
    metric, names = outcome["metric"], list(entries[0]["strata"]["item_degree"])
    lines = {entry["label"]: entry["strata"]["item_degree"] for entry in entries}
    best = {name: max(line[name][metric]["mean"] for line in lines.values()) for name in names}
    rows = [["users", *(f"{entries[0]['strata']['item_degree'][name]['users']:,}" for name in names)]]
    for label, line in lines.items():
        rows.append([escape(label), *(_number(line[name][metric]["mean"], best[name]) for name in names)])
    return f"<h3>Strata</h3>\n{table([f'{metric} by item clicks', *names], rows)}"


def _comparisons(outcome: Json, data: str) -> Iterator[str]:
    found = [row for row in outcome["comparisons"] if row["data"] == data]
    rows = []
    for row in found:
        difference = f"{row['difference']:+.4f}".replace("-", "−")
        ends = f"<span class='ci'>{interval(row)}</span>"
        rows.append([escape(f"{row['a']} vs {row['b']}"), row["metric"], difference, _versus(row), ends])
    for row in outcome["missing"]:
        if row["data"] == data:
            rows.append([escape(f"{row['a']} vs {row['b']}"), "", "<span class='bad'>missing</span>", "", ""])
    if rows:
        yield "<h3>Comparisons</h3>"
        yield table(["", "metric", "difference", "relative", "95 % interval"], rows)
    parts = [(row, row["strata"]["item_degree"]) for row in found if row["strata"]]
    if parts:
        names = list(dict.fromkeys(name for _, strata in parts for name in strata))
        body = [
            [escape(f"{row['a']} vs {row['b']}"), *(_versus(strata.get(name)) for name in names)]
            for row, strata in parts
        ]
        yield table([f"{outcome['metric']} by item clicks", *names], body)


def _settings(outcome: Json) -> Iterator[str]:
    rows = [
        [
            escape(f"{e['data']} · {e['label']}"),
            escape(settings_text(e["settings"])),
            trials_text(e),
            f"{e['tune_seconds']:,.0f}",
        ]
        for e in outcome["entries"]
        if e["trials"]
    ]
    if rows:
        yield "<h2>Settings</h2>"
        yield table(["", "chosen on validation", "trials", "search, s"], rows)


def _failures(outcome: Json) -> Iterator[str]:
    found = failures(outcome)
    if found:
        items = "".join(f"<li><strong>{escape(name)}</strong>: {escape(error)}</li>" for name, error in found)
        yield f"<h2>Failed</h2>\n<ul>{items}</ul>\n<p class='note'>The same command tries them again.</p>"


def _legend(labels: Sequence[str], baseline: str | None) -> str:
    keys = [
        f"<span style='white-space:nowrap;margin-right:14px'><span class='key' style='background:{colour}'></span>"
        f"{escape(label)}</span>"
        for label, colour in colours_of(labels, baseline).items()
    ]
    return f"<p class='note'>{' '.join(keys)}</p>"


def _versus(row: Json | None) -> str:
    if row is None:
        return ""
    words = f"{percent(row['relative'])}</span> <span class='ci'>{escape(p_text(row['p_holm']))}</span>"
    return f"<span style='color:{verdict_colour(row)}'>{words}"


def _number(value: float, best: float) -> str:
    return f"<b>{value:.4f}</b>" if value == best else f"{value:.4f}"
