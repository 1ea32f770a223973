"""The training loop: one place, for every model that learns by gradient.

    for every epoch: for every batch: loss -> gradient -> AdamW;  then the validation metric: keep the best weights, or
    stop when `patience` validations brought nothing better, unless a branch is about to generalise late
    (train/monitor.py). The untrained weights take part, as epoch 0.

Batches come from (seed, stage, epoch, step), so a run that is interrupted (Ctrl-C, SIGTERM) leaves a checkpoint at the
next step boundary and goes on from there to the same bytes; a run that is killed goes on from its last checkpoint. A
checkpoint holds what the stage has logged, which is logged again on resuming: the log, too, comes out the same.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.errors import Interrupted
from graphllmrec.protocol import CheckpointStore, Task
from graphllmrec.rng import At
from graphllmrec.settings import Config
from graphllmrec.train.batches import epoch_order
from graphllmrec.train.checkpoint import Progress, pack, raw_bytes, unpack
from graphllmrec.train.device import (
    Precision,
    autocast,
    load_trainable,
    resolve_device,
    trainable_parameters,
    trainable_state,
)
from graphllmrec.train.monitor import BranchMonitor

_SAVING = 0.02  # share of the time that checkpoints may take


class TrainedConfig(Config):
    """Settings of everything that is trained by gradient."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(
        0, ge=0, le=1_000_000_000, description="more epochs than `epochs` where these have fewer steps than this"
    )
    batch_size: int = Field(1024, ge=1, le=1_000_000, description="examples per step")
    learning_rate: float = Field(3e-3, gt=0, le=10, description="AdamW step size")
    schedule: Literal["constant", "cosine"] = Field("constant", description="course of the step size; cosine ends at 0")
    warmup: int = Field(0, ge=0, le=1_000_000_000, description="steps in which the step size rises from 0")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW decoupled weight decay")
    patience: int = Field(3, ge=1, le=100_000, description="stop after so many validations without a better one")
    validate_every: int = Field(1, ge=1, le=100_000, description="epochs between validations")
    device: str = Field("cpu", description='"cpu", "cuda", "cuda:1", "mps", or "auto": the fastest there is')
    precision: Precision = Field("float32", description="of the matrix products in training; bfloat16: autocast")
    accumulate: int = Field(1, ge=1, le=1_000_000, description="parts a batch is worked through in, to save memory")
    clip_norm: float = Field(0.0, ge=0, le=1e6, description="largest norm of a step's gradient; 0: as it is")


class MonitoredConfig(TrainedConfig):
    """Settings of models whose branches can be followed while they are trained (train/monitor.py)."""

    monitor_users: int = Field(
        0, ge=0, le=10_000_000, description="people by whom a detector of grokking follows each branch; 0: none does"
    )


@dataclass
class TrainingStage:
    """One thing to train: a module, its loss on a batch of example numbers, and how good it is on validation.

    `loss` and `validate` must not log: a resumed run would lack what they logged before.
    """

    name: str  # "graph": names its randomness, its log lines and its checkpoint
    module: nn.Module
    num_examples: int
    loss: Callable[[Ints, At], Tensor]  # (example numbers, where the training stands) -> scalar
    validate: Callable[[], float] | None  # higher is better; None: train to the last epoch
    config: TrainedConfig
    metric: str = "ndcg@20"
    inputs: tuple[Tensor, ...] = ()  # what the loss reads besides module, settings and clicks: text, other stages
    watch: Callable[[], dict[str, Any]] | None = None  # figures of the module to log with every epoch
    branches: BranchMonitor | None = None  # looks at single branches at every validation

    @property
    def steps(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return -(-self.num_examples // self.config.batch_size)

    @property
    def epochs(self) -> int:
        """Passes over the examples at most: enough of them for `min_steps` on small data."""
        return max(self.config.epochs, -(-self.config.min_steps // max(self.steps, 1)) if self.num_examples else 0)


def train(stage: TrainingStage, task: Task) -> float:
    """Train `stage.module` in place and leave it with its best weights. Returns the best validation metric.

    Continues from the stage's checkpoint if `task.checkpoints` has one; a finished stage is not trained again. Raises
    Interrupted on Ctrl-C or SIGTERM, after a checkpoint was written; without `task.checkpoints` the signals do what
    they always do. Raises CheckpointError for a checkpoint that is damaged or of other settings or data.
    """
    module, config = stage.module, stage.config
    module.to(resolve_device(config.device))
    optimizer = torch.optim.AdamW(
        trainable_parameters(module), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    progress, best = Progress(identity=_identity(stage, task)), _copy(module)
    saved = task.checkpoints.find(stage.name, progress.identity) if task.checkpoints is not None else None
    if saved is not None:
        progress, best = saved[0], unpack(saved[1], module, optimizer)
        _recall(stage, task, progress)
    task.logger.begin(f"train {stage.name}", stage.epochs * stage.steps)
    task.logger.advance(progress.epoch * stage.steps + progress.step)
    keeper = _Keeper(task.checkpoints, stage.name, module, optimizer)
    if saved is None and stage.validate is not None:
        best = _validate(stage, task, progress, best)
    had_finished = progress.done
    with _asked_to_stop(active=task.checkpoints is not None) as asked:
        while not progress.done and progress.epoch < stage.epochs:
            _run_epoch(stage, task, optimizer, progress, asked, keeper, best)
            best = _end_of_epoch(stage, task, progress, best)
            keeper.save_if_due(progress, best)
        if not had_finished:
            progress.done = True
            keeper.save(progress, best)
        if asked():  # during the last validation: what comes after this stage must not start
            raise Interrupted(f"stopped at the end of stage {stage.name!r}")
    if stage.validate is not None:
        load_trainable(module, best)
    module.eval()
    return progress.best


def learning_rate(config: TrainedConfig, step: int, num_steps: int) -> float:
    """Step size of step `step` (from 0) of `num_steps`, a pure function so that a resumed run takes the same steps.

    Warm-up: (step + 1) / warmup of the full size. Cosine, after the warm-up: (1 + cos(π share done)) / 2 of it
    (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one cycle down to 0).
    """
    full = config.learning_rate
    if step < config.warmup:
        return full * (step + 1) / config.warmup
    if config.schedule == "constant":
        return full
    return full * (1 + math.cos(math.pi * (step - config.warmup) / (num_steps - config.warmup))) / 2


def _identity(stage: TrainingStage, task: Task) -> str:
    """Hash of all that a stage's outcome depends on: settings, seed, start, inputs, training and validation clicks."""
    split = task.split
    about = f"{stage.name}/{task.seed}/{split.ordered}/{stage.metric}/{stage.config.model_dump_json()}"
    digest = hashlib.sha256(about.encode())
    for rows in (split.train.user, split.train.item, split.valid.user, split.valid.item):
        digest.update(np.ascontiguousarray(rows).data)
    for tensor in (*trainable_state(stage.module).values(), *stage.inputs):
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _run_epoch(
    stage: TrainingStage,
    task: Task,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    asked: Callable[[], bool],
    keeper: _Keeper,
    best: dict[str, Tensor],
) -> None:
    """The batches of one epoch, from `progress.step` on."""
    size, steps = stage.config.batch_size, stage.steps
    order = epoch_order(stage.num_examples, task.seed, stage.name, progress.epoch)
    stage.module.train()
    for start in range(progress.step * size, stage.num_examples, size):
        rows = order[start : start + size]
        rate = learning_rate(stage.config, progress.epoch * steps + progress.step, stage.epochs * steps)
        loss = _step(stage, optimizer, rows, At(task.seed, stage.name, progress.epoch, progress.step), rate)
        progress.step += 1
        progress.loss_sum += loss * len(rows)
        progress.examples += len(rows)
        task.logger.advance(1, epoch=progress.epoch + 1, loss=progress.loss_sum / progress.examples)
        if asked():
            keeper.save(progress, best)
            raise Interrupted(f"stopped in stage {stage.name!r}, epoch {progress.epoch + 1}, step {progress.step}")
        keeper.save_if_due(progress, best)


def _step(stage: TrainingStage, optimizer: torch.optim.Optimizer, rows: Ints, at: At, rate: float) -> float:
    """One step of the optimiser on the examples `rows`, in `accumulate` parts; returns their mean loss."""
    config, total = stage.config, 0.0
    optimizer.zero_grad(set_to_none=True)
    for part in np.array_split(rows, min(config.accumulate, len(rows))):
        with autocast(resolve_device(config.device), config.precision):
            loss = stage.loss(part, at)
        share = len(part) / len(rows)
        (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) * share
    if config.clip_norm:
        nn.utils.clip_grad_norm_(trainable_parameters(stage.module), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return total


def _end_of_epoch(stage: TrainingStage, task: Task, progress: Progress, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Count the epoch, validate if it is time to; returns the best weights."""
    loss = progress.loss_sum / max(progress.examples, 1)
    progress.epoch, progress.step, progress.loss_sum, progress.examples = progress.epoch + 1, 0, 0.0, 0
    due = progress.epoch % stage.config.validate_every == 0 or progress.epoch == stage.epochs
    if stage.validate is not None and due:
        return _validate(stage, task, progress, best, loss=loss)
    _log(stage, task, progress, loss=loss)
    return best


def _validate(
    stage: TrainingStage, task: Task, progress: Progress, best: dict[str, Tensor], **values: float
) -> dict[str, Tensor]:
    """Measure, log, keep the best weights (returned), and decide whether to stop."""
    assert stage.validate is not None
    stage.module.eval()
    with torch.no_grad():
        found = float(stage.validate())
    task.logger.advance(0, **{stage.metric: found})
    best = _copy(stage.module) if found > progress.best else best  # before a control moves the gate
    figures, events = _look(stage, progress)
    _log(stage, task, progress, **values, **{stage.metric: found}, **figures)
    for event in events:
        _note(stage, task, progress, "grokking", **event)
    if found > progress.best:
        progress.best, progress.best_epoch = found, progress.epoch
    elif progress.epoch - progress.best_epoch >= stage.config.patience * stage.config.validate_every:
        progress.done = not _waits(stage, task, progress)
    return best


def _look(stage: TrainingStage, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What single branches can do now, and what has happened to them."""
    if stage.branches is None:
        return {}, []
    return stage.branches.look(progress.epoch * stage.steps, stage.epochs * stage.steps)


def _waits(stage: TrainingStage, task: Task, progress: Progress) -> bool:
    """Is a branch about to generalise, or may it yet? Said once."""
    if stage.branches is None:
        return False
    reason = stage.branches.waits(progress.epoch * stage.steps, stage.epochs * stage.steps)
    if reason is None:
        return False
    if not any(entry["event"] == "waiting" and reason.items() <= entry.items() for entry in progress.log):
        _note(stage, task, progress, "waiting", **reason)
    return True


def _recall(stage: TrainingStage, task: Task, progress: Progress) -> None:
    """Log again what an earlier attempt has logged, and show its figures to whoever follows branches."""
    for entry in progress.log:
        task.logger.log(**entry)
        if stage.branches is not None and entry["event"] == "epoch":
            stage.branches.recall(entry["epoch"] * stage.steps, stage.epochs * stage.steps, entry)


def _log(stage: TrainingStage, task: Task, progress: Progress, **values: Any) -> None:
    """Log an epoch."""
    watched = stage.watch() if stage.watch is not None else {}
    _note(stage, task, progress, "epoch", **values, **watched)


def _note(stage: TrainingStage, task: Task, progress: Progress, event: str, **values: Any) -> None:
    """Log a line, and keep it for the checkpoint."""
    progress.log.append({"event": event, "stage": stage.name, "epoch": progress.epoch, **values})
    task.logger.log(**progress.log[-1])


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainable_state(module).items()}


class _Keeper:
    """Writes the checkpoints of one stage, not more often than `checkpoints.every` and _SAVING say."""

    def __init__(
        self, checkpoints: CheckpointStore | None, stage: str, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.checkpoints, self.stage, self.module, self.optimizer = checkpoints, stage, module, optimizer
        self.began = self.saved_at = time.monotonic()
        self.took = 0.0

    def save_if_due(self, progress: Progress, best: dict[str, Tensor]) -> None:
        if self.checkpoints is None:
            return
        every = self.checkpoints.every
        if time.monotonic() - self.saved_at >= (max(every, self.took / _SAVING) if every else 0):
            self.save(progress, best)

    def save(self, progress: Progress, best: dict[str, Tensor]) -> None:
        if self.checkpoints is not None:
            began = time.monotonic()
            progress.seconds += began - self.began
            self.began = began
            optimizer = None if progress.done else self.optimizer
            self.checkpoints.save(self.stage, progress, pack(self.module, best, optimizer))
            self.saved_at = time.monotonic()
            self.took = self.saved_at - began


@contextmanager
def _asked_to_stop(active: bool) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C or SIGTERM has arrived; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
