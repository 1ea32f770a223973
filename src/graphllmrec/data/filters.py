"""Remove interactions outside the k-core."""

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


def k_core_dataset(dataset: Dataset, k: int) -> Dataset:
    """The dataset without users and items outside the k-core. Raises DataError if none are left."""
    keep = k_core(dataset.interactions, dataset.num_users, dataset.num_items, k)
    if not keep.any():
        raise DataError(f"the {k}-core is empty", file=dataset.source, hint="choose a smaller k_core")
    rest = dataset.interactions.where(keep)
    users = np.bincount(rest.user, minlength=dataset.num_users) > 0
    items = np.bincount(rest.item, minlength=dataset.num_items) > 0
    note = f"{k}-core: {int((~users).sum()):,} users and {int((~items).sum()):,} items left out"
    return replace(
        dataset,
        users=IdMap(dataset.users.ids.filter(pl.Series(users))),
        items=dataset.items.filter(items),
        interactions=replace(rest, user=(np.cumsum(users) - 1)[rest.user], item=(np.cumsum(items) - 1)[rest.item]),
        notes=(*dataset.notes, note),
    )
