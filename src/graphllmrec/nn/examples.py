"""What models train on. Examples have numbers, and a batch is a function of these numbers and of where training stands.

    NextClicks      history -> the item clicked next: one example per click
    Places          the same for all clicks of a few users at once
    UserClicks      a user with all clicks: one example per user
    Beginnings      a user with the first clicks, as many as are drawn: one example per user
    UnclickedItems  negatives: for each user of a batch an item that this user has not clicked (BPR)
    uniform_items   negatives: items drawn uniformly, for all examples of a batch

A single click (user, item) needs no class: it is a row of `Split.train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.rng import rng


def uniform_items(size: int, num_items: int, seed: int, purpose: str, epoch: int, step: int) -> Ints:
    """`size` item rows (size,), drawn uniformly with repeats; a function of (seed, purpose, epoch, step)."""
    return rng(seed, f"{purpose}/uniform-items", epoch, step).integers(0, num_items, size).astype(np.int64)


class UnclickedItems:
    """Draws, for each user of a batch, an item that this user has not clicked: the negatives of BPR."""

    def __init__(self, known: Histories, num_items: int) -> None:
        self.num_items = num_items
        keys = np.unique(known.row_of_entry * num_items + known.items)  # of (user, item), sorted; a repeat counts once
        self.full = np.bincount(keys // num_items, minlength=len(known)) >= num_items  # (num_users,) nothing to draw
        self.clicked = np.append(keys, len(known) * num_items)  # ends with a key of no user: every search lands on one

    def draw(self, users: Ints, seed: int, purpose: str, epoch: int, step: int) -> Ints:
        """One unclicked item per user (B,), uniform over the unclicked; any item for a user who clicked everything."""
        random = rng(seed, f"{purpose}/unclicked", epoch, step)
        items = random.integers(0, self.num_items, len(users)).astype(np.int64)
        again = np.flatnonzero(self._is_clicked(users, items))
        while len(again):
            items[again] = random.integers(0, self.num_items, len(again))
            again = again[self._is_clicked(users[again], items[again])]
        return items

    def _is_clicked(self, users: Ints, items: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        keys = users * self.num_items + items
        place = np.searchsorted(self.clicked, keys)
        found: np.ndarray[tuple[int], np.dtype[np.bool_]] = (self.clicked[place] == keys) & ~self.full[users]
        return found


class UserClicks:
    """Training examples "user -> all clicks of this user", one per user with a click."""

    def __init__(self, known: Histories, weight: NDArray[np.float32] | None = None) -> None:
        """`weight` (nnz,) of the clicks; None: all count the same."""
        self.known, self.weight = known, weight
        self.user = np.flatnonzero(known.lengths)  # (num_examples,)

    def __len__(self) -> int:
        return len(self.user)

    def clicks(self, examples: Ints) -> Histories:
        """The clicks (B rows) of these examples."""
        return self.known.take(self.user[examples])

    def weights(self, examples: Ints) -> NDArray[np.float32] | None:
        """The weights (n,) of `clicks(examples)`; None where all count the same."""
        if self.weight is None:
            return None
        entries = Histories(self.known.indptr, np.arange(len(self.known.items), dtype=np.int64))
        return self.weight[entries.take(self.user[examples]).items]


class NextClicks:
    """Training examples "history -> clicked item", one per click whose user has another click to tell it from.

    With an order the history of a click is what came before it (the newest `max_history`); without one it is all other
    clicks of the user, so that the target never stands in its own history.
    """

    def __init__(self, known: Histories, ordered: bool, max_history: int) -> None:
        place = np.arange(len(known.items), dtype=np.int64) - known.indptr[:-1][known.row_of_entry]
        usable = place > 0 if ordered else known.lengths[known.row_of_entry] > 1
        self.known, self.ordered, self.max_history = known, ordered, max_history
        self.entry = np.flatnonzero(usable)  # (num_examples,) where the target stands in known.items
        self.user = known.row_of_entry[self.entry]
        self.target = known.items[self.entry]

    def __len__(self) -> int:
        return len(self.entry)

    def histories(self, examples: Ints) -> Histories:
        """The histories (B rows) of these examples."""
        entry, user = self.entry[examples], self.user[examples]
        if self.ordered:
            start = np.maximum(self.known.indptr[user], entry - self.max_history)
            return _slices(self.known.items, start, entry)
        everything = self.known.take(user)
        keep = everything.items != np.repeat(self.target[examples], everything.lengths)
        kept = np.concatenate([[0], np.cumsum(keep)])[everything.indptr]
        return Histories(kept.astype(np.int64), everything.items[keep])


class Beginnings:
    """Histories as they were at some time: the first clicks of a user, or without an order any of them."""

    def __init__(self, known: Histories, ordered: bool, max_history: int) -> None:
        self.known, self.ordered, self.max_history = known, ordered, max_history
        self.user = np.flatnonzero(known.lengths)  # (num_examples,) users with a click

    def __len__(self) -> int:
        return len(self.user)

    def draw(self, examples: Ints, random: np.random.Generator) -> Histories:
        """A history (B rows) of 1 to all clicks of each example, of which the newest `max_history` are kept."""
        clicks = self.known.take(self.user[examples])
        size = 1 + (random.random(len(clicks)) * clicks.lengths).astype(np.int64)
        items, start = clicks.items, clicks.indptr[:-1]
        if not self.ordered:
            items = items[np.lexsort((random.random(len(items)), clicks.row_of_entry))]
        return _slices(items, start + np.maximum(size - self.max_history, 0), start + size)


@dataclass(frozen=True)
class Places:
    """All clicks of B users at once, each with the user's other clicks as its history: before it, or all without order.

    What looks from click to click is done in a padded table (B, longest), because rows are short.
    """

    clicks: Histories  # B rows: clicks of each user, oldest first
    ordered: bool

    @staticmethod
    def of(clicks: Histories, ordered: bool, max_history: int, random: np.random.Generator | None = None) -> Places:
        """From the whole histories of B users. Of more than `max_history` + 1 clicks the newest so many are kept.

        With `random`: a stretch of so many, wherever it begins; without an order, any of them.
        """
        limit = max_history + 1
        kept = np.minimum(clicks.lengths, limit)
        row = clicks.row_of_entry
        if random is None:
            keep = clicks.steps_back < limit
        elif ordered:
            first = clicks.indptr[:-1] + random.integers(0, clicks.lengths - kept + 1)  # (B,)
            since = np.arange(len(row)) - first[row]
            keep = (since >= 0) & (since < limit)
        else:
            keep = np.empty(len(row), dtype=bool)
            shuffled = np.lexsort((random.random(len(row)), row))  # entries, row by row
            keep[shuffled] = np.arange(len(row)) - clicks.indptr[:-1][row] < limit
        indptr = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return Places(Histories(indptr, clicks.items[keep]), ordered)

    @cached_property
    def position(self) -> Ints:
        """Number of the user's clicks before each click (n,)."""
        clicks = self.clicks
        return np.arange(len(clicks.items), dtype=np.int64) - clicks.indptr[:-1][clicks.row_of_entry]

    @cached_property
    def target(self) -> Ints:
        """Which clicks (T,) have a history, and so can be learned from."""
        others = self.position if self.ordered else self.clicks.lengths[self.clicks.row_of_entry] - 1
        return np.flatnonzero(others > 0).astype(np.int64)

    def weighted(self, vectors: Tensor, decay: float) -> Tensor:
        """Sum (n, d) over each click's history of decay^(steps back - 1) · vectors (n, d); without an order of all."""
        rows, longest = len(self.clicks), int(self.clicks.lengths.max(initial=1))
        device = vectors.device
        place = torch.from_numpy(self.clicks.row_of_entry * longest + self.position).to(device)
        padded = vectors.new_zeros(rows * longest, vectors.shape[1]).index_copy(0, place, vectors)
        step = torch.arange(longest, device=device)
        back = step[:, None] - step[None, :]  # (longest, longest) steps back from row to column; < 0: the future
        if self.ordered:
            weights = torch.where(back > 0, torch.tensor(decay, device=device).pow((back - 1).clamp_min(0)), 0.0)
        else:
            weights = (back != 0).float()
        summed = weights @ padded.view(rows, longest, vectors.shape[1])  # (B, longest, d)
        return summed.flatten(0, 1).index_select(0, place)


def _slices(items: Ints, start: Ints, stop: Ints) -> Histories:
    """Histories made of items[start[b]:stop[b]]."""
    lengths = stop - start
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(indptr, items[np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], lengths)])
