"""From scores to ranked lists: exact top-k over the whole catalogue, seen items excluded, ties broken by a fixed order.

`torch.topk` over tens of thousands of columns takes most of the time of full ranking. Here the columns of a row are
split into about sqrt(k·N) groups, the maximum of every group is taken (one pass at memory speed), and only the k + 1
groups with the largest maxima are searched. The k + 1 largest values of the row all lie in those groups, so the result
is exact, not approximate.

Two rules for equal scores:

- Lists (`top_k`, `best`), and so every reported figure: a fixed pseudo-random order of the items, the same for every
  model and every user, and unrelated to popularity, row number or relevance. A model that gives everything the same
  score therefore ranks at chance. The order of existing items does not change when items are appended.
- Tuning of fusion weights, gate fitting and monitoring (`rank_of_target`), which count better items and make no list:
  equal scores count against the target, so that a constant score is never rewarded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.errors import EvaluationError
from graphllmrec.protocol import BranchModel, Logger, Model, Queries

Floats = NDArray[np.float32]
BLOCK = 2_000_000  # scores per block: 8 MB stay in the cache between scoring and selection


def top_k(
    model: Model,
    queries: Queries,
    seen: Histories,
    k: int,
    *,
    branch: str | None = None,
    batch_size: int | None = None,
    logger: Logger | None = None,
    num_items: int | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[Ints, Floats]:
    """The k best items (B, k) of every query and their scores (B, k), best first, without the items in `seen` (B rows).

    `allowed` (num_items,) limits all lists to some items.

    Where fewer than k items remain (a small catalogue, scores of -inf), lists are padded with item -1 and score -inf.
    `branch` ranks by one branch of a BranchModel. Raises EvaluationError for NaN scores, for an unknown branch and for
    scores of other than `num_items` items where that is given; ValueError when `seen` has not one row per query.
    """
    if len(seen) != len(queries):
        raise ValueError(f"{len(seen)} rows of seen items for {len(queries)} queries")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    items = np.full((len(queries), k), -1, dtype=np.int64)
    values = np.full((len(queries), k), -np.inf, dtype=np.float32)
    start, size = 0, batch_size or 32  # the first block is small: its scores show the number of items
    while start < len(queries):
        rows = np.arange(start, min(start + size, len(queries)))
        block = Queries(queries.users[rows], queries.histories.take(rows))
        scores = _scores(model, block, branch)
        if num_items is not None and scores.shape[1] != num_items:
            raise EvaluationError(f"{model.name} scored {scores.shape[1]:,} items; the catalogue has {num_items:,}")
        if allowed is not None:
            scores = scores.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        items[rows], values[rows] = best(scores, seen.take(rows), k, name=model.name, users=block.users)
        if logger is not None:
            logger.advance(len(rows))
        start += len(rows)
        size = batch_size or int(np.clip(BLOCK // max(scores.shape[1], 1), 8, 1024))
    return items, values


@torch.no_grad()
def best(
    scores: Tensor, seen: Histories, k: int, *, name: str = "the model", users: Ints | None = None
) -> tuple[Ints, Floats]:
    """The k best columns (B, k) of a block of scores (B, num_items), as `top_k` defines them; `scores` stays as it was.

    `name` and `users` (B,) only serve the error message for NaN scores.
    """
    scores = scores if scores.is_contiguous() else scores.contiguous()
    num_items = scores.shape[1]
    masked = torch.from_numpy(seen.row_of_entry * num_items + seen.items).to(scores.device)  # (nnz,)
    flat = scores.view(-1)
    before = flat[masked]  # the tensor may be the model's own cache: overwritten values are written back
    flat[masked] = -torch.inf
    try:
        values, items = _largest(scores, min(k + 1, num_items))
        unsure = torch.isnan(values).any(1)
        if bool(unsure.any()):
            row = int(unsure.nonzero()[0, 0])
            user = "" if users is None else f" for user row {int(users[row])}"
            raise EvaluationError(f"{name} returned NaN scores{user}; a ranking of them would mean nothing")
        values, items = _settle_ties(scores, values, items, min(k, num_items))
    finally:
        flat[masked] = before
    items[values == -torch.inf] = -1
    pad = (0, k - items.shape[1])
    items, values = (
        torch.nn.functional.pad(items, pad, value=-1),
        torch.nn.functional.pad(values, pad, value=-torch.inf),
    )
    return items.cpu().numpy(), values.float().cpu().numpy()


def rank_of_target(scores: Tensor, target: Tensor | float, rivals: Tensor | None = None) -> Tensor:
    """Rank (n,), 1 = first, of one target per row among scores (n, C); an equal score counts against the target.

    `target`: its own score (n, 1), or one number for all rows. `rivals` (n, C) bool: which columns are other items; by
    default all but one, the target's own column.

    >>> rank_of_target(torch.tensor([[0.3, 0.9, 0.3]]), torch.tensor([[0.3]]))
    tensor([3])
    """
    at_least = scores >= target
    return at_least.sum(1) if rivals is None else (at_least & rivals).sum(1) + 1


def rank_targets(lists: Ints, targets: Histories) -> Ints:
    """Place (nnz,) of every target (U rows) in its user's row of `lists` (U, k): 1 = first, 0 = not in the list."""
    width = max(int(lists.max(initial=0)), int(targets.items.max(initial=0))) + 1
    rows = np.arange(len(lists), dtype=np.int64)[:, None]
    keys = np.where(lists >= 0, rows * width + lists, -1).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = targets.row_of_entry * width + targets.items
    found = order[np.searchsorted(keys, wanted, sorter=order).clip(max=max(len(keys) - 1, 0))]
    return np.where(keys[found] == wanted, found % lists.shape[1] + 1, 0)


def _scores(model: Model, queries: Queries, branch: str | None) -> Tensor:
    """Scores (B, num_items) of the model or of one of its branches, without gradients."""
    with torch.no_grad():
        if branch is None:
            scores = model.scores(queries)
        elif isinstance(model, BranchModel) and branch in model.branches:
            scores = model.branch_scores(queries, branch)
        else:
            known = ", ".join(model.branches) if isinstance(model, BranchModel) else "none"
            raise EvaluationError(f"{model.name} has no branch {branch!r} that can be ranked alone (branches: {known})")
    if scores.ndim != 2 or len(scores) != len(queries):
        raise EvaluationError(f"{model.name} returned scores of shape {tuple(scores.shape)} for {len(queries)} queries")
    return scores.detach()


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of every row and their columns, both (B, k), largest first; NaN counts as the largest."""
    num_rows, num_items = scores.shape
    num_groups = _num_groups(num_items, k)
    depth = num_items // max(num_groups, 1)
    if depth < 8:  # few columns: no faster
        return scores.topk(k, dim=1)
    whole = depth * num_groups  # group g = columns g, g + num_groups, …; the few columns from `whole` on have no group
    shape, stride = (num_rows, depth, num_groups), (num_items, num_groups, 1)
    dealt = scores.as_strided(shape, stride, scores.storage_offset())
    groups = dealt.amax(1).topk(k, dim=1, sorted=False).indices  # (B, k)
    members = dealt.gather(2, groups[:, None, :].expand(-1, depth, -1)).flatten(1)  # (B, depth * k)
    values, places = torch.cat([members, scores[:, whole:]], dim=1).topk(k, dim=1)
    from_group = places // k * num_groups + groups.gather(1, places % k)
    return values, torch.where(places < depth * k, from_group, places - depth * k + whole)


@lru_cache(maxsize=16)
def _num_groups(num_items: int, k: int) -> int:
    """Number of groups: near sqrt(k·N), where both passes look at equally many values, and leaving few columns over."""
    ideal = (k * num_items) ** 0.5
    return min(range(int(0.9 * ideal), int(1.1 * ideal) + 1), key=lambda groups: num_items % max(groups, 1))


def _settle_ties(scores: Tensor, values: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k columns of a (B, k or k + 1) selection, with equal scores put into the fixed item order."""
    order = _tie_order(scores.shape[1]).to(scores.device)
    if values.shape[1] > k:  # is the k-th value also the value of an item that was not chosen?
        rows = ((values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)).nonzero()[:, 0]
        values, items = values[:, :k].clone(), items[:, :k].clone()
        if len(rows):
            last = values[rows, k - 1 :]  # (R, 1)
            priority = torch.where(scores[rows] == last, -order, -torch.inf)  # (R, num_items), all finite ones distinct
            chosen = _largest(priority, k)[1]
            above = (values[rows] > last).sum(1, keepdim=True)  # how many are surely in the list
            place = torch.arange(k, device=scores.device)
            fill = chosen.gather(1, (place - above).clamp(min=0))
            items[rows] = torch.where(place < above, items[rows], fill)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    if len(tied):
        first = order[items[tied]].argsort(1)
        second = values[tied].gather(1, first).argsort(dim=1, descending=True, stable=True)
        items[tied] = items[tied].gather(1, first.gather(1, second))
    return values, items


@lru_cache(maxsize=4)
def _tie_order(num_items: int) -> Tensor:
    """Place of every item in the fixed pseudo-random order (num_items,) float64: rank of SplitMix64(row number)."""
    with np.errstate(over="ignore"):
        mixed = (np.arange(num_items, dtype=np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    place = np.empty(num_items, dtype=np.float64)
    place[np.argsort(mixed)] = np.arange(num_items)
    return torch.from_numpy(place)
