"""What the training loop asks of a model after an epoch: how it ranks, and how its branches do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.grokking.gate_schedule import WHOLE, Control
from graphllmrec.protocol import BranchModel, Model, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.loop import MonitoredConfig, TrainingStage, train
from graphllmrec.train.monitor import BranchMonitor, Move, Scorer

VALIDATION_USERS = 10_000  # ranked when a whole model is validated or fused: standard error about .0015
TUNE_USERS = 3_000  # validation users looked at when tuning: standard error of NDCG@20 about .003


def tuning_users(split: Split, seed: int, limit: int = TUNE_USERS) -> Ints:
    """Up to `limit` users with a validation target, the same ones for the same seed, ascending (U,)."""
    users = np.flatnonzero(split.targets("valid").lengths)
    if len(users) <= limit:
        return users.astype(np.int64)
    return np.sort(rng(seed, "tuning-users").choice(users, limit, replace=False)).astype(np.int64)


def validator(model: Model, task: Task, export_vectors: Callable[[], Any]) -> Callable[[], float] | None:
    """NDCG@20 of `model` on validation people, asked after `export_vectors` made it what was trained; None without such."""
    if not len(task.split.valid):
        return None
    users = tuning_users(task.split, task.seed, VALIDATION_USERS)

    def validate() -> float:
        export_vectors()
        return validation_metric(model, task.split, users=users)

    return validate


def branch_monitor(
    model: Model, task: Task, config: MonitoredConfig, *, control: Control | None = None, move: Move | None = None
) -> BranchMonitor | None:
    """Whoever follows the branches of `model` and the whole, as "fused"; a model of one piece is one branch.

    None when `config.monitor_users` is 0, or nobody has a validation click or two training clicks.
    """
    split = task.split
    if (
        not config.monitor_users
        or not len(split.valid)
        or not (split.train.histories(split.num_users).lengths > 1).any()
    ):
        return None
    branches: dict[str, Scorer] = {model.name: model.scores}
    if isinstance(model, BranchModel):
        branches = {name: partial(model.branch_scores, branch=name) for name in model.branches}
        branches[WHOLE] = model.scores
    return BranchMonitor(
        split, branches, seed=task.seed, users=config.monitor_users, learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, control=control, move=move,
    )  # fmt: skip


def train_model(
    model: Model,
    task: Task,
    module: nn.Module,
    num_examples: int,
    loss: Callable[[Ints, At], Tensor],
    export_vectors: Callable[[], Any],
    *,
    stage: str | None = None,
    inputs: tuple[Tensor, ...] = (),
    figures: Callable[[], dict[str, Any]] | None = None,
    control: Control | None = None,
    move: Move | None = None,
) -> None:
    """Train `module` and leave `model` with what it exports: what most models' `fit` ends with.

    After every epoch `export_vectors` makes `model` what was trained so far, which is then ranked on validation and
    its branches followed; settings are `model.config`, the stage is named after the model by default. `inputs`: what
    the loss reads besides module, settings and clicks. `figures`: to log with every epoch. `control` and `move`:
    what shifts the weights of the branches, and how (train/monitor.py). Raises Interrupted.
    """
    config: MonitoredConfig = model.config
    check = validator(model, task, export_vectors)
    monitor = branch_monitor(model, task, config, control=control, move=move)
    about = (stage or model.name, module, num_examples, loss, check, config)
    train(TrainingStage(*about, inputs=inputs, figures=figures, monitor=monitor), task)
    export_vectors()
