"""Weights of an earlier fit in a module for other data: users and items are found by id, new ones start anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.protocol import Earlier
from graphllmrec.train.device import trainable_state


@torch.no_grad()
def load_rows(module: nn.Module, weights: Mapping[str, Tensor], earlier: Earlier) -> None:
    """Copy earlier trained `weights` into `module`; rows of users and items to where they are now.

    A table with a row per user or item is known by its length, and by "user" in its name where the lengths are equal.
    Rows of new users and items, and tensors of another shape, stay as they are.
    """
    for name, now in trainable_state(module).items():
        then = weights.get(name)
        if then is None or then.shape[1:] != now.shape[1:]:
            continue
        rows = _rows(name, then, now, earlier)
        if rows is not None:
            known = np.flatnonzero(rows >= 0)
            now[torch.from_numpy(known)] = then[torch.from_numpy(rows[known])].to(now)
        elif then.shape == now.shape:
            now.copy_(then)


def _rows(name: str, then: Tensor, now: Tensor, earlier: Earlier) -> Ints | None:
    """Row of `then` for every row of `now`, -1 for a new one; None where it is no table of users or items."""
    if not now.ndim:
        return None
    lengths = (len(then), len(now))
    of_users = lengths == (earlier.findings.num_users, len(earlier.users))
    of_items = lengths == (earlier.findings.num_items, len(earlier.items))
    if of_users and (not of_items or "user" in name):
        return earlier.users
    return earlier.items if of_items else None
