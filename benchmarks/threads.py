"""Threads that recommend, compare, explain and add items at once: is every answer that of one state of the catalogue?

    OMP_NUM_THREADS=1 python benchmarks/threads.py [--seconds 60] [--threads 8] [--models item-knn,sign,hybrid]

Fits on the packaged MovieLens (40-core) with small settings and random text vectors. Then all threads draw requests:
one in ten adds one to three items, the others are recommend, similar and explain, also of items just added. Afterwards
the same items are added again one call after the other to a recommender of one thread, and every answer is held against
the answers that this one gives between the catalogue sizes before and after the request. At the end catalogue, model
and the number of items added must agree. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphllmrec.data
from graphllmrec import Recommender
from graphllmrec.errors import DataError, UnknownIdError
from graphllmrec.models.registry import model_class
from graphllmrec.rng import rng

DEMO = Path(graphllmrec.data.__file__).parent / "demo"
SIGN = {"epochs": 2, "min_steps": 0, "negatives": 256, "max_history": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "sign": SIGN,
    "hybrid": {"settings": {"sign": SIGN}, "gate": {"epochs": 2, "min_steps": 0}},
}
CHECKED = 3_000  # answers per model that are asked for again


@dataclass(frozen=True)
class Answer:
    """A request, what came of it, and the sizes of the catalogue before and after it."""

    method: str
    arguments: dict[str, Any]
    result: Any
    smallest: int
    largest: int


@dataclass
class Record:
    """What one thread has done."""

    answers: list[Answer] = field(default_factory=list)
    batches: list[list[dict[str, Any]]] = field(default_factory=list)  # of items that were added, one per call
    errors: list[str] = field(default_factory=list)


def work(recommender: Recommender, thread: int, until: float, share_added: float) -> Record:
    """Draw requests until the time is over."""
    draw, record, users = rng(thread, "threads"), Record(), recommender.dataset.users.ids.to_list()
    while time.monotonic() < until:
        ids = recommender.dataset.items.ids.ids
        items = [ids[int(row)] for row in draw.integers(0, len(ids), 3)] + [ids[-1]]
        try:
            if draw.random() < share_added:
                rows = [
                    {"item_id": f"{thread}-{len(record.batches)}-{n}", "title": f"new {n}"}
                    for n in range(draw.integers(1, 4))
                ]
                recommender.add_items(rows)
                record.batches.append(rows)
                refuse(recommender, rows)
            else:
                record.answers.append(
                    ask(recommender, users[int(draw.integers(len(users)))], items, int(draw.integers(4)))
                )
        except Exception as error:
            record.errors.append(f"{type(error).__name__}: {error}")
    return record


def refuse(recommender: Recommender, rows: list[dict[str, Any]]) -> None:
    """Items that are known already must be refused, whatever the other threads do."""
    try:
        recommender.add_items([{"item_id": "never", "title": "x"}, rows[0]])
    except DataError:
        return
    raise AssertionError(f"{rows[0]['item_id']} was added twice")


def ask(recommender: Recommender, user: str, items: list[str], kind: int) -> Answer:
    """One request of the four kinds."""
    method, arguments = [
        ("recommend", {"users": [user], "k": 10, "exclude": items[:1]}),
        ("recommend", {"history": [*recommender.dataset.items.ids.of([0]), *items], "k": 10}),
        ("similar", {"item": items[-1], "k": 10}),
        ("explain", {"user": user, "item": items[-1]}),
    ][kind]
    smallest = recommender.dataset.num_items
    result = getattr(recommender, method)(**arguments)
    return Answer(method, arguments, result, smallest, recommender.dataset.num_items)


def run(recommender: Recommender, seconds: float, threads: int, share_added: float = 0.1) -> Record:
    """All threads at once; what they did together."""
    until, whole = time.monotonic() + seconds, Record()
    with ThreadPoolExecutor(threads) as pool:
        for record in pool.map(lambda thread: work(recommender, thread, until, share_added), range(threads)):
            whole.answers += record.answers
            whole.batches += record.batches
            whole.errors += record.errors
    return whole


def disagreements(before: Recommender, after: Recommender, record: Record) -> list[str]:
    """What is wrong with the catalogue at the end, and every answer that no state of the catalogue gives.

    `before`: the recommender as it was; it grows here in the order that the catalogue of `after` shows.
    """
    start, size = before.dataset.num_items, after.dataset.num_items
    found = []
    if size != start + sum(map(len, record.batches)):
        found.append(f"{size - start} items in the catalogue of {sum(map(len, record.batches))} added")
    [everything] = after.recommend(history=after.dataset.items.ids.of([0]), k=size, allow_seen=True)
    if len({entry.item_id for entry in everything}) != size:
        found.append(f"the model ranks {len(everything)} items of {size}")
    by_first = {rows[0]["item_id"]: rows for rows in record.batches}
    waiting, added = (
        sorted(record.answers, key=lambda answer: answer.smallest),
        after.dataset.items.ids.ids[start:].to_list(),
    )
    while True:
        now = before.dataset.num_items
        waiting = [answer for answer in waiting if answer.smallest > now or not same(before, answer)]
        late = [answer for answer in waiting if answer.largest <= now]
        found += [f"{answer.method} {answer.arguments} between {answer.smallest} and {now} items" for answer in late]
        waiting = [answer for answer in waiting if answer.largest > now]
        if now == size:
            return found
        if added[now - start] not in by_first:
            return [*found, f"item {added[now - start]} is in the catalogue without a call that added it"]
        before.add_items(by_first[added[now - start]])


def same(recommender: Recommender, answer: Answer) -> bool:
    """Does this recommender give the answer?"""
    try:
        return bool(getattr(recommender, answer.method)(**answer.arguments) == answer.result)
    except UnknownIdError:
        return False


def main(names: Iterable[str], seconds: float, threads: int) -> dict[str, Any]:
    out: dict[str, Any] = {"seconds": seconds, "threads": threads, "machine": platform.processor(), "models": {}}
    for name in names:
        text = {"text": {"placebo": "random"}} if model_class(name).abilities.reads_text else {}  # nothing is encoded
        recommender = Recommender.from_recipe(name, model=SETTINGS.get(name, {}), data={"k_core": 40}, **text).fit(DEMO)
        before = copy.copy(recommender)
        record = run(recommender, seconds, threads)
        kinds = Counter(answer.method for answer in record.answers)
        chosen = rng(0, "threads/checked").permutation(len(record.answers))[:CHECKED]
        record.answers = [record.answers[place] for place in np.sort(chosen)]
        wrong = disagreements(before, recommender, record)
        out["models"][name] = {
            "answers": dict(kinds),
            "items_added": sum(map(len, record.batches)),
            "errors": len(record.errors),
            "answers_checked": len(record.answers),
            "inconsistent": len(wrong),
        }
        print(name, out["models"][name], *record.errors[:3], *wrong[:3], sep="\n  ", flush=True)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--models", default="item-knn,sign,hybrid")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(main(given.models.split(","), given.seconds, given.threads)))
