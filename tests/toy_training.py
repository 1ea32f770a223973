"""A linear regression of twenty examples: a training that takes milliseconds, to be stopped, killed and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from graphllmrec.protocol import SilentLogger, Task
from graphllmrec.rng import At, torch_rng
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.loop import TrainedConfig, TrainingStage, train
from tiny import SPLIT

EXAMPLES, STEPS, EPOCHS = 20, 4, 5  # 4 batches per epoch, the last one smaller
CONFIG = TrainedConfig(epochs=EPOCHS, batch_size=6, learning_rate=0.05, patience=EPOCHS)
INPUT = torch.randn(EXAMPLES, 3, generator=torch_rng(0, "toy-input"))
OUTPUT = INPUT @ torch.tensor([1.0, -2.0, 0.5]) + 0.1


class Toy(nn.Module):
    """Linear regression, with a buffer that must travel too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))


class Notes(SilentLogger):
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.steps = 0

    def log(self, event: str, **values: Any) -> None:
        self.logged.append({"event": event, **values})

    def advance(self, steps: int = 1, **values: float | str) -> None:
        self.steps += steps


@dataclass
class Run:
    """One attempt at training the toy; `at_step` and `at_validation` are called with their running number, from 1."""

    config: TrainedConfig = CONFIG
    folder: Path | None = None
    every: float = 30.0
    seed: int = 0
    at_step: Callable[[int], None] = lambda number: None
    at_validation: Callable[[int], None] = lambda number: None
    metric: Callable[[Toy], float] | None = lambda toy: -float(((INPUT @ toy.weight + toy.bias - OUTPUT) ** 2).mean())
    notes: Notes = field(default_factory=Notes)
    module: Toy = field(default_factory=Toy)
    steps: int = 0
    validations: int = 0
    latest: bool = False

    def loss(self, rows: np.ndarray, at: At) -> torch.Tensor:
        self.steps += 1
        self.at_step(self.steps)
        noise = torch.randn(len(rows), generator=at.torch_rng("noise"))
        self.module.seen += len(rows)
        found = INPUT[rows] @ self.module.weight + self.module.bias
        return ((found + 0.1 * noise - OUTPUT[rows]) ** 2).mean()

    def validate(self) -> float:
        self.validations += 1
        self.at_validation(self.validations)
        assert self.metric is not None
        return self.metric(self.module)

    def train(self) -> float:
        check = self.validate if self.metric is not None else None
        stage = TrainingStage(
            "toy", self.module, EXAMPLES, self.loss, check, self.config, metric="fit", latest=self.latest
        )
        checkpoints = Checkpoints(self.folder, every=self.every) if self.folder is not None else None
        return train(stage, Task(SPLIT, None, self.seed, self.notes, checkpoints))

    @property
    def bytes(self) -> bytes:
        return save(dict(self.module.state_dict()))


def send(number: int, at: int) -> Callable[[int], None]:
    """Sends this very process a signal at the `at`-th call."""
    return lambda call: os.kill(os.getpid(), number) if call == at else None
