"""A model's training stage without the training: one step at known weights, held against its equation in loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import Dense, slope
from graphllmrec.data.tables import Ints
from graphllmrec.models.registry import build
from graphllmrec.protocol import Task
from graphllmrec.rng import At, rng
from graphllmrec.train import validation
from graphllmrec.train.loop import TrainingStage

Weights = dict[str, Dense]


def staged(
    monkeypatch: pytest.MonkeyPatch, task: Task, name: str, seed: int, **settings: Any
) -> tuple[Any, TrainingStage, Weights]:
    """The model `name` served from random weights, its training stage, and those weights in float64."""
    kept: list[TrainingStage] = []

    def instead_of_training(stage: TrainingStage, _: Task) -> float:
        random = rng(seed, "weights")
        for tensor in stage.module.parameters():
            tensor.data = torch.from_numpy(random.normal(0, 0.6, tuple(tensor.shape)).astype(np.float32))
        kept.append(stage)
        return 0.0

    monkeypatch.setattr(validation, "train", instead_of_training)
    model = build(name, settings)
    model.fit(replace(task, seed=seed))
    weights = {key: value.detach().double().numpy().copy() for key, value in kept[0].module.named_parameters()}
    return model, kept[0], weights


def assert_step(
    stage: TrainingStage, weights: Weights, expected: Callable[[], float], epoch: int, step: int, rows: Ints, seed: int
) -> None:
    """Loss and all gradients of the batch `rows`, against `expected` (which reads `weights`) and its slopes."""
    loss = stage.loss(rows, At(seed, stage.name, epoch, step))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-6)
    for name, parameter in stage.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            np.testing.assert_allclose(parameter.grad.numpy(), slope(expected, weights[name]), atol=1e-6, err_msg=name)
