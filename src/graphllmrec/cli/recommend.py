"""`graphllmrec recommend`, `explain` and `similar`: use a fitted recommender."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graphllmrec.cli.common import (
    IDS,
    Candidates,
    Exclude,
    Filter,
    History,
    Json,
    K,
    Run,
    User,
    history_items,
    listed,
    option_ids,
    print_json,
    print_list,
    say,
)
from graphllmrec.terminal import command

if TYPE_CHECKING:
    from graphllmrec.recommender import Recommender


def recommend(
    run: Run,
    user: User = None,
    users: Annotated[str | None, typer.Option("--users", help=f"Several user ids: {IDS}.", show_default=False)] = None,
    history: History = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user of the data; needs --out.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write the lists of --users or --all-users into this .parquet, .csv, .tsv or .jsonl[.gz|.zst]. "
            "The same command after a kill continues.",
            show_default=False,
        ),
    ] = None,
    k: K = 10,
    filter_: Filter = None,
    exclude: Exclude = None,
    candidates: Candidates = None,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Items of the user's own history may be in the list.")
    ] = False,
    unknown: Annotated[
        Literal["error", "skip", "popular"],
        typer.Option("--unknown", help="What unknown users get: an error, an empty list, or the most popular items."),
    ] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --out names.")] = False,
    as_json: Json = False,
) -> None:
    """The best items for a known user, for a history of items, or for many users."""
    _check_whom(user, users, history, all_users=all_users, out=out)
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(run)
    limits: dict[str, Any] = _limits(filter_, exclude, candidates) | {"allow_seen": allow_seen, "unknown": unknown}
    if out is not None:
        asked = None if all_users else option_ids(users or "")
        _write_lists(recommender, out, asked, k, limits, overwrite=overwrite, as_json=as_json)
    elif users is not None:
        _print_lists(recommender, option_ids(users), k, limits, as_json=as_json)
    else:
        _print_one(recommender, run, user, history, k, limits, as_json=as_json)


def _check_whom(user: str | None, users: str | None, history: str | None, *, all_users: bool, out: Path | None) -> None:
    """A usage error unless exactly one of the four is given, with a file where one is needed."""
    if sum((user is not None, users is not None, history is not None, all_users)) != 1:
        raise typer.BadParameter("give either --user ID, --users a,b,c, --history a,b,c, or --all-users --out FILE")
    if all_users and out is None:
        raise typer.BadParameter("--all-users needs --out FILE")
    if out is not None and not (all_users or users is not None):
        raise typer.BadParameter("--out writes the lists of --all-users or --users a,b,c")


def _limits(conditions: list[str] | None, exclude: list[str] | None, candidates: list[str] | None) -> dict[str, Any]:
    """Arguments of `recommend` and `similar` that say which items lists may hold. An option can be repeated."""

    def ids(options: list[str]) -> list[str]:
        return [item for option in options for item in option_ids(option)]

    return {
        "filter": conditions or None,
        "exclude": ids(exclude or []),
        "candidates": ids(candidates) if candidates else None,
    }


def _write_lists(
    recommender: Recommender, out: Path, users: list[str] | None, k: int, limits: dict[str, Any],
    *, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    from graphllmrec.errors import Interrupted
    from graphllmrec.progress import RunLogger

    count = recommender.dataset.num_users if users is None else len(users)
    try:
        with RunLogger() as logger:
            recommender.recommend_all(out, k, users=users, overwrite=overwrite, logger=logger, **limits)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {out} is not written yet, the same command continues") from None
    if as_json:
        print_json({"out": str(out), "users": count, "k": k})
        return
    say(f"Wrote the {k} best items of {count:,} users into {out}.", "bold")


def _print_lists(recommender: Recommender, users: list[str], k: int, limits: dict[str, Any], *, as_json: bool) -> None:
    lists = recommender.recommend(users=users, k=k, **limits)
    if as_json:
        found = [{"user": user, "recommendations": listed(each)} for user, each in zip(users, lists, strict=True)]
        print_json({"users": found, "k": k})
        return
    for user, entries in zip(users, lists, strict=True):
        print_list(entries, f"{recommender.model.name} recommends to user {user}")
    say(f"Lists for {len(users)} users; write them into a file with --out lists.csv.")


def _print_one(
    recommender: Recommender, run: Path, user: str | None, history: str | None, k: int, limits: dict[str, Any],
    *, as_json: bool,
) -> None:  # fmt: skip
    items = None if history is None else option_ids(history)
    [found] = recommender.recommend(users=None if user is None else [user], history=items, k=k, **limits)
    who = f"user {user}" if items is None else f"a history of {len(items)} item(s)"
    if as_json:
        unknown = [item for item in items or [] if item not in recommender.dataset.items.ids]
        print_json({"user": user, "history": items, "ignored": unknown, "k": k, "recommendations": listed(found)})
        return
    print_list(found, f"{recommender.model.name} recommends to {who}")
    if not found:
        say(f"No list for {who}: the history and the options leave no item, or the model knows none of the history.")
        return
    query = ["--user", user] if user is not None else ["--history", history or ""]
    explained = user is None or user in recommender.dataset.users
    why = command("explain", run, *query, "--item", found[0].item_id)
    say(f"{len(found)} items for {who}." + (f" Why the first one: {why}" if explained else ""))


def explain(
    run: Run,
    item: Annotated[str, typer.Option("--item", help="The item to explain.", show_default=False)],
    user: User = None,
    history: History = None,
    as_json: Json = False,
) -> None:
    """Why an item gets its score: clicks or text, the gate, and the history items nearest to it."""
    items = history_items(user, history)
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(run)
    reason = recommender.explain(user, item, history=items)
    if as_json:
        print_json({"user": user, "given_history": items, **asdict(reason)})
        return
    say(str(reason))
    first = reason.history[0] if reason.history else None
    nearest = f"nearest to {first.title or first.item_id}" if first else "no item of the history is near"
    shares = ", ".join(f"{name} {value:+.4f}" for name, value in reason.shares.items())
    say(f"{reason.title or item} scores {reason.score:.4f} = {shares}; {nearest}.")


def similar(
    run: Run,
    item: Annotated[str, typer.Option("--item", help="The item to start from.", show_default=False)],
    k: K = 10,
    filter_: Filter = None,
    exclude: Exclude = None,
    candidates: Candidates = None,
    as_json: Json = False,
) -> None:
    """The items that the model finds most similar to one item."""
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(run)
    found = recommender.similar(item, k, **_limits(filter_, exclude, candidates))
    title = recommender.dataset.items.title(recommender.dataset.items.ids.row(item, "item"))
    if as_json:
        print_json({"item_id": item, "title": title, "k": k, "similar": listed(found)})
        return
    print_list(found, f"{recommender.model.name}: similar to {title or item}", "similarity")
    say(f"{len(found)} items similar to {title or item} (item {item}).")
