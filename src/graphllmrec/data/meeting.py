"""Do the ids of the interactions meet those of the items table? If few do: what is different in them."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from graphllmrec.data.tables import Dataset
from graphllmrec.errors import DataError

FEW = 0.5  # of the clicked items; fewer in the items table are worth a note
EXAMPLES = 3
HINT = "ids are compared letter by letter; write them the same way in both tables"

DIFFERENCES: tuple[tuple[str, Callable[[pl.Expr], pl.Expr]], ...] = (  # what differs; ids are equal without it
    ("zeros in front", lambda ids: ids.str.replace(r"^0+(\w)", "${1}")),
    ("upper and lower case", lambda ids: ids.str.to_lowercase()),
    ("quotes, brackets or spaces", lambda ids: ids.str.replace_all(r"[\s\"'`\[\](){}<>]", "")),
    ("hyphens, underscores or other marks", lambda ids: ids.str.replace_all(r"[^\p{L}\p{N}]", "").str.to_lowercase()),
    ("what follows a separator", lambda ids: ids.str.replace(r"[-_:/.#@|][^-_:/.#@|]*$", "")),
    ("what stands before a separator", lambda ids: ids.str.replace(r"^.*[-_:/.#@|]", "")),
    ("letters around the number", lambda ids: ids.str.replace_all(r"^\D*0*(\d+)\D*$", "${1}")),
)


def unmet_ids(clicked: pl.Series, known: pl.Series, file: str) -> tuple[list[str], bool]:
    """A note, or none, on clicked ids (n,) that are not among the `known` ids (m,) of the items table `file`.

    And whether the tables do not meet at all: none of several clicked items is in the items table.
    """
    found = clicked.is_in(known.implode())
    unmet = clicked.filter(~found)
    if not len(unmet):
        return [], False
    what, pairs = _difference(unmet, known)
    if not found.any() and len(clicked) > 1:  # one click proves nothing
        seen = f"clicked are {_listed(clicked)}; the table has {_listed(known) or 'no rows'}"
        differ = f"; they differ in {what}" if what else ""
        return [f"{file}: no clicked item is in this table: {seen}{differ}. {HINT}"], True
    if len(unmet) <= (1 - FEW) * len(clicked) and not what:
        return [], False
    note = f"{file}: {len(unmet):,} of {len(clicked):,} clicked items are not in the table, e.g. "
    if not what:
        return [note + _listed(unmet)], False
    examples = ", ".join(f"{mine!r} (the table has {theirs!r})" for mine, theirs in pairs)
    return [f"{note}{examples}; they differ in {what}, so these are different items"], False


def require_meeting(dataset: Dataset) -> None:
    """Raise DataError for a dataset none of whose clicked items is in its items table: nothing can be learned of it."""
    if dataset.apart:
        raise DataError(dataset.apart)


def _difference(unmet: pl.Series, known: pl.Series) -> tuple[str, list[tuple[str, str]]]:
    """What separates most unmet ids from known ones, with examples (unmet, known); ("", []) where nothing does."""
    best: tuple[str, list[tuple[str, str]]] = ("", [])
    most = 0
    for what, plain in DIFFERENCES:
        mine, theirs = (
            pl.select(id=ids).with_columns(plain=plain(pl.col("id"))).filter(pl.col("plain") != "")
            for ids in (unmet, known)
        )
        met = mine.join(theirs.unique("plain", keep="first", maintain_order=True), on="plain", maintain_order="left")
        if len(met) > most:
            most, best = len(met), (what, list(met.select("id", "id_right").head(EXAMPLES).iter_rows()))
    return best


def _listed(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.head(EXAMPLES).to_list()))
