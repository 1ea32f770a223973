"""Train a small problem for all of its steps and record its curves. No early stopping: late events are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graphllmrec.grokking.lab.trajectory import CURVES, Trajectory

POINTS = 400  # per trajectory, evenly spaced


@dataclass(frozen=True)
class Problem:
    """Parameters, loss and measurements of a problem."""

    weights: Sequence[Tensor]  # trained in place
    loss: Callable[[int], Tensor]  # step -> scalar to minimise
    measure: Callable[[bool], tuple[float, float]]  # True: validation, else training -> (loss, metric in 0..1)
    chance_loss: float
    chance_metric: float
    matrix: Callable[[], Tensor]  # its effective rank is recorded


@dataclass(frozen=True)
class Training:
    """Optimiser settings."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.0  # AdamW: decoupled; SGD: in the gradient
    optimizer: Literal["adamw", "sgd"] = "adamw"
    orthograd: bool = False  # remove the gradient component along the weights
    drops: Sequence[float] = ()  # shares of the steps at which the step size is divided by 10


def train_problem(task: str, seed: int, settings: dict[str, Any], problem: Problem, training: Training) -> Trajectory:
    """Train `problem` in place. Returns its curves at about POINTS steps, evenly spaced from the start."""
    optimizer = _optimizer(problem.weights, training)
    every = max(training.steps // POINTS, 1)
    steps, rows = [], []
    for step in range(training.steps + 1):
        if step in {int(share * training.steps) for share in training.drops}:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        loss = problem.loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if step % every == 0:
            steps.append(step)
            rows.append(_measure(problem))
        if training.orthograd:
            _orthogonalise(problem.weights)
        optimizer.step()
    table = np.array(rows)  # (n, curves)
    curves = {name: table[:, place] for place, name in enumerate(CURVES)}
    return Trajectory(
        task, seed, settings, np.array(steps, dtype=np.int64), curves, problem.chance_loss, problem.chance_metric
    )


def _optimizer(weights: Sequence[Tensor], training: Training) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def _measure(problem: Problem) -> list[float]:
    train, valid = problem.measure(False), problem.measure(True)
    norm = float(sum(weight.square().sum() for weight in problem.weights)) ** 0.5
    gradient = float(sum(weight.grad.square().sum() for weight in problem.weights if weight.grad is not None)) ** 0.5
    return [train[0], valid[0], train[1], valid[1], norm, effective_rank(problem.matrix()), gradient]


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a matrix of zeros."""
    values = torch.linalg.svdvals(matrix.detach())
    share = values / values.sum().clamp_min(1e-30)
    return float(torch.exp(-(share * share.clamp_min(1e-30).log()).sum())) if float(values.sum()) > 0 else 0.0


@torch.no_grad()
def _orthogonalise(weights: Sequence[Tensor]) -> None:
    """OrthoGrad (Prieto et al. 2025, arXiv:2501.04697): gradient without its part along the weights, same length."""
    for weight in weights:
        if weight.grad is None:
            continue
        gradient = weight.grad
        across = gradient - (gradient * weight).sum() / weight.square().sum().clamp_min(1e-30) * weight
        weight.grad = across * (gradient.norm() / across.norm().clamp_min(1e-30))
