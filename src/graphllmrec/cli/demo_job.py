"""`graphllmrec demo`: the whole road on MovieLens latest-small, from ratings to a film that nobody has seen yet."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from graphllmrec.data.read import demo_data
from graphllmrec.data.tables import Dataset
from graphllmrec.evaluation.compare import compare_many
from graphllmrec.progress import RunLogger
from graphllmrec.recommendation import Recommendation
from graphllmrec.recommender import Recommender
from graphllmrec.report.console import models_table
from graphllmrec.report.runs import report_runs

RECIPES = ("popularity", "item-knn", "ease", "lightgcn-fast", "hybrid-static", "hybrid")  # the last gives advice
# Graph training of under half a minute: long histories are cut, and negatives sampled.
SHORT = {"epochs": 9, "batch_size": 512, "negatives": 1000, "max_history": 20, "learning_rate": 0.01}
SHORT_SIGN = {"epochs": 8, "min_steps": 0, "batch_size": 32, "learning_rate": 0.002, "warmup": 20, "max_history": 20}
OVERRIDES: dict[str, dict[str, Any]] = {
    "lightgcn-fast": SHORT,
    "hybrid-static": {"settings": {"sign": SHORT_SIGN}},
    "hybrid": {"settings": {"sign": SHORT_SIGN}},
}
SHARED = (
    "Both hybrids have the same experts, whose training is shared: the time to fit hybrid is that of tuning and of its "
    "gate. LightGCN and SIGN are cut short for the demo."
)
BASELINE = "ease"  # what the others are compared with
NEW_FILM = {
    "item_id": "new-film",
    "title": "Lighthouse on Mars (2026)",
    "genres": ["Adventure", "Sci-Fi"],
    "tags": ["space", "mars", "robots", "survival"],
}


def run_demo(
    out: Path, *, data: Dataset | None = None, recipes: tuple[str, ...] = RECIPES, console: Console | None = None
) -> dict[str, Any]:
    """Train, compare, report, recommend, add a film; everything is kept under `out`, earlier demo runs are replaced.

    Prints to `console` (default: stdout) and returns what it found as JSON values.
    """
    began = time.monotonic()
    console = console or Console()
    dataset = data or demo_data()
    console.print(f"[bold]{dataset.name}[/]: {dataset.num_users:,} people, {dataset.num_items:,} films, "
                  f"{len(dataset.interactions):,} ratings.")  # fmt: skip
    stages = out / "stages"  # what the hybrids have in common is trained once
    shutil.rmtree(stages, ignore_errors=True)
    with RunLogger() as logger:
        for name in recipes:
            adviser = Recommender.from_recipe(name, model=OVERRIDES.get(name, {}))
            adviser.fit(dataset, out=out / name, overwrite=True, cache=stages, logger=logger)
            adviser.evaluate("test", logger=logger).write(out / name)
        runs = {name: out / name for name in recipes}
        evaluations = report_runs(runs, out / "report.html", logger, baseline=BASELINE, notes=(SHARED,))
    console.print(_text_reuse(out, recipes), style="dim")
    console.print(models_table(evaluations, compare_many(evaluations, BASELINE)))
    found = {
        "runs": {name: str(path) for name, path in runs.items()},
        "report": str(out / "report.html"),
        "overall": {name: evaluation.overall for name, evaluation in evaluations.items()},
        "advice": _advise(adviser, console),
        "new_film": _add_film(adviser, console) if adviser.model.abilities.ranks_cold_items else None,
        "seconds": round(time.monotonic() - began, 1),
    }
    console.print(f"\n[bold]Done in {found['seconds']:.0f} s. Open {found['report']} in a browser. "
                  f"Next: graphllmrec recommend {runs[recipes[-1]]} --user 1[/]", soft_wrap=True)  # fmt: skip
    return found


def _text_reuse(out: Path, recipes: tuple[str, ...]) -> str:
    """How many item texts had to be encoded, from the log of the first run that used text."""
    for name in recipes:
        for line in (out / name / "timings.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event"] == "text":
                new = event["different"] - event["cached"]
                return f"Film texts: {new:,} encoded now, {event['cached']:,} reused from an earlier run."
    return "Film texts: not used."


def _advise(recommender: Recommender, console: Console) -> dict[str, Any]:
    """Recommendations with reasons for a person with a history of middling length."""
    lengths = recommender.dataset.interactions.histories(recommender.dataset.num_users).lengths
    row = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    [user] = recommender.dataset.users.of([row])
    latest = _titles(recommender, row)[:5]
    [entries] = recommender.recommend(users=[user], k=5)
    known = f"rated {lengths[row]} films, most recently: {', '.join(latest)}."
    console.print(f"\n[bold]Person {escape(user)}[/] {escape(known)}")
    console.print(f"{recommender.model.name} recommends:")
    advice = []
    for place, entry in enumerate(entries, start=1):
        reason = recommender.explain(user, entry.item_id)
        total = sum(abs(share) for share in reason.shares.values()) or 1.0
        shares = {name: abs(share) / total for name, share in reason.shares.items()}
        near = [near.title or near.item_id for near in reason.history[:2]]
        said = ", ".join(f"{share:.0%} {name}" for name, share in shares.items())
        because = f", because of {' and '.join(near)}" if near else ""
        console.print(f"  {place}. [cyan]{escape(_name(entry))}[/]  [dim]{said}{escape(because)}[/]")
        advice.append({"item_id": entry.item_id, "title": entry.title, "shares": shares, "because_of": near})
    return {"user": user, "latest": latest, "recommendations": advice}


def _add_film(recommender: Recommender, console: Console, k: int = 100) -> dict[str, Any]:
    """Add a film that nobody has rated: which films it resembles, and who gets it among their first k."""
    columns = recommender.dataset.items.table.columns
    recommender.add_items([{name: value for name, value in NEW_FILM.items() if name in columns}])
    similar = recommender.similar(NEW_FILM["item_id"], 5)
    users = recommender.dataset.users.ids.to_list()
    lists = recommender.recommend(users=users, k=k)
    places = {
        user: place
        for user, entries in zip(users, lists, strict=True)
        for place, entry in enumerate(entries, start=1)
        if entry.item_id == NEW_FILM["item_id"]
    }
    first = sorted(places, key=lambda user: places[user])[:3]
    console.print(f"\n[bold]A film that does not exist:[/] {NEW_FILM['title']}, {', '.join(NEW_FILM['genres'])}; "
                  f"{', '.join(NEW_FILM['tags'])}.")  # fmt: skip
    console.print(f"  similar to: {escape(', '.join(_name(entry) for entry in similar))}")
    chance = len(users) * k / recommender.dataset.num_items
    console.print(f"  among the first {k} of {recommender.dataset.num_items:,} films for {len(places)} people "
                  f"(by chance: {chance:.0f}), though nobody has rated it")  # fmt: skip
    for user in first:
        latest = ", ".join(_titles(recommender, recommender.dataset.users.row(user))[:3])
        console.print(f"  place {places[user]} for person {user}, who lately rated {escape(latest)}")
    return {**NEW_FILM, "similar": [_name(entry) for entry in similar], "among_first": k, "people": len(places)}


def _titles(recommender: Recommender, user_row: int) -> list[str]:
    """Titles of a person's films, newest first."""
    rows = recommender.dataset.interactions.histories(recommender.dataset.num_users)[user_row][::-1]
    titles, ids = recommender.dataset.items.titles, recommender.dataset.items.ids.of(rows)
    return [titles[row] or item_id for row, item_id in zip(rows.tolist(), ids, strict=True)]


def _name(entry: Recommendation) -> str:
    return entry.title or entry.item_id
