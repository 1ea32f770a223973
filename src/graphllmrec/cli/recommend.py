"""`graphllmrec recommend`, `explain` and `similar`: use a fitted recommender."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from graphllmrec.cli.common import (
    History,
    Json,
    K,
    Run,
    User,
    command,
    history_items,
    listed,
    print_json,
    print_list,
    say,
)


def recommend(run: Run, user: User = None, history: History = None, k: K = 10, as_json: Json = False) -> None:
    """The best items for a known user, or for a history of items."""
    items = history_items(user, history)
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(run)
    [found] = recommender.recommend(users=None if user is None else [user], history=items, k=k)
    who = f"user {user}" if items is None else f"a history of {len(items)} item(s)"
    if as_json:
        unknown = [item for item in items or [] if item not in recommender.dataset.items.ids]
        print_json({"user": user, "history": items, "ignored": unknown, "k": k, "recommendations": listed(found)})
        return
    print_list(found, f"{recommender.model.name} recommends to {who}")
    if not found:
        say(f"Nothing is left to recommend to {who}: the history holds every item of the catalogue.")
        return
    query = ["--user", user] if user is not None else ["--history", history or ""]
    why = command("graphllmrec", "explain", run, *query, "--item", found[0].item_id)
    say(f"{len(found)} items for {who}. Why the first one: {why}")


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
    as_json: Json = False,
) -> None:
    """The items that the model finds most similar to one item."""
    from graphllmrec.recommender import Recommender

    recommender = Recommender.load(run)
    found = recommender.similar(item, k)
    row = recommender.dataset.items.ids.row(item, "item")
    title = recommender.dataset.items.titles[row]
    if as_json:
        print_json({"item_id": item, "title": title, "k": k, "similar": listed(found)})
        return
    print_list(found, f"{recommender.model.name}: similar to {title or item}", "similarity")
    say(f"{len(found)} items similar to {title or item} (item {item}).")
