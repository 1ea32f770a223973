"""Find the columns of a file by their names; an error with the columns found where one is missing.

Names are compared without case, spaces, `_` and `-`, and without RecBole's type (`user_id:token`), so `userId`,
`User ID` and `user_id:token` are all `user_id`. Where a file has several columns for one meaning, the first name in
MEANINGS is used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from graphllmrec.errors import DataError

MEANINGS: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "uid", "reviewer_id", "visitor_id", "customer_id", "customer", "client_id"),
    # Amazon reviews carry both ids; their item files are keyed by the parent
    "item_id": (
        *("item_id", "item", "iid", "movie_id", "parent_asin", "asin", "product_id", "business_id", "news_id"),
        *("article_id", "sku", "product"),
    ),
    "timestamp": (
        *("timestamp", "unix_review_time", "unix_time", "time", "ts", "datetime", "date"),
        *("event_time", "created_at", "clicked_at", "viewed_at", "bought_at", "purchased_at", "order_date"),
    ),
    "position": ("position", "pos"),
    "rating": ("rating", "overall", "stars", "score"),
    "weight": ("weight", "confidence"),
    "count": ("count", "play_count", "plays", "quantity"),
    "event": ("event", "event_type", "behavior", "behavior_type"),
    "label": ("label",),  # 1: clicked, 0 or -1: not
    "title": ("title", "item_title", "movie_title", "product_title", "name", "item_name"),
    "tag": ("tag",),
    "review": ("review", "review_text", "text", "comment"),  # the user's text about the item
    "summary": ("summary", "review_title"),  # the headline of the review
    "items": ("items", "item_id_list"),  # a session per row
}


def base_name(column: str) -> str:
    """A column name without RecBole's type: "user_id:token" -> "user_id"."""
    return column.split(":", 1)[0].strip().lstrip("\ufeff")


def is_index(column: str) -> bool:
    """Is this the name that pandas gives to the numbers of its rows?"""
    return re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", column) is not None


def _key(column: str) -> str:
    return re.sub(r"[\s_\-]", "", base_name(column)).lower()


def find_column(columns: Sequence[str], meaning: str) -> str | None:
    """The column of the file for a key of MEANINGS, or None."""
    keys = {_key(column): column for column in reversed(columns)}
    return next((keys[_key(name)] for name in MEANINGS[meaning] if _key(name) in keys), None)


def count_known(columns: Sequence[str], meanings: Iterable[str] = ("user_id", "item_id", "items")) -> int:
    """Number of `meanings` that the columns have; the separator of a text file is the one with the most."""
    return sum(find_column(columns, meaning) is not None for meaning in meanings)


def match_columns(
    columns: Sequence[str], required: Sequence[str], optional: Sequence[str], file: str
) -> dict[str, str]:
    """Meaning -> column of the file. Raises DataError, with the columns found, when a required one is missing."""
    found = {meaning: find_column(columns, meaning) for meaning in (*required, *optional)}
    for meaning in required:
        if found[meaning] is None:
            line = None if file.endswith(".parquet") or "." not in file else 1  # a table in memory has no lines
            raise DataError(f"no column '{meaning}'", file=file, line=line, hint=_missing_hint(columns, meaning))
    return {meaning: column for meaning, column in found.items() if column is not None}


def _missing_hint(columns: Sequence[str], meaning: str) -> str:
    listed = ", ".join(repr(column[:60]) for column in columns[:20])
    hint = f"columns found: {listed}; rename one of them to one of: {', '.join(MEANINGS[meaning])}"
    names = {_key(column): column for column in columns}
    close = [
        hit for name in MEANINGS[meaning] for hit in difflib.get_close_matches(_key(name), names, n=1, cutoff=0.75)
    ]
    if close:
        return f"did you mean {names[close[0]]!r}? {hint}"
    if len(columns) == 1:
        return f"only one column: is the separator a comma, tab, semicolon or |? {hint}"
    if any(re.fullmatch(r"-?\d+(\.\d+)?", column.strip()) for column in columns):
        return f"the first line looks like data; add a line with the column names. {hint}"
    return hint
