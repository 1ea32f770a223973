"""Figures of a study as words, for Markdown, HTML and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphllmrec.report.console import p_text

Json = Mapping[str, Any]


def about(outcome: Json) -> str:
    """How the figures came about."""
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
        count = sum(row["metric"] == outcome["metric"] for row in outcome["comparisons"])
        lines.append(
            f"Differences: paired randomisation tests over users, p Holm-corrected over all {count} comparisons of a "
            "metric; relative differences and their bootstrap intervals are in units of the second model's mean."
        )
    return " ".join(lines)


def compared(outcome: Json, data: str, a: str, b: str | None, metric: str) -> Json | None:
    """The comparison of a with b, if there is one."""
    found = (
        row
        for row in outcome["comparisons"]
        if (row["data"], row["a"], row["b"], row["metric"]) == (data, a, b, metric)
    )
    return next(found, None)


def failures(outcome: Json) -> list[tuple[str, str]]:
    """(fit, first line of the error) of every fit without figures."""
    return [
        (f"{entry['data']} · {entry['label']} · seed {fit['seed']}", str(fit["error"]).splitlines()[0])
        for entry in outcome["entries"]
        for fit in entry["fits"]
        if fit["state"] != "done"
    ]


def seeds_text(entry: Json) -> str:
    """ "" when all seeds are there, else how many are."""
    done = sum(fit["state"] == "done" for fit in entry["fits"])
    return "" if done == len(entry["fits"]) else f" ({done} of {len(entry['fits'])} seeds)"


def spread(std: float | None) -> str:
    """Standard deviation between seeds."""
    return "" if std is None else f"±{std:.4f}"


def percent(value: float | None) -> str:
    """ "+8.0 %", as a factor where a percentage would only be large; a real minus sign for print."""
    if value is None:
        return "from 0"
    return (f"{100 * value:+.1f} %" if value < 5 else f"×{value + 1:.1f}").replace("-", "−")


def interval(row: Json) -> str:
    """The interval of a relative difference."""
    ends = row["relative_ci"]
    return "" if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def settings_text(settings: Json) -> str:
    """ "l2 100, decay 0.9"; "as in the recipe" without any."""
    shown = [f"{key.removeprefix('model.')} {_short(value)}" for key, value in settings.items()]
    return ", ".join(shown) or "none: all trials failed"


def trials_text(entry: Json) -> str:
    """ "20", or "20 (2 failed)"."""
    return f"{entry['trials']}" + (f" ({entry['failed_trials']} failed)" if entry["failed_trials"] else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict(outcome: Json, data: str) -> str:
    """Who is first on a data set, and how sure that is."""
    metric, baseline = outcome["metric"], outcome["baseline"]
    done = [e for e in outcome["entries"] if e["data"] == data and "test" in e and e["placebo"] == "none"]
    if not done:
        return f"{data}: no model has figures."
    best = max(done, key=lambda entry: entry["test"][metric]["mean"])
    low, high = best["test"][metric]["ci"]
    first = (
        f"{data}: {best['label']} is first with {metric} {best['test'][metric]['mean']:.4f} ({low:.4f} to {high:.4f})"
    )
    row = compared(outcome, data, best["label"], baseline, metric)
    if row is None:
        return f"{first}, and it is the baseline." if best["label"] == baseline else f"{first}."
    sure = "a difference that chance does not explain" if row["p_holm"] < 0.05 else "a difference that may be chance"
    return f"{first}, {percent(row['relative'])} against {baseline}, {sure} ({p_text(row['p_holm'])}, Holm)."
