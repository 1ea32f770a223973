"""The outcome of a study (study/outcome.py) as tables: study.json, study.md, and index.html. One set of tables serves
Markdown and HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphllmrec.evaluation.evaluation import protocol_line
from graphllmrec.evaluation.strata import DEGREES
from graphllmrec.io import write_text
from graphllmrec.report.elements import Cell, Figure, Table, difference_cell, markdown_table, number_cells
from graphllmrec.report.format import (
    UNEQUAL,
    against_text,
    integer,
    interval,
    interval_text,
    leaders,
    listed,
    number,
    p_value,
    percent,
    seconds,
    settings_text,
    signed,
    significance_text,
    spread,
)
from graphllmrec.report.plots.evaluation import Bar, Difference, bars_figure, forest_figure
from graphllmrec.report.plots.look import SERIES, css_colour, looks
from graphllmrec.report.render import write_page

Json = Mapping[str, Any]


@dataclass(frozen=True)
class DataSection:
    """What is said of one data set."""

    name: str
    protocol: str
    overall: Table
    figures: Sequence[Figure]
    strata: Table | None
    comparisons: Table | None
    strata_comparisons: Table | None


def write_study(folder: Path, outcome: Json) -> None:
    """Write study.md, index.html and study.json into the study folder; the JSON file comes last."""
    write_text(folder / "study.md", study_markdown(outcome))
    write_page(
        folder / "index.html",
        "study.html.j2",
        title=outcome["title"] or "Study",
        about=about(outcome),
        notes=[part for part in outcome["notes"].strip().split("\n\n") if part.strip()],
        verdicts=[verdict(outcome, name) for name in outcome["data"]],
        sections=[_section(outcome, name) for name in outcome["data"]],
        settings=_settings(outcome),
        failures=failures(outcome),
    )
    write_text(folder / "study.json", json.dumps(outcome, indent=1, ensure_ascii=False) + "\n")


def study_markdown(outcome: Json) -> str:
    """All tables as Markdown."""
    lines = [f"# {outcome['title'] or 'Study'}", ""]
    lines += [outcome["notes"].strip(), ""] if outcome["notes"].strip() else []
    lines += [about(outcome)]
    for name in outcome["data"]:
        lines += _markdown_section(outcome, name)
    settings, failed = _settings(outcome), failures(outcome)
    lines += ["", "## Settings", "", *markdown_table(settings)] if settings else []
    lines += ["", "## Failed", "", *(f"- {fit}: {error}" for fit, error in failed)] if failed else []
    return "\n".join(lines).rstrip() + "\n"


def about(outcome: Json) -> str:
    """How the figures were made."""
    seeds = ", ".join(map(str, outcome["seeds"]))
    lines = [
        f"Test part, full ranking. Seeds: {seeds}. Figures are means over users of each user's mean over the seeds, "
        "with the 95 % interval over users; ± is the standard deviation between seeds."
    ]
    if any(entry["trials"] for entry in outcome["entries"]):
        own = "a search of their own" if outcome["tune_placebos"] else "the settings found without a placebo"
        placebos = f"; placebos have {own}" if any(entry["placebo"] != "none" for entry in outcome["entries"]) else ""
        lines.append(
            f"Tuned on {outcome['metric']} of the validation part, at most {outcome['trials']} trials per model and "
            f"data set (seed {outcome['tune_seed']}){placebos}."
        )
    if outcome["comparisons"]:
        many = sum(row["metric"] == outcome["metric"] for row in outcome["comparisons"])
        lines.append(
            f"Differences: paired randomisation tests over users, p Holm-corrected over all {many} comparisons of a "
            "metric; relative differences and their bootstrap intervals are in units of the second model's mean."
        )
    if any(_unequal(outcome, row) for row in outcome["comparisons"]):
        lines.append(
            f"{UNEQUAL} The two models were tuned with unequal numbers of trials (column “trials”): the difference can "
            "be due to the tuning, and is not a result about the models."
        )
    return " ".join(lines)


def verdict(outcome: Json, data: str) -> str:
    """Which model is first on a data set, and whether it is significantly better than the baseline.

    A difference between models with unequal numbers of trials is never part of it.
    """
    metric, baseline = outcome["metric"], outcome["baseline"]
    done = {e["label"]: e for e in _entries(outcome, data) if "test" in e and e["placebo"] == "none"}
    if not done:
        return f"{data}: no model has figures."
    best = leaders({label: entry["test"][metric]["mean"] for label, entry in done.items()})
    if not best:
        return f"{data}: {metric} is 0 for every model."
    equal = len({entry["trials"] for entry in done.values()}) == 1
    verb = ("is" if len(best) == 1 else "are") if equal else ("has" if len(best) == 1 else "have")
    mean = done[best[0]]["test"][metric]["mean"]
    value = f"first with {metric} {mean:.4f}" if equal else f"the highest {metric}, {mean:.4f}"
    said = f"{data}: {listed(best)} {verb} {value}{interval_text(*done[best[0]]['test'][metric]['ci'])}"
    if len(best) == 1 and baseline in done:
        said += _against_baseline(outcome, data, done[best[0]], done[baseline])
    return f"{said}." if equal else f"{said}. The models were tuned with unequal numbers of trials."


def _against_baseline(outcome: Json, data: str, best: Json, baseline: Json) -> str:
    """The end of the verdict's sentence."""
    if best is baseline:
        return ", and it is the baseline"
    if best["trials"] != baseline["trials"]:
        return (
            f", tuned with {_trials_said(best)}; {baseline['label']}, the baseline, with {_trials_said(baseline)}. "
            "Their difference can be due to the tuning, and is not a result"
        )
    row = _comparison(outcome, data, best["label"], baseline["label"], outcome["metric"])
    if row is None:
        return ""
    against = against_text(row["relative"], row["difference"], baseline["label"])
    return f", {against} ({significance_text(row['p_holm'])})"


def _trials_said(entry: Json) -> str:
    number = entry["trials"]
    return f"{number} trial{'' if number == 1 else 's'}" if number else "no trials"


def failures(outcome: Json) -> list[tuple[str, str]]:
    """(fit, first line of the error) of every fit without figures."""
    return [
        (f"{entry['data']} · {entry['label']} · seed {fit['seed']}", str(fit["error"]).splitlines()[0])
        for entry in outcome["entries"]
        for fit in entry["fits"]
        if fit["state"] != "done"
    ]


def _section(outcome: Json, data: str) -> DataSection:
    protocol = outcome["data"][data]["protocol"]
    return DataSection(
        name=data,
        protocol=f"{protocol_line(protocol)}." if protocol else "No results yet.",
        overall=_overall(outcome, data),
        figures=[*_forest(outcome, data), *_bars(outcome, data)],
        strata=_strata(outcome, data),
        comparisons=_comparisons(outcome, data),
        strata_comparisons=_strata_comparisons(outcome, data),
    )


def _markdown_section(outcome: Json, data: str) -> list[str]:
    section = _section(outcome, data)
    lines = ["", f"## {data}", "", section.protocol, "", *markdown_table(section.overall)]
    tables = {
        f"{outcome['metric']} by training clicks of the target item:": section.strata,
        "Comparisons:": section.comparisons,
        f"Comparisons in {outcome['metric']} by training clicks of the target item:": section.strata_comparisons,
    }
    for title, table in tables.items():
        lines += ["", title, "", *markdown_table(table)] if table else []
    return lines


def _entries(outcome: Json, data: str) -> list[Json]:
    return [entry for entry in outcome["entries"] if entry["data"] == data]


def _comparison(outcome: Json, data: str, a: str, b: str | None, metric: str) -> Json | None:
    """The comparison of a with b, if there is one."""
    wanted = (data, a, b, metric)
    rows = (row for row in outcome["comparisons"] if (row["data"], row["a"], row["b"], row["metric"]) == wanted)
    return next(rows, None)


def _unequal(outcome: Json, row: Json) -> bool:
    """Were the two models of a comparison tuned with different numbers of trials?"""
    trials = {entry["label"]: entry["trials"] for entry in _entries(outcome, row["data"])}
    return bool(trials[row["a"]] != trials[row["b"]])


def _difference(outcome: Json, row: Json, within: Json | None = None) -> Cell:
    """The relative difference of a comparison (or of one of its strata) with its p; marked and grey where unequal."""
    values = within or row
    cell = difference_cell(values["relative"], values["difference"], values["p_holm"])
    return replace(cell, text=f"{cell.text} {UNEQUAL}", kind="same") if _unequal(outcome, row) else cell


def _overall(outcome: Json, data: str) -> Table:
    """A line per model: test metrics with interval and spread, validation, the test against the baseline, time."""
    (metric, *others), baseline = outcome["metrics"], outcome["baseline"]
    head = [metric, "95 % interval", "± seeds", *others, "validation"]
    head += [f"vs {baseline}", "p"] if baseline else []
    entries = _entries(outcome, data)
    tuned = any(entry["trials"] for entry in entries)
    head += ["trials"] if tuned else []
    done = [entry for entry in entries if "test" in entry]
    columns = [number_cells([entry["test"][name]["mean"] for entry in done]) for name in (metric, *others)]
    means = dict(zip((entry["label"] for entry in done), zip(*columns, strict=True), strict=True))
    rows: list[list[str | Cell]] = []
    for entry in entries:
        if "test" not in entry:
            rows.append([entry["label"], Cell("failed", kind="bad"), *[""] * len(head)])
            continue
        first, *rest = means[entry["label"]]
        values = entry["test"][metric]
        row = [entry["label"] + _seeds_text(entry), first, _minor(interval(*values["ci"]))]
        row += [_minor(spread(values["std"])), *rest, number(entry["valid"][metric])]
        row += _against(outcome, _comparison(outcome, data, entry["label"], baseline, metric)) if baseline else []
        row += [_minor(_trials_text(entry) if entry["trials"] else "none")] if tuned else []
        rows.append([*row, seconds(entry["fit_seconds"])])
    return Table(["model", *head, "fit, s"], rows)


def _seeds_text(entry: Json) -> str:
    """ "" when all seeds are there, else how many are."""
    done = sum(fit["state"] == "done" for fit in entry["fits"])
    return "" if done == len(entry["fits"]) else f" ({done} of {len(entry['fits'])} seeds)"


def _minor(text: str) -> Cell:
    return Cell(text, kind="minor")


def _against(outcome: Json, row: Json | None) -> list[str | Cell]:
    """Relative difference and p, a cell each."""
    if row is None:
        return ["", ""]
    cell = _difference(outcome, row)
    return [Cell(cell.text, kind=cell.kind), _minor(p_value(row["p_holm"]) if cell.note else "")]


def _strata(outcome: Json, data: str) -> Table | None:
    done = [entry for entry in _entries(outcome, data) if "strata" in entry]
    if not done:
        return None
    strata, users = [entry["strata"]["item_degree"] for entry in done], _stratum_users(done)
    rows: list[list[str | Cell]] = [["users", *map(integer, users.values())]]
    rows += [[entry["label"]] for entry in done]
    for name in users:
        present = [place for place, row in enumerate(strata) if name in row]
        cells = number_cells([strata[place][name][outcome["metric"]]["mean"] for place in present])
        found = dict(zip(present, cells, strict=True))
        for place, row in enumerate(rows[1:]):
            row.append(found.get(place, ""))
    return Table(["model", *users], rows)


def _stratum_users(entries: Sequence[Json]) -> dict[str, int]:
    """Users of every stratum, in order; the most of any model, as models with other seeds may have other test parts."""
    strata = [entry["strata"]["item_degree"] for entry in entries]
    users = {name: max((row[name]["users"] for row in strata if name in row), default=0) for name in DEGREES}
    return {name: count for name, count in users.items() if count}


def _comparisons(outcome: Json, data: str) -> Table | None:
    rows: list[list[str | Cell]] = []
    for row in outcome["comparisons"]:
        if row["data"] == data:
            share, p = _against(outcome, row)
            ends = row["relative_ci"]
            between = _minor(f"{percent(ends[0])} to {percent(ends[1])}" if ends and ends[0] < ends[1] else "")
            rows.append([row["a"], row["b"], row["metric"], signed(row["difference"]), share, between, p])
    for row in outcome["missing"]:
        if row["data"] == data:
            rows.append([row["a"], row["b"], Cell("missing", kind="bad"), "", "", "", ""])
    head = ["model", "against", "metric", "difference", "relative", "95 % interval", "p (Holm)"]
    return Table(head, rows) if rows else None


def _strata_comparisons(outcome: Json, data: str) -> Table | None:
    """The differences in the headline metric in every stratum."""
    found = [row for row in outcome["comparisons"] if row["data"] == data and row["strata"]]
    names = list(dict.fromkeys(name for row in found for name in row["strata"]["item_degree"]))
    rows = []
    for row in found:
        strata = row["strata"]["item_degree"]
        rows.append([row["a"], row["b"], *(_stratum_cell(outcome, row, strata.get(name)) for name in names)])
    return Table(["model", "against", *names], rows) if rows else None


def _stratum_cell(outcome: Json, row: Json, within: Json | None) -> str | Cell:
    return _difference(outcome, row, within) if within else ""


def _forest(outcome: Json, data: str) -> Iterator[Figure]:
    """Every comparison in the headline metric."""
    metric = outcome["metric"]
    found = [row for row in outcome["comparisons"] if row["data"] == data and row["metric"] == metric]
    rows = [_difference_drawn(outcome, row) for row in found]
    if rows:
        caption = (
            "Relative difference of the first model to the second, 95 % interval; green or red where p < .05 (Holm). "
            "What is larger than the axis ends at its edge."
        )
        if any(row.unequal for row in rows):
            caption += f" {UNEQUAL} and grey: tuned with unequal numbers of trials."
        drawing = forest_figure(rows, f"differences in {metric} on {data}")
        yield Figure(f"Differences in {metric}", drawing, caption)


def _difference_drawn(outcome: Json, row: Json) -> Difference:
    other = row["b"].removeprefix(f"{row['a']} ")  # "hybrid vs [shuffled]"
    name, unequal = f"{row['a']} vs {other}", _unequal(outcome, row)
    return Difference(name, row["relative"], row["relative_ci"], row["difference"], row["p_holm"], unequal)


def _bars(outcome: Json, data: str) -> Iterator[Figure]:
    """The headline metric by stratum, of as many models as there are colours."""
    metric, baseline = outcome["metric"], outcome["baseline"]
    done = [entry for entry in _entries(outcome, data) if "strata" in entry and entry["placebo"] == "none"]
    if not done:
        return
    ranked = sorted(done, key=lambda entry: entry["test"][metric]["mean"], reverse=True)
    chosen = [entry["label"] for entry in ranked if entry["label"] != baseline][: len(SERIES)]
    shown = {e["label"]: e["strata"]["item_degree"] for e in done if e["label"] in (*chosen, baseline)}
    users = _stratum_users(done)
    bars = {label: [_bar(strata, name, metric) for name in users] for label, strata in shown.items()}
    look = looks(list(shown), baseline)
    caption = f"{metric} by training clicks of the target item; lines: 95 % intervals over users."
    if len(shown) < len(done):
        others = " and the baseline" if baseline in shown else ""
        caption += f" The best {len(chosen)}{others} of {len(done)} models; all are in the table of strata."
    legend = {label: css_colour(look[label].colour) for label in shown}
    drawing = bars_figure(bars, users, look, f"{metric} by item degree on {data}")
    yield Figure("Quality by stratum", drawing, caption, legend)


def _bar(strata: Json, name: str, metric: str) -> Bar:
    """The bar of a stratum; nothing is seen of it where the model has no users there."""
    if name not in strata:
        return Bar(0.0, 0.0, 0.0)
    values = strata[name][metric]
    return Bar(values["mean"], *values["ci"])


def _settings(outcome: Json) -> Table | None:
    rows = [
        [
            entry["label"],
            entry["data"],
            settings_text(entry["settings"]) or "none: all trials failed",
            _trials_text(entry),
            integer(entry["tune_seconds"]),
        ]
        for entry in outcome["entries"]
        if entry["trials"]
    ]
    return Table(["model", "data", "chosen on validation", "trials", "search, s"], rows) if rows else None


def _trials_text(entry: Json) -> str:
    """ "20", or "20 (2 failed)"."""
    return f"{entry['trials']}" + (f" ({entry['failed_trials']} failed)" if entry["failed_trials"] else "")
