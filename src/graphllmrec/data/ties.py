"""An order that the rows of a file do not decide: equal times by a fixed hash of the ids.

Many tables hold several interactions of a user at one time (a basket, a day, an import). Which of them is the newest is
then unknown, but leave-last-out has to choose one as the target. The order of rows in the file must not: files sorted
by item, or by popularity, give other figures for the same clicks.

    hash(u, i) = mix(blake2b(u) ^ rotate(blake2b(i)))     of the id strings; 64 bits, the same on every machine

mix is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.tables import Interactions, sort_key

Ties = Literal["hash", "file"]
Hashes = NDArray[np.uint64]


def break_ties(rows: Interactions, users: pl.Series, items: pl.Series) -> Interactions:
    """Sorted interactions with those of one user and time sorted by the hash of the ids (by row number).

    Repeats of one pair at one time are sorted by what else they hold, so that the first is always the same.
    """
    key = sort_key(rows.user, rows.order)
    same = key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if not len(tied):
        return rows
    hashes = pair_hashes(hash_ids(users)[rows.user[tied]], hash_ids(items)[rows.item[tied]])
    few = rows.take(tied)
    columns = {"key": key[tied], "hash": hashes, "rating": few.rating, "weight": few.weight, "review": few.review}
    frame = pl.DataFrame({name: values for name, values in columns.items() if values is not None})
    place = np.arange(len(rows), dtype=np.int64)
    place[tied] = tied[frame.select(pl.arg_sort_by(frame.columns, nulls_last=True, maintain_order=True)).to_series()]
    return rows.take(place)


def hash_ids(ids: pl.Series) -> Hashes:
    """64-bit BLAKE2b hash of every id (n,)."""
    digests = b"".join(hashlib.blake2b(value.encode(), digest_size=8).digest() for value in ids.to_list())
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def pair_hashes(users: Hashes, items: Hashes) -> Hashes:
    """One hash per pair (n,) of the hashes of its two ids."""
    mixed = users ^ ((items << np.uint64(32)) | (items >> np.uint64(32)))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def tied_users(interactions: Interactions) -> float:
    """Share of the users with two or more interactions whose newest two have the same time; 0 without any order."""
    if interactions.order is None or not len(interactions):
        return 0.0
    last = np.flatnonzero(np.diff(interactions.user, append=-1))  # rows are sorted by (user, order)
    several = last[(last > 0) & (interactions.user[last - 1] == interactions.user[last])]
    tied = interactions.order[several] == interactions.order[several - 1]
    return float(tied.mean()) if len(tied) else 0.0
