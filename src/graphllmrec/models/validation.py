"""What the training loop asks of a model after an epoch: how it ranks, and how its branches do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from graphllmrec.fuse.control import WHOLE, Control
from graphllmrec.models.base import BranchModel, Model, Task
from graphllmrec.models.item_to_item import VALIDATION_USERS, tuning_users
from graphllmrec.train.branches import BranchWatch, Move, Scorer
from graphllmrec.train.loop import WatchedConfig


def validation_of(model: Model, task: Task, take_over: Callable[[], Any]) -> Callable[[], float] | None:
    """NDCG@20 of `model` on validation people, asked after `take_over` made it what was trained; None without such."""
    from graphllmrec.evaluate import validation_metric  # evaluate imports models.base

    if not len(task.split.valid):
        return None
    users = tuning_users(task.split, task.seed, VALIDATION_USERS)

    def validate() -> float:
        take_over()
        return validation_metric(model, task.split, users=users)

    return validate


def watch_of(
    model: Model, task: Task, config: WatchedConfig, *, control: Control | None = None, move: Move | None = None
) -> BranchWatch | None:
    """Whoever follows the branches of `model` and the whole, as "fused"; a model of one piece is one branch.

    None when `config.watch_users` is 0, or nobody has a validation click or two training clicks.
    """
    split = task.split
    if not config.watch_users or not len(split.valid) or not (split.train.histories(split.num_users).lengths > 1).any():
        return None
    branches: dict[str, Scorer] = {model.name: model.scores}
    if isinstance(model, BranchModel):
        branches = {name: partial(model.branch_scores, branch=name) for name in model.branches}
        branches[WHOLE] = model.scores
    return BranchWatch(
        split, branches, seed=task.seed, users=config.watch_users, learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, control=control, move=move,
    )  # fmt: skip
