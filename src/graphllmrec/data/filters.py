"""Remove interactions outside the k-core; the items of the items table stay candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.tables import Dataset, IdMap, Interactions
from graphllmrec.errors import DataError


def k_core(interactions: Interactions, num_users: int, num_items: int, k: int) -> NDArray[np.bool_]:
    """Mask (n,) of the largest set of interactions in which every user and every item has at least `k` of them.

    Expects distinct (user, item) pairs. The k-core of a graph is unique (Seidman 1983), whatever the order of removal.
    """
    keep = np.ones(len(interactions), dtype=bool)
    while True:
        users = np.bincount(interactions.user[keep], minlength=num_users)
        items = np.bincount(interactions.item[keep], minlength=num_items)
        stays = keep & (users[interactions.user] >= k) & (items[interactions.item] >= k)
        if stays.sum() == keep.sum():
            return keep
        keep = stays


def k_core_dataset(dataset: Dataset, k: int, listed: pl.Series) -> Dataset:
    """The dataset without interactions and users outside the k-core. Raises DataError if none are left.

    Items of the items table, whose ids are `listed`, stay in the catalogue: they are candidates without clicks. Which
    items have enough clicks is known afterwards only, so that a ranking of these alone would be easier than a real one.
    """
    keep = k_core(dataset.interactions, dataset.num_users, dataset.num_items, k)
    if not keep.any():
        raise DataError(f"the {k}-core is empty", file=dataset.source, hint="choose a smaller k_core")
    rest = dataset.interactions.where(keep)
    users = np.bincount(rest.user, minlength=dataset.num_users) > 0
    inside = np.bincount(rest.item, minlength=dataset.num_items) > 0
    items = inside | dataset.items.ids.ids.is_in(listed.implode()).to_numpy()
    unclicked = int((items & ~inside).sum())
    note = f"{k}-core: {int((~users).sum()):,} users and {int((~items).sum()):,} items left out"
    if unclicked:
        note += f"; {unclicked:,} items of the items table outside of it stay, without clicks"
    return replace(
        dataset,
        users=IdMap(dataset.users.ids.filter(pl.Series(users))),
        items=dataset.items.filter(items),
        interactions=replace(rest, user=(np.cumsum(users) - 1)[rest.user], item=(np.cumsum(items) - 1)[rest.item]),
        notes=(*dataset.notes, note),
    )
