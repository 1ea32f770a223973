"""The collection of runs, in five parts: two to choose rules and thresholds on, three to score them on.

"build" is for choosing thresholds. "held-out" has other seeds, other settings of the same tasks, and one task (parity)
that "build" lacks. "new task" has a task (sparse) of which the other parts have no run.

The last two have the tasks of families.py, which came after the detector was published with figures of the first three.
"second build" has digits and permutations. "second held-out" has linear regression and a transformer; its settings
were chosen by the labels of truth.py and the curves of one other seed, before any rule here had read a run of these two
tasks, and the rules were scored on it once, after all of them had been fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from graphllmrec.grokking.lab.engine import Training
from graphllmrec.grokking.lab.families import FAMILIES
from graphllmrec.grokking.lab.tasks import TASKS
from graphllmrec.grokking.lab.trajectory import Trajectory

Part = Literal["build", "held-out", "new task", "second build", "second held-out"]
PARTS: tuple[Part, ...] = ("build", "held-out", "new task", "second build", "second held-out")
BUILD: tuple[Part, ...] = ("build", "second build")  # on which thresholds are chosen


@dataclass(frozen=True)
class Run:
    """The specification of one training run."""

    part: Part
    kind: str  # the intended behaviour; truth.py finds the actual one
    task: str
    seed: int
    training: Training
    settings: dict[str, Any]

    def train(self) -> Trajectory:
        """Train and return the curves."""
        return (TASKS | FAMILIES)[self.task](self.seed, self.training, **self.settings)


def collection(part: Part) -> list[Run]:
    """All runs of a part."""
    parts = {"build": _build, "held-out": _held_out, "new task": _new_task}
    parts |= {"second build": _second_build, "second held-out": _second_held_out}
    return [Run(part, *run) for run in parts[part]()]


_Spec = tuple[str, str, int, Training, dict[str, Any]]


def _build() -> Iterator[_Spec]:
    seeds = range(4)
    for seed, (p, share), decay in product(seeds, ((31, 0.75), (37, 0.65), (41, 0.6)), (0.5, 1.0)):
        yield "late", "modular", seed, Training(2400, 3e-3, decay), {"p": p, "share": share}
    for seed, decay, start in product(seeds, (0.025, 0.05, 0.1), (2.0, 3.0)):
        yield "late", "completion", seed, Training(6000, 0.02, decay, "sgd"), {"start": start}
    for seed, decay, start in product(seeds, (0.1, 0.3), (2.5, 3.5)):
        yield "late", "tastes", seed, Training(6000, 3e-3, decay), {"start": start}
    for seed in seeds:
        yield "no decay", "modular", seed, Training(2400, 3e-3, 0.0), {"p": 37, "share": 0.65}
        yield "too little data", "modular", seed, Training(2400, 3e-3, 1.0), {"p": 37, "share": 0.25}
        yield (
            "nothing to find",
            "modular",
            seed,
            Training(2400, 3e-3, 1.0),
            {"p": 31, "share": 0.7, "operation": "noise"},
        )
        yield "noisy", "modular", seed, Training(2400, 3e-3, 0.0), {"p": 37, "share": 0.65, "seen": 40}
        yield "no decay", "completion", seed, Training(6000, 0.02, 0.0, "sgd"), {}
        yield "full rank", "completion", seed, Training(6000, 0.02, 0.05, "sgd"), {"rank": 40}
        yield "small start", "completion", seed, Training(6000, 0.02, 0.05, "sgd"), {"start": 0.01}
        yield "no decay", "tastes", seed, Training(6000, 3e-3, 0.0), {"start": 3.0}
        yield "small start", "tastes", seed, Training(3000, 3e-3, 0.1), {"start": 0.3}
        yield "noisy", "tastes", seed, Training(6000, 1e-2, 0.0), {"start": 1.0, "batch": 64, "noise": 0.15}
        yield "ordinary", "teacher", seed, Training(4000, 1e-3, 0.01), {"examples": 4000}
        yield "overfitting", "teacher", seed, Training(4000, 1e-3, 0.01), {"examples": 400, "noise": 0.3}
        yield "drops", "teacher", seed, Training(4000, 1e-2, 0.01, drops=(0.4, 0.7)), {"examples": 1500, "batch": 16}
    for seed in seeds:
        yield "orthograd", "modular", seed, Training(1200, 3e-3, 0.0, orthograd=True), {"p": 59, "share": 0.7}


def _held_out() -> Iterator[_Spec]:
    seeds = range(100, 104)
    for seed, (p, share), operation in product(seeds, ((37, 0.7), (43, 0.6)), ("subtract", "multiply")):
        yield "late", "modular", seed, Training(2400, 3e-3, 1.0), {"p": p, "share": share, "operation": operation}
    for seed in seeds:
        yield "late", "modular", seed, Training(2400, 5e-3, 0.7), {"p": 41, "share": 0.6}
    for seed, decay, n in product(seeds, (0.03, 0.07), (30, 50)):
        settings = {"n": n, "rank": 3, "share": 0.5, "start": 4.0}
        yield "late", "completion", seed, Training(6000, 0.02, decay, "sgd"), settings
    for seed, decay, blocks in product(seeds, (0.15, 0.25), (3, 6)):
        yield "late", "tastes", seed, Training(6000, 3e-3, decay), {"blocks": blocks, "start": 3.0, "share": 0.5}
    for seed, decay in product(seeds, (0.5, 1.0)):
        yield "late", "parity", seed, Training(6000, 3e-3, decay), {"bits": 25, "examples": 700}
    for seed in seeds:
        yield "no decay", "modular", seed, Training(2400, 3e-3, 0.0), {"p": 41, "share": 0.6, "operation": "subtract"}
        yield "too little data", "modular", seed, Training(2400, 3e-3, 1.0), {"p": 41, "share": 0.2}
        yield "nothing to find", "modular", seed, Training(2400, 3e-3, 0.7), {"p": 37, "operation": "noise"}
        yield "noisy", "modular", seed, Training(2400, 3e-3, 0.0), {"p": 41, "operation": "multiply", "seen": 40}
        yield "no decay", "completion", seed, Training(6000, 0.02, 0.0, "sgd"), {"n": 50, "rank": 3}
        yield "full rank", "completion", seed, Training(6000, 0.02, 0.07, "sgd"), {"n": 30, "rank": 30}
        yield "small start", "completion", seed, Training(6000, 0.02, 0.07, "sgd"), {"n": 50, "rank": 3, "start": 0.05}
        yield "no decay", "tastes", seed, Training(6000, 3e-3, 0.0), {"blocks": 6, "start": 3.5}
        yield "small start", "tastes", seed, Training(3000, 3e-3, 0.1), {"blocks": 6, "start": 0.2}
        yield "noisy", "tastes", seed, Training(6000, 1e-2, 0.0), {"blocks": 3, "start": 1.0, "batch": 48, "noise": 0.2}
        yield "no decay", "parity", seed, Training(6000, 3e-3, 0.0), {"bits": 25, "examples": 700}
        yield "too little data", "parity", seed, Training(6000, 3e-3, 0.5), {"bits": 25, "examples": 150}
        yield "ordinary", "parity", seed, Training(3000, 3e-3, 0.1), {"bits": 12, "examples": 3000}
        yield "ordinary", "teacher", seed, Training(4000, 2e-3, 0.01), {"examples": 6000, "batch": 128}
        yield "overfitting", "teacher", seed, Training(4000, 2e-3, 0.0), {"examples": 250, "noise": 0.2}
        yield "drops", "teacher", seed, Training(4000, 2e-2, 0.01, drops=(0.5,)), {"examples": 800, "batch": 16}
        yield "orthograd", "modular", seed, Training(1200, 3e-3, 0.0, orthograd=True), {"p": 53, "share": 0.75}


def _new_task() -> Iterator[_Spec]:
    seeds = range(200, 206)
    for seed, decay, start in product(seeds, (0.2, 0.4), (1.5, 2.5)):
        yield "late", "sparse", seed, Training(4000, 3e-3, decay), {"start": start}
    for seed in seeds:
        yield "no decay", "sparse", seed, Training(4000, 3e-3, 0.0), {"start": 2.5}
        yield "full rank", "sparse", seed, Training(4000, 3e-3, 0.3), {"nonzero": 120}
        yield "nothing to find", "sparse", seed, Training(4000, 3e-3, 0.3), {"nonzero": 0, "noise": 1.0}
        yield "ordinary", "sparse", seed, Training(4000, 3e-3, 0.1), {"examples": 400, "start": 0.5}


def _second_build() -> Iterator[_Spec]:
    seeds = range(300, 303)
    for seed, (examples, start, decay) in product(seeds, ((30, 6.0, 0.3), (100, 7.0, 1.0), (100, 8.0, 0.3))):
        yield "late", "digits", seed, Training(2000, 1e-3, decay), {"examples": examples, "start": start}
    for seed in seeds:
        yield "late", "digits", seed, Training(4000, 1e-3, 0.1), {"examples": 200, "start": 8.0}
        yield "late, no decay", "digits", seed, Training(4000, 1e-3, 0.0), {"examples": 200, "start": 8.0}
    for seed, share, decay in product(seeds, (0.7, 0.8), (0.5, 1.0)):
        yield "late", "permutations", seed, Training(2400, 3e-3, decay), {"share": share}
    for seed in seeds:
        yield "small start", "digits", seed, Training(2000, 1e-3, 0.3), {"examples": 200, "start": 1.0}
        yield "ordinary", "digits", seed, Training(2000, 1e-3, 0.3), {"examples": 1000, "start": 2.0}
        yield "nothing to find", "digits", seed, Training(2000, 1e-3, 0.3), {"noise": 1.0}
        yield "random labels", "digits", seed, Training(2000, 1e-3, 0.3), {"noise": 0.5}
        yield "too little data", "digits", seed, Training(2000, 1e-3, 0.0), {"examples": 10, "start": 8.0}
        yield "noisy", "digits", seed, Training(2000, 1e-3, 0.0), {"examples": 100, "start": 1.0, "seen": 40}
        yield "no decay", "permutations", seed, Training(2400, 3e-3, 0.0), {"share": 0.8}
        yield "too little data", "permutations", seed, Training(2400, 3e-3, 1.0), {"share": 0.3}
        yield "nothing to find", "permutations", seed, Training(2400, 3e-3, 1.0), {"random_labels": True}


def _second_held_out() -> Iterator[_Spec]:
    seeds = range(400, 404)
    for seed, (start, decay) in product(seeds, ((2.0, 0.02), (4.0, 0.02), (4.0, 0.05), (8.0, 0.1))):
        yield "late", "linear", seed, Training(4000, 0.02, decay, "sgd"), {"start": start}
    for seed, decay in product(seeds, (0.5, 1.0)):
        yield "late", "transformer", seed, Training(1600, 3e-3, decay), {}
    for seed in seeds:
        yield "no decay", "linear", seed, Training(4000, 0.02, 0.0, "sgd"), {"start": 4.0}
        yield "small start", "linear", seed, Training(4000, 0.02, 0.02, "sgd"), {"start": 0.1}
        yield "nothing to find", "linear", seed, Training(4000, 0.02, 0.05, "sgd"), {"signal": 0.0, "noise": 1.0}
        yield "ordinary", "linear", seed, Training(4000, 0.02, 0.02, "sgd"), {"examples": 300, "start": 2.0}
        yield "too little data", "linear", seed, Training(4000, 0.02, 0.05, "sgd"), {"examples": 5, "start": 4.0}
        yield "no decay", "transformer", seed, Training(1600, 3e-3, 0.0), {}
        yield "nothing to find", "transformer", seed, Training(1600, 3e-3, 1.0), {"random_labels": True}
