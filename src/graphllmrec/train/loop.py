"""The training loop of every model that learns by gradient.

    for every epoch:
        for every batch: loss -> gradient -> AdamW
        validation metric: keep the best weights; stop after `patience` validations without improvement,
                           unless a late event is plausible (train/monitor.py)

The untrained weights are validated too, as epoch 0.

Batches come from (seed, stage, epoch, step), so a run that is interrupted (Ctrl-C, SIGTERM) leaves a checkpoint at the
next step boundary and goes on from there to the same bytes; a run that is killed goes on from its last checkpoint. A
checkpoint contains the stage's log lines; a resumed run writes them again, so its log is identical.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.errors import Interrupted
from graphllmrec.protocol import Task
from graphllmrec.rng import At
from graphllmrec.settings import Config
from graphllmrec.train.batches import epoch_order
from graphllmrec.train.checkpoint import CheckpointWriter, Progress, raw_bytes, unpack
from graphllmrec.train.device import (
    Precision,
    autocast,
    load_trainable,
    resolve_device,
    trainable_parameters,
    trainable_state,
)
from graphllmrec.train.earlier import load_rows
from graphllmrec.train.interrupt import stop_requests
from graphllmrec.train.monitor import BranchMonitor


class TrainedConfig(Config):
    """Settings of everything that is trained by gradient."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most")
    min_steps: int = Field(
        0, ge=0, le=1_000_000_000, description="least number of steps; on small data it raises the number of epochs"
    )
    batch_size: int = Field(1024, ge=1, le=1_000_000, description="examples per step")
    learning_rate: float = Field(3e-3, gt=0, le=10, description="AdamW step size")
    schedule: Literal["constant", "cosine"] = Field("constant", description="step size schedule; cosine decays to 0")
    warmup: int = Field(0, ge=0, le=1_000_000_000, description="steps in which the step size rises from 0")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW decoupled weight decay")
    patience: int = Field(3, ge=1, le=100_000, description="stop after so many validations without a better one")
    validate_every: int = Field(1, ge=1, le=100_000, description="epochs between validations")
    device: str = Field("cpu", description='"cpu", "cuda", "cuda:1", "mps", or "auto": the fastest there is')
    precision: Precision = Field("float32", description="of the matrix products in training; bfloat16: autocast")
    accumulate: int = Field(1, ge=1, le=1_000_000, description="micro-batches per batch (gradient accumulation)")
    clip_norm: float = Field(0.0, ge=0, le=1e6, description="largest norm of a step's gradient; 0: no clipping")


class MonitoredConfig(TrainedConfig):
    """Settings of models whose branches can be monitored while they are trained (train/monitor.py)."""

    monitor_users: int = Field(
        0, ge=0, le=10_000_000, description="users in the sample for branch curves and grokking detection; 0: off"
    )


@dataclass
class TrainingStage:
    """A module, its loss on a batch of example numbers, and its validation metric.

    `loss` and `validate` must not log: a resumed run would lack what they logged before.
    """

    name: str  # "graph": key of random streams, log lines and checkpoint
    module: nn.Module
    num_examples: int
    loss: Callable[[Ints, At], Tensor]  # (example numbers, where the training stands) -> scalar
    validate: Callable[[], float] | None  # higher is better; None: train to the last epoch
    config: TrainedConfig
    metric: str = "ndcg@20"
    inputs: tuple[Tensor, ...] = ()  # other tensors the loss depends on (text, other stages); part of the identity
    figures: Callable[[], dict[str, Any]] | None = None  # of the module, logged with every epoch
    monitor: BranchMonitor | None = None  # evaluates each branch at every validation
    latest: bool = False  # of equally good validations the last one is kept, not the first

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
    Interrupted on Ctrl-C or SIGTERM, after a checkpoint was written; without `task.checkpoints` the signals keep
    their default handlers. Raises CheckpointError for a checkpoint that is damaged or of other settings or data,
    RecipeError for a device that is not there.
    """
    return _Training(stage, task).run()


def learning_rate(config: TrainedConfig, step: int, num_steps: int) -> float:
    """Step size of step `step` (from 0) of `num_steps`, a pure function so that a resumed run takes the same steps.

    Warm-up: (step + 1) / warmup of the full size. Cosine, after the warm-up: full · (1 + cos(π · progress)) / 2
    (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one cycle down to 0).
    """
    full = config.learning_rate
    if step < config.warmup:
        return full * (step + 1) / config.warmup
    if config.schedule == "constant":
        return full
    return full * (1 + math.cos(math.pi * (step - config.warmup) / (num_steps - config.warmup))) / 2


class _Training:
    """One stage on its way: module, optimiser, progress and the best weights so far."""

    def __init__(self, stage: TrainingStage, task: Task) -> None:
        self.stage, self.task, self.config, self.module = stage, task, stage.config, stage.module
        self.device = resolve_device(self.config.device)
        self.module.to(self.device)
        self.weights = trainable_parameters(self.module)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        self.progress, self.best = Progress(identity=_identity(stage, task)), _copy(self.module)
        self.num_steps = stage.epochs * stage.steps  # at most
        self.last_epoch = self._take_over()
        self.checkpoint = CheckpointWriter(task.checkpoints, stage.name, self.module, self.optimizer)

    def run(self) -> float:
        """From the checkpoint, or from the start, to the end."""
        resumed = self._resume()
        self.task.logger.begin(f"train {self.stage.name}", self.last_epoch * self.stage.steps)
        self.task.logger.advance(self._steps_done)
        if not resumed and self.stage.validate is not None:
            self._validate()
        was_done = self.progress.done
        with stop_requests(active=self.task.checkpoints is not None) as stop_requested:
            while not self.progress.done and self.progress.epoch < self.last_epoch:
                self.run_epoch(stop_requested)
                self.checkpoint.write_if_due(self.progress, self.best)
            if not was_done:
                self.progress.done = True
                self.checkpoint.write(self.progress, self.best)
            if stop_requested():  # during the last validation: do not start the next stage
                raise Interrupted(f"stopped at the end of stage {self.stage.name!r}")
        if self.stage.validate is not None:
            load_trainable(self.module, self.best)
        self.module.eval()
        self._keep_findings()
        return self.progress.best

    def _take_over(self) -> int:
        """The epoch to train to, of an earlier fit where there is no validation part, and that fit's weights.

        Weights of a stage that reads text are not taken over: those numbers are in the coordinates of the earlier text
        vectors, which are whitened over the catalogue of their time.
        """
        stage, earlier = self.stage, self.task.earlier
        known: int | None = None if earlier is None else earlier.findings.settings.get(f"{stage.name}/epochs")
        if stage.validate is not None or earlier is None or known is None:
            return stage.epochs
        weights = earlier.findings.weights.get(stage.name)
        if not earlier.warm or weights is None:
            return min(known, stage.epochs)
        load_rows(self.module, weights, earlier)
        self.progress.identity = _identity(stage, self.task)
        epochs = math.ceil(known * earlier.warm)
        self.num_steps = epochs * stage.steps
        return epochs

    def _keep_findings(self) -> None:
        """What a refit takes over: the epochs that were best, and the weights."""
        stage, findings, earlier = self.stage, self.task.findings, self.task.earlier
        if stage.validate is not None:
            findings.settings[f"{stage.name}/epochs"] = self.progress.best_epoch
        elif earlier is not None and f"{stage.name}/epochs" in earlier.findings.settings:
            findings.settings[f"{stage.name}/epochs"] = earlier.findings.settings[f"{stage.name}/epochs"]
        else:
            return
        if not stage.inputs:
            findings.weights[stage.name] = {name: tensor.cpu() for name, tensor in _copy(self.module).items()}

    def run_epoch(self, stop_requested: Callable[[], bool]) -> None:
        """The batches of one epoch, from `progress.step` on; then validation, if it is due."""
        stage, progress, size = self.stage, self.progress, self.config.batch_size
        order = epoch_order(stage.num_examples, self.task.seed, stage.name, progress.epoch)
        self.module.train()
        for start in range(progress.step * size, stage.num_examples, size):
            rows = order[start : start + size]
            loss = self._step(rows)
            progress.step += 1
            progress.loss_sum += loss * len(rows)
            progress.examples += len(rows)
            self.task.logger.advance(1, epoch=progress.epoch + 1, loss=progress.loss_sum / progress.examples)
            if stop_requested():
                self.checkpoint.write(progress, self.best)
                raise Interrupted(f"stopped in stage {stage.name!r}, epoch {progress.epoch + 1}, step {progress.step}")
            self.checkpoint.write_if_due(progress, self.best)
        self._end_epoch()

    def _step(self, rows: Ints) -> float:
        """One step of the optimiser on the examples `rows`, in `accumulate` parts; returns their mean loss."""
        at, total = At(self.task.seed, self.stage.name, self.progress.epoch, self.progress.step), 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for part in np.array_split(rows, min(self.config.accumulate, len(rows))):
            with autocast(self.device, self.config.precision):
                loss = self.stage.loss(part, at)
            share = len(part) / len(rows)
            (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * share
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self._steps_done, self.num_steps)
        self.optimizer.step()
        return total

    @property
    def _steps_done(self) -> int:
        return self.progress.epoch * self.stage.steps + self.progress.step

    def _end_epoch(self) -> None:
        """Count the epoch, validate if it is due, log."""
        progress = self.progress
        loss = progress.loss_sum / max(progress.examples, 1)
        progress.epoch, progress.step, progress.loss_sum, progress.examples = progress.epoch + 1, 0, 0.0, 0
        due = progress.epoch % self.config.validate_every == 0 or progress.epoch == self.stage.epochs
        if self.stage.validate is not None and due:
            self._validate(loss=loss)
        else:
            self._log_epoch(loss=loss)

    def _validate(self, **values: float) -> None:
        """Measure, log, keep the best weights, and decide whether to stop."""
        stage, progress = self.stage, self.progress
        assert stage.validate is not None
        self.module.eval()
        with torch.no_grad():
            found = float(stage.validate())
        self.task.logger.advance(0, **{stage.metric: found})
        better = found > progress.best or (stage.latest and found == progress.best)
        if better:  # copied before a gate schedule shifts the gate
            self.best = _copy(self.module)
        figures, events = self._measure_branches()
        self._log_epoch(**values, **{stage.metric: found}, **figures)
        for event in events:
            self._log("grokking", **event)
        if better:
            progress.best, progress.best_epoch = found, progress.epoch
        elif progress.epoch - progress.best_epoch >= self.config.patience * self.config.validate_every:
            progress.done = not self._must_wait()

    def _measure_branches(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Metrics and new events of the branches."""
        if self.stage.monitor is None:
            return {}, []
        return self.stage.monitor.look(self._steps_done, self.num_steps)

    def _must_wait(self) -> bool:
        """Is a late event under way or plausible? Logged once."""
        if self.stage.monitor is None:
            return False
        reason = self.stage.monitor.waits(self._steps_done, self.num_steps)
        if reason is None:
            return False
        if not any(entry["event"] == "waiting" and reason.items() <= entry.items() for entry in self.progress.log):
            self._log("waiting", **reason)
        return True

    def _resume(self) -> bool:
        """Load the stage's checkpoint where there is one, and write its log lines again."""
        stage, checkpoints = self.stage, self.task.checkpoints
        saved = checkpoints.find(stage.name, self.progress.identity) if checkpoints is not None else None
        if saved is None:
            return False
        self.progress, self.best = saved[0], unpack(saved[1], self.module, self.optimizer)
        for entry in self.progress.log:
            self.task.logger.log(**entry)
            if stage.monitor is not None and entry["event"] == "epoch":
                stage.monitor.recall(entry["epoch"] * stage.steps, self.num_steps, entry)
        return True

    def _log_epoch(self, **values: Any) -> None:
        figures = self.stage.figures() if self.stage.figures is not None else {}
        self._log("epoch", **values, **figures)

    def _log(self, event: str, **values: Any) -> None:
        """Log a line, and keep it for the checkpoint."""
        self.progress.log.append({"event": event, "stage": self.stage.name, "epoch": self.progress.epoch, **values})
        self.task.logger.log(**self.progress.log[-1])


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


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainable_state(module).items()}
