"""The outcome of a study as tables: study.json, study.md, and index.html (page.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from graphllmrec.evaluation.evaluation import protocol_line
from graphllmrec.io import write_text
from graphllmrec.report.console import p_text
from graphllmrec.study.format import (
    Json,
    about,
    compared,
    failures,
    interval,
    percent,
    settings_text,
    spread,
    trials_text,
)
from graphllmrec.study.page import page_of


def write_tables(folder: Path, outcome: Json) -> None:
    """Write study.json, study.md and index.html into the study folder."""
    write_text(folder / "study.md", markdown(outcome))
    write_text(folder / "index.html", page_of(outcome))
    write_text(folder / "study.json", json.dumps(outcome, indent=1, ensure_ascii=False) + "\n")


def markdown(outcome: Json) -> str:
    """All tables as Markdown."""
    lines = [f"# {outcome['title'] or 'Study'}", ""]
    lines += [outcome["notes"].strip(), ""] if outcome["notes"].strip() else []
    lines += [about(outcome)]
    for name, data in outcome["data"].items():
        entries = [entry for entry in outcome["entries"] if entry["data"] == name]
        lines += [
            "",
            f"## {name}",
            "",
            f"{protocol_line(data['protocol'])}." if data["protocol"] else "No results yet.",
            "",
        ]
        lines += _overall(outcome, entries)
        lines += _strata(outcome, entries)
        lines += _comparisons(outcome, name)
    lines += _settings(outcome) + _failures(outcome)
    return "\n".join(lines).rstrip() + "\n"


def _overall(outcome: Json, entries: Sequence[Json]) -> list[str]:
    metrics, baseline = outcome["metrics"], outcome["baseline"]
    head = ["model", f"{metrics[0]}", "95 % interval", "± seeds", *metrics[1:], "validation"]
    head += [f"vs {baseline}", "p"] if baseline else []
    rows = []
    for entry in entries:
        versus = compared(outcome, entry["data"], entry["label"], baseline, metrics[0]) if baseline else None
        if "test" not in entry:
            rows.append([entry["label"], "failed", *[""] * (len(head) - 2), ""])
            continue
        values = entry["test"]
        low, high = values[metrics[0]]["ci"]
        row = [
            entry["label"],
            f"{values[metrics[0]]['mean']:.4f}",
            f"{low:.4f}–{high:.4f}",
            spread(values[metrics[0]]["std"]),
        ]
        row += [f"{values[metric]['mean']:.4f}" for metric in metrics[1:]] + [f"{entry['valid'][metrics[0]]:.4f}"]
        if baseline:
            row += [percent(versus["relative"]), p_text(versus["p_holm"])] if versus else ["", ""]
        rows.append([*row, f"{entry['fit_seconds']:,.1f}"])
    return _table([*head, "fit, s"], rows)


def _strata(outcome: Json, entries: Sequence[Json]) -> list[str]:
    done = [entry for entry in entries if "strata" in entry]
    if not done:
        return []
    metric, names = outcome["metric"], list(done[0]["strata"]["item_degree"])
    users = [f"{done[0]['strata']['item_degree'][name]['users']:,}" for name in names]
    rows = [["users", *users]]
    rows += [[e["label"], *(f"{e['strata']['item_degree'][name][metric]['mean']:.4f}" for name in names)] for e in done]
    return ["", f"{metric} by training clicks of the target item:", "", *_table(["model", *names], rows)]


def _comparisons(outcome: Json, data: str) -> list[str]:
    rows = [
        [
            row["metric"],
            row["a"],
            row["b"],
            f"{row['difference']:+.4f}",
            percent(row["relative"]),
            interval(row),
            p_text(row["p_holm"]),
        ]
        for row in outcome["comparisons"]
        if row["data"] == data
    ]
    rows += [["", row["a"], row["b"], "missing", "", "", ""] for row in outcome["missing"] if row["data"] == data]
    head = ["metric", "model", "against", "difference", "relative", "95 % interval", "p (Holm)"]
    return ["", "Comparisons:", "", *_table(head, rows)] if rows else []


def _settings(outcome: Json) -> list[str]:
    rows = [
        [
            entry["data"],
            entry["label"],
            settings_text(entry["settings"]),
            trials_text(entry),
            f"{entry['tune_seconds']:,.0f}",
        ]
        for entry in outcome["entries"]
        if entry["trials"]
    ]
    head = ["data", "model", "chosen on validation", "trials", "search, s"]
    return ["", "## Settings", "", *_table(head, rows)] if rows else []


def _failures(outcome: Json) -> list[str]:
    lines = [f"- {name}: {error}" for name, error in failures(outcome)]
    return ["", "## Failed", "", *lines] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
