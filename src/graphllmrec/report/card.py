"""The model card: which data, which recipe, how good and measured how, and what the figures do not say.

Mitchell et al. 2019, "Model Cards for Model Reporting" (FAT*). One set of values serves Markdown and JSON.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphllmrec.data.split import Split
from graphllmrec.data.stats import statistics
from graphllmrec.data.tables import Dataset
from graphllmrec.evaluation.compare import Comparison, compare, holm
from graphllmrec.evaluation.evaluation import Evaluation, protocol_line
from graphllmrec.protocol import Abilities
from graphllmrec.recipe import Recipe
from graphllmrec.report.elements import Table, markdown_table
from graphllmrec.report.format import (
    STRATUM_TITLES,
    differs,
    integer,
    interval,
    interval_text,
    markdown_text,
    number,
    p_value,
    signed,
)
from graphllmrec.report.render import render

FEW_USERS = 30  # of a stratum of whose figure little can be said
_REPEATS = "repeated pairs left out"
_TIED = "users with their newest two at one time"
NOT_STATED = "not stated"
_QUOTED = 600  # characters of a licence


@dataclass(frozen=True)
class CardSource:
    """What a card is made from."""

    recipe: Recipe
    abilities: Abilities
    dataset: Dataset
    split: Split
    evaluation: Evaluation | None  # of the test part; None where the split has none
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    data_licence: str | None = None  # None: what the data folder says
    versions: Mapping[str, str] | None = None  # of the fit; None: those of now
    seconds: float | None = None  # time to fit


def card_values(source: CardSource) -> dict[str, Any]:
    """The card as JSON values. Raises EvaluationError for baselines with other users, targets or masked items."""
    evaluation, recipe = source.evaluation, source.recipe
    return {
        "model": recipe.model.name,
        "title": recipe.title,
        "metric": recipe.evaluate.metric,
        "data": {**statistics(source.dataset, source.split), "licence": _licence(source)},
        "protocol": None if evaluation is None else evaluation.protocol,
        "protocol_line": None if evaluation is None else protocol_line(evaluation.protocol),
        "overall": {} if evaluation is None else evaluation.overall,
        "overall_ci": {} if evaluation is None else {name: list(ends) for name, ends in evaluation.overall_ci.items()},
        "strata": {} if evaluation is None else evaluation.strata,
        "comparisons": [row.to_json() for row in _comparisons(source)],
        "limits": limits(source),
        "recipe": recipe.values(),
        "recipe_toml": recipe.to_toml(),
        "versions": dict(source.versions or _versions()),
        "seconds": source.seconds,
    }


def card_markdown(values: Mapping[str, Any]) -> str:
    """The card as Markdown; texts of the data cannot act as markup."""
    longest = max(map(len, re.findall("`+", values["recipe_toml"])), default=0)
    measured = bool(values["overall"])
    return render(
        "card.md.j2",
        **values,
        interval=interval_text(*values["overall_ci"][values["metric"]]) if measured else "",
        data_table=_lines(_data_table(values["data"])),
        figures_table=_lines(_figures_table(values)) if measured else "",
        strata_table=_lines(_strata_table(values)) if measured else "",
        comparisons_table=_lines(_comparisons_table(values)),
        versions_text=", ".join(f"{name} {number}" for name, number in values["versions"].items()),
        fence="`" * max(3, longest + 1),
    )


def _lines(table: Table) -> str:
    return "\n".join(markdown_table(table))


def _data_table(data: Mapping[str, Any]) -> Table:
    split, span = data["split"], data["time_span"]
    rows = {
        "users": integer(data["users"]),
        "items": f"{integer(data['items'])}, of which {integer(data['items_without_click'])} without a click",
        "interactions": f"{integer(data['interactions'])} ({data['density']:.3%} of all pairs)",
        _REPEATS: integer(data["repeats_dropped"]),
        "order": (data["order"] or "none") + (f", {span[0][:10]} to {span[1][:10]}" if span else ""),
        _TIED: _tied(data),
        "items with text": f"{data['items_with_text']:.1%} ({', '.join(data['text_columns']) or 'no column'})",
        "split": f"{split['kind']}: {integer(split['train'])} train, {integer(split['valid'])} validation, "
        f"{integer(split['test'])} test",
        "licence": data["licence"],
    }
    if not data["order"]:
        del rows[_TIED]
    if not data["repeats_dropped"]:  # or they are not known, in a run of an earlier version
        del rows[_REPEATS]
    return Table(["data", markdown_text(data["name"])], [[name, markdown_text(text)] for name, text in rows.items()])


def _tied(data: Mapping[str, Any]) -> str:
    rule = "a hash of the ids" if data["split"]["settings"].get("ties", data["ties"]) == "hash" else "the order of rows"
    return f"{data['tied_users']:.1%}" + (f", sorted by {rule}" if data["tied_users"] else "")


def _figures_table(values: Mapping[str, Any]) -> Table:
    ks, overall, ends = values["protocol"]["ks"], values["overall"], values["overall_ci"]

    def cell(metric: str) -> str:
        between = interval(*ends[metric]) if metric in ends else ""
        return number(overall[metric]) + (f" ({between})" if between else "")

    names = dict.fromkeys(metric.split("@")[0] for metric in overall)
    return Table(["metric", *(f"@{k}" for k in ks)], [[name, *(cell(f"{name}@{k}") for k in ks)] for name in names])


def _strata_table(values: Mapping[str, Any]) -> Table:
    metric = values["metric"]
    rows = [
        [STRATUM_TITLES[kind], markdown_text(name), integer(row["users"]), number(row[metric])]
        for kind, strata in values["strata"].items()
        for name, row in strata.items()
        if row["users"]
    ]
    return Table(["part", "", "users", metric], rows)


def _comparisons_table(values: Mapping[str, Any]) -> Table:
    rows = [
        [
            markdown_text(row["b"]),
            number(row["mean_b"]),
            signed(row["difference"]),
            f"{signed(row['ci'][0])} to {signed(row['ci'][1])}" if row["ci"][0] < row["ci"][1] else "",
            p_value(row["p_holm"]) if differs(row["difference"]) else "",
        ]
        for row in values["comparisons"]
    ]
    return Table(["against", f"its {values['metric']}", "difference", "95 % interval", "p"], rows)


def limits(source: CardSource) -> list[str]:
    """What the figures do not say, in sentences."""
    if source.evaluation is None:
        return ["The split keeps no test part, so nothing is known of the quality of this model."]
    said = [
        "The figures say how often held-out interactions are found again among all items. They do not say what users "
        "would do with the recommendations.",
        f"They are of one data set and one seed ({source.recipe.seed}). The intervals are over users: they hold "
        "neither the variation between seeds nor another time or another set of users.",
        *_limits_of_split(source.split, source.dataset),
        *_limits_of_items(source, source.evaluation),
    ]
    if source.recipe.text.placebo != "none" and source.abilities.reads_text:
        said.append(f"The model was fitted on a placebo ({source.recipe.text.placebo}) in the place of the texts.")
    if not source.baselines:
        said.append("No baseline is given, so the card does not say whether a simpler model would be as good.")
    return said


def _limits_of_split(split: Split, dataset: Dataset) -> list[str]:
    said = []
    if split.kind == "leave-last-out":
        said.append(
            "Leave-last-out tests each user at another time: interactions of other users that are later than a user's "
            "test item are in the training part."
        )
    if not split.ordered:
        said.append("The interactions have no order, so the figures say nothing about predicting what comes next.")
    without = dataset.num_users - len(set(split.test.user.tolist()))
    if without:
        said.append(f"{without:,} of {dataset.num_users:,} users have no test item and are in no figure.")
    return said


def _limits_of_items(source: CardSource, evaluation: Evaluation) -> list[str]:
    said = []
    rare = {name: int(row["users"]) for name, row in evaluation.strata["item_degree"].items()}
    if not source.abilities.ranks_cold_items:
        said.append("The model has no score of its own for an item without training clicks.")
    elif rare["0"] < FEW_USERS:
        said.append(f"Only {rare['0']} users have a test item without training clicks: new items are hardly tested.")
    few = [name for name, users in rare.items() if 0 < users < FEW_USERS and name != "0"]
    if few:
        strata = " and ".join(few)
        said.append(f"Fewer than {FEW_USERS} users stand behind the figures of items with {strata} training clicks.")
    return said


def _comparisons(source: CardSource) -> list[Comparison]:
    """The model against each baseline, p Holm-corrected over them."""
    if source.evaluation is None:
        return []
    metric, name = source.recipe.evaluate.metric, source.evaluation.name
    rows = [
        replace(compare(source.evaluation, other, metric, strata=False), a=name, b=baseline)
        for baseline, other in source.baselines.items()
    ]
    return [replace(row, p_holm=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def _licence(source: CardSource) -> str:
    if source.data_licence is not None:
        return source.data_licence
    return stated_licence(Path(source.dataset.source)) if source.dataset.source else NOT_STATED


def stated_licence(folder: Path) -> str:
    """What the files of a data folder say of its licence, with the file's name; "not stated" where they do not.

    A file LICENSE, LICENCE or COPYING is quoted from its beginning; a README from the word "licence" on.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for pattern, find in ((r"(licen[cs]e|copying)\b", _beginning), (r"readme\b", _about_licence)):
        for path in files:
            if re.match(pattern, path.name, re.IGNORECASE):
                text = path.read_bytes()[:1_000_000].decode("utf-8", errors="replace")
                if found := find(text):
                    cut = found if len(found) <= _QUOTED else f"{found[:_QUOTED].rsplit(' ', 1)[0]} …"
                    return f"{path.name}: {cut}"
    return NOT_STATED


def _beginning(text: str) -> str:
    paragraphs = _paragraphs(text)
    return paragraphs[0] if paragraphs else ""


def _about_licence(text: str) -> str:
    """The first paragraph that names the licence; where that is a heading, the one after it."""
    paragraphs = _paragraphs(text)
    for place, paragraph in enumerate(paragraphs):
        if re.search(r"\blicen[cs](e|ed|ing)\b", paragraph, re.IGNORECASE):
            after = paragraphs[place + 1 :]
            if after and len(paragraph.split()) <= 4 and ":" not in paragraph:  # a heading
                paragraph, *after = after
            return " ".join([paragraph, *after[:1]]) if paragraph.endswith(":") else paragraph
    return ""


def _paragraphs(text: str) -> list[str]:
    """Paragraphs on one line each; underlines and heading marks are left out."""
    lines = [re.sub(r"^\s*(#+|[=*_~-]{3,})\s*", "", line).strip() for line in text.splitlines()]
    marked = [
        f"\n{line}\n" if re.match(r"\s*#", raw) else line for raw, line in zip(text.splitlines(), lines, strict=True)
    ]
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(marked)) if part.strip()]


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("graphllmrec", "torch", "polars", "numpy")}
    return {"python": platform.python_version(), **found}
