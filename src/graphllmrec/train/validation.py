"""What tuning and the training loop measure on the validation part: a model's NDCG@20, and its branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.grokking.gate_schedule import WHOLE, GateSchedule
from graphllmrec.protocol import BranchModel, Model, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.loop import MonitoredConfig, TrainingStage, train
from graphllmrec.train.monitor import BranchMonitor, MoveGate, Scorer

VALIDATION_USERS = 10_000  # ranked when a whole model is validated or fused: standard error about .0015
TUNE_USERS = 3_000  # validation users ranked when tuning: standard error of NDCG@20 about .003
Setting = TypeVar("Setting")


def tuning_users(split: Split, seed: int, limit: int = TUNE_USERS) -> Ints:
    """Up to `limit` users with a validation target, the same ones for the same seed, ascending (U,)."""
    users = np.flatnonzero(split.targets("valid").lengths)
    if len(users) <= limit:
        return users.astype(np.int64)
    return np.sort(rng(seed, "tuning-users").choice(users, limit, replace=False)).astype(np.int64)


def settle(task: Task, name: str, find: Callable[[], Setting], untuned: Setting) -> Setting:
    """The value of `name` ("ease/l2") to fit with: found on the validation part, or as the earlier fit found it.

    `untuned` where there is neither. `find` is called where there is a validation part only. The value is kept in
    `task.findings`; it must be a JSON value.
    """
    if len(task.split.valid):
        value = find()
    else:
        value = untuned if task.earlier is None else task.earlier.findings.settings.get(name, untuned)
    task.findings.settings[name] = value
    return value


class Trials:
    """Validation NDCG@20 of a model by the settings that are tried; the same settings are measured once."""

    def __init__(self, model: Model, split: Split, users: Ints, apply: Callable[..., Any]) -> None:
        """`apply` gives the model the settings that a call is made with."""
        self.model, self.split, self.users, self.apply = model, split, users, apply
        self.found: dict[tuple[Any, ...], float] = {}

    def __call__(self, *settings: Any) -> float:
        """NDCG@20 under these settings."""
        if settings not in self.found:
            self.apply(*settings)
            self.found[settings] = validation_metric(self.model, self.split, users=self.users)
        return self.found[settings]


def tune_setting(
    model: Model,
    task: Task,
    name: str,
    candidates: Sequence[Setting],
    apply: Callable[[Setting], Any],
    keep: Callable[[], Any] = lambda: None,
) -> Setting:
    """The candidate with the best NDCG@20 on validation users, the first one of equals; logged as "NAME-tuned".

    `apply` gives the model a candidate and leaves it so: the last one tried, not the best, is in the model afterwards.
    `keep` is called whenever the candidate in the model is the best so far.
    """
    trials = Trials(model, task.split, tuning_users(task.split, task.seed), apply)
    best, best_ndcg = candidates[0], float("-inf")
    for candidate in candidates:
        ndcg = trials(candidate)
        if ndcg > best_ndcg:
            best, best_ndcg = candidate, ndcg
            keep()
    tried = {str(candidate): value for (candidate,), value in trials.found.items()}
    task.logger.log(f"{name}-tuned", **{"model": model.name, name: best, "tried": tried})
    return best


def climb_setting(
    model: Model, task: Task, name: str, values: Sequence[Setting], start: Setting, trials: Callable[[Setting], float]
) -> Setting:
    """The value at which `trials` is highest going from `start` through the ascending `values`, up first, else down.

    For settings that are dear to try: it stops before the first value that is no better. Logged as "NAME-tuned".
    """
    best, tried = values.index(start), {str(start): trials(start)}
    for step in (1, -1):
        while 0 <= (place := best + step) < len(values):
            tried[str(values[place])] = ndcg = trials(values[place])
            if ndcg <= tried[str(values[best])]:
                break
            best = place
        if values[best] != start:
            break
    task.logger.log(f"{name}-tuned", **{"model": model.name, name: values[best], "tried": tried})
    return values[best]


def validator(model: Model, task: Task, export_vectors: Callable[[], Any]) -> Callable[[], float] | None:
    """Callback: export the trained vectors, return validation NDCG@20. None without a validation part."""
    if not len(task.split.valid):
        return None
    users = tuning_users(task.split, task.seed, VALIDATION_USERS)

    def validate() -> float:
        export_vectors()
        return validation_metric(model, task.split, users=users)

    return validate


def branch_monitor(
    model: Model,
    task: Task,
    config: MonitoredConfig,
    *,
    gate_schedule: GateSchedule | None = None,
    move: MoveGate | None = None,
) -> BranchMonitor | None:
    """Monitor for each branch of `model` and the fused score ("fused"); a model without branches is one branch.

    None when `config.monitor_users` is 0, or no user has a validation click, or none has two training clicks.
    """
    split = task.split
    has_clicks = len(split.valid) and (split.train.histories(split.num_users).lengths > 1).any()
    if not config.monitor_users or not has_clicks:
        return None
    branches: dict[str, Scorer] = {model.name: model.scores}
    if isinstance(model, BranchModel):
        branches = {name: partial(model.branch_scores, branch=name) for name in model.branches}
        branches[WHOLE] = model.scores
    return BranchMonitor(
        split, branches, seed=task.seed, users=config.monitor_users, learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, gate_schedule=gate_schedule, move=move,
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
    gate_schedule: GateSchedule | None = None,
    move: MoveGate | None = None,
    latest: bool = False,
) -> None:
    """Train `module` by `model.config`, then export its vectors into `model`: how most models' `fit` ends.

    After every epoch `export_vectors` writes the vectors trained so far into `model`, which is then ranked on the
    validation part and monitored by branch. The stage is named after the model by default. `inputs`: what the loss
    reads besides module, settings and clicks. `figures`: logged with every epoch. `gate_schedule` and `move`: how the
    shares of the branches are decided and set (train/monitor.py). `latest`: of equally good epochs the last one is
    kept. Raises Interrupted.
    """
    config: MonitoredConfig = model.config
    check = validator(model, task, export_vectors)
    monitor = branch_monitor(model, task, config, gate_schedule=gate_schedule, move=move)
    about = (stage or model.name, module, num_examples, loss, check, config)
    train(TrainingStage(*about, inputs=inputs, figures=figures, monitor=monitor, latest=latest), task)
    export_vectors()
