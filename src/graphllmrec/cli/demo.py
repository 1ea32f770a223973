"""`graphllmrec demo`: all steps on MovieLens latest-small, from ratings to recommendations of a new film."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphllmrec.cli.common import Json, print_json
from graphllmrec.terminal import command

if TYPE_CHECKING:
    from rich.console import Console

    from graphllmrec.data.tables import Dataset
    from graphllmrec.recommendation import Recommendation
    from graphllmrec.recommender import Recommender

RECIPES = ("popularity", "item-knn", "ease", "lightgcn-fast", "hybrid-static", "hybrid")  # the last one recommends
# Graph training of under half a minute: long histories are cut, and negatives sampled.
SHORT = {"epochs": 9, "batch_size": 512, "negatives": 1000, "max_history": 20, "learning_rate": 0.01}
SHORT_SIGN = {"epochs": 8, "min_steps": 0, "batch_size": 32, "learning_rate": 0.002, "warmup": 20, "max_history": 20}
OVERRIDES: dict[str, dict[str, Any]] = {
    "lightgcn-fast": SHORT,
    "hybrid-static": {"settings": {"sign": SHORT_SIGN}},
    "hybrid": {"settings": {"sign": SHORT_SIGN}},
}
NOTE = (
    "Both hybrids have the same experts, which are trained once: the time to fit hybrid is that of tuning and of its "
    "gate. LightGCN and SIGN are trained for a few epochs only in this demo."
)
BASELINE = "ease"  # the others are compared with it
NEW_FILM = {
    "item_id": "new-film",
    "title": "Lighthouse on Mars (2026)",
    "genres": ["Adventure", "Sci-Fi"],
    "tags": ["space", "mars", "robots", "survival"],
}


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and the report.")] = Path("demo-run"),
    as_json: Json = False,
) -> None:
    """Train and compare six recommenders on MovieLens, print recommendations with reasons, and add a new film."""
    found = run_demo(out)
    if as_json:
        print_json(found)


def run_demo(
    out: Path, *, data: Dataset | None = None, recipes: tuple[str, ...] = RECIPES, console: Console | None = None
) -> dict[str, Any]:
    """Train, compare, report, recommend, add a film; all files are under `out`, earlier demo runs are replaced.

    Prints to `console` (default: stdout) and returns the results as JSON values.
    """
    from rich.console import Console
    from rich.markup import escape

    from graphllmrec.data.read import demo_data
    from graphllmrec.evaluation.compare import compare_many
    from graphllmrec.progress import RunLogger
    from graphllmrec.recommender import Recommender
    from graphllmrec.report.console import models_table
    from graphllmrec.report.runs import report_runs

    began = time.monotonic()
    console = console or Console()
    dataset = data or demo_data()
    console.print(f"[bold]{dataset.name}[/]: {dataset.num_users:,} users, {dataset.num_items:,} films, "
                  f"{len(dataset.interactions):,} ratings.")  # fmt: skip
    cache = out / "cache"  # stages that both hybrids have are trained once
    shutil.rmtree(cache, ignore_errors=True)
    with RunLogger() as logger:
        for name in recipes:
            recommender = Recommender.from_recipe(name, model=OVERRIDES.get(name, {}))
            recommender.fit(dataset, out=out / name, overwrite=True, cache=cache, logger=logger)
            recommender.evaluate("test", logger=logger).write(out / name)
        runs = {name: out / name for name in recipes}
        evaluations = report_runs(runs, out / "report.html", logger, baseline=BASELINE, notes=(NOTE,))
    console.print(_text_reuse(out, recipes), style="dim")
    console.print(models_table(evaluations, compare_many(evaluations, BASELINE)))
    found = {
        "runs": {name: str(path) for name, path in runs.items()},
        "report": str(out / "report.html"),
        "overall": {name: evaluation.overall for name, evaluation in evaluations.items()},
        "advice": _recommend(recommender, console),
        "new_film": _add_film(recommender, console) if recommender.model.abilities.ranks_cold_items else None,
        "seconds": round(time.monotonic() - began, 1),
    }
    advice = command("recommend", runs[recipes[-1]], "--user", "1")
    console.print(f"\n[bold]Done in {found['seconds']:.0f} s. Open {escape(str(found['report']))} in a browser. "
                  f"Next: {escape(advice)}[/]", soft_wrap=True)  # fmt: skip
    return found


def _text_reuse(out: Path, recipes: tuple[str, ...]) -> str:
    """Number of item texts that were encoded, from the log of the first run that used text."""
    from graphllmrec.progress import read_timings

    for name in recipes:
        for event in read_timings(out / name):
            different, cached = event.get("different"), event.get("cached")
            if event["event"] == "text" and isinstance(different, int) and isinstance(cached, int):
                return f"Film texts: {different - cached:,} encoded now, {cached:,} reused from an earlier run."
    return "Film texts: not used."


def _recommend(recommender: Recommender, console: Console) -> dict[str, Any]:
    """Recommendations with reasons for a user with a history of median length."""
    from rich.markup import escape

    lengths = recommender.dataset.interactions.histories(recommender.dataset.num_users).lengths
    row = int(lengths.argsort(kind="stable")[len(lengths) // 2])
    [user] = recommender.dataset.users.of([row])
    latest = _titles(recommender, row)[:5]
    [entries] = recommender.recommend(users=[user], k=5)
    known = f"rated {lengths[row]} films, most recently: {', '.join(latest)}."
    console.print(f"\n[bold]User {escape(user)}[/] {escape(known)}")
    console.print(f"{recommender.model.name} recommends:")
    advice = []
    for place, entry in enumerate(entries, start=1):
        reason = recommender.explain(user, entry.item_id)
        total = sum(abs(share) for share in reason.shares.values()) or 1.0
        shares = {name: abs(share) / total for name, share in reason.shares.items()}
        near = [near.title or near.item_id for near in reason.history[:2]]
        parts = ", ".join(f"{share:.0%} {name}" for name, share in shares.items())
        because = f", because of {' and '.join(near)}" if near else ""
        console.print(f"  {place}. [cyan]{escape(_name(entry))}[/]  [dim]{parts}{escape(because)}[/]")
        advice.append({"item_id": entry.item_id, "title": entry.title, "shares": shares, "because_of": near})
    return {"user": user, "latest": latest, "recommendations": advice}


def _add_film(recommender: Recommender, console: Console, k: int = 100) -> dict[str, Any]:
    """Add a film without ratings: the films most similar to it, and the users who get it among their first k."""
    from rich.markup import escape

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
    console.print(f"  among the first {k} of {recommender.dataset.num_items:,} films for {len(places)} users "
                  f"(by chance: {chance:.0f}); it has no rating")  # fmt: skip
    for user in first:
        latest = ", ".join(_titles(recommender, recommender.dataset.users.row(user))[:3])
        console.print(f"  place {places[user]} for user {user}, whose latest ratings are of {escape(latest)}")
    return {**NEW_FILM, "similar": [_name(entry) for entry in similar], "among_first": k, "people": len(places)}


def _titles(recommender: Recommender, user_row: int) -> list[str]:
    """Titles of a user's films, newest first."""
    rows = recommender.dataset.interactions.histories(recommender.dataset.num_users)[user_row][::-1]
    titles, ids = recommender.dataset.items.titles, recommender.dataset.items.ids.of(rows)
    return [titles[row] or item_id for row, item_id in zip(rows.tolist(), ids, strict=True)]


def _name(entry: Recommendation) -> str:
    return entry.title or entry.item_id
