"""The training loop: the same bytes whether or not it was interrupted, the best weights kept, damage refused."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from graphllmrec.errors import CheckpointError, Interrupted
from graphllmrec.models.base import SilentJournal, Task
from graphllmrec.rng import torch_rng
from graphllmrec.train import checkpoint, loop
from graphllmrec.train.checkpoint import Checkpoints, Progress
from graphllmrec.train.loop import Stage, TrainedConfig, train
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


class Notes(SilentJournal):
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
    seed: int = 0
    at_step: Callable[[int], None] = lambda number: None
    at_validation: Callable[[int], None] = lambda number: None
    metric: Callable[[Toy], float] | None = lambda toy: -float(((INPUT @ toy.weight + toy.bias - OUTPUT) ** 2).mean())
    notes: Notes = field(default_factory=Notes)
    module: Toy = field(default_factory=Toy)
    steps: int = 0
    validations: int = 0

    def loss(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        self.steps += 1
        self.at_step(self.steps)
        noise = torch.randn(len(rows), generator=torch_rng(self.seed, "toy/noise", epoch, step))
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
        stage = Stage("toy", self.module, EXAMPLES, self.loss, check, self.config, metric="fit")
        checkpoints = Checkpoints(self.folder) if self.folder is not None else None
        return train(stage, Task(SPLIT, None, self.seed, self.notes, checkpoints))

    @property
    def bytes(self) -> bytes:
        return save(dict(self.module.state_dict()))


def send(number: int, at: int) -> Callable[[int], None]:
    """Sends this very process a signal at the `at`-th call."""
    return lambda call: os.kill(os.getpid(), number) if call == at else None


@pytest.fixture(scope="module")
def unbroken() -> Run:
    run = Run()
    run.train()
    return run


# what is learned


WARM = {"warmup": 3}
COSINE = {"schedule": "cosine"}


@pytest.mark.parametrize("course", [{}, WARM, COSINE, WARM | COSINE], ids=["constant", "warm", "cosine", "both"])
def test_the_loop_is_adamw_on_the_batches_of_every_epoch(course: dict[str, Any]) -> None:
    """Against AdamW (Loshchilov & Hutter 2019, algorithm 2) on gradients and step sizes by hand."""
    run = Run(CONFIG.model_copy(update=course), metric=None)
    run.train()
    warmup = course.get("warmup", 0)
    weight, moment, square, time_ = np.zeros(4), np.zeros(4), np.zeros(4), 0
    x = np.hstack([INPUT.double().numpy(), np.ones((EXAMPLES, 1))])
    for epoch in range(EPOCHS):
        order = loop.epoch_order(EXAMPLES, 0, "toy", epoch)
        for step in range(STEPS):
            rows = order[step * 6 : step * 6 + 6]
            noise = torch.randn(len(rows), generator=torch_rng(0, "toy/noise", epoch, step)).double().numpy()
            error = x[rows] @ weight + 0.1 * noise - OUTPUT.double().numpy()[rows]
            gradient, time_ = 2 * error @ x[rows] / len(rows), time_ + 1
            moment = 0.9 * moment + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            rate = CONFIG.learning_rate
            if time_ <= warmup:
                rate *= time_ / warmup
            elif "schedule" in course:
                rate *= np.cos(np.pi / 2 * (time_ - 1 - warmup) / (EPOCHS * STEPS - warmup)) ** 2
            weight = weight * (1 - rate * CONFIG.weight_decay)
            corrected = np.sqrt(square / (1 - 0.999**time_)) + 1e-8
            weight = weight - rate * moment / (1 - 0.9**time_) / corrected
    found = torch.cat([run.module.weight, run.module.bias[None]]).detach().numpy()
    np.testing.assert_allclose(found, weight, atol=1e-6)


def test_same_seed_same_bytes_other_seed_other_bytes(unbroken: Run) -> None:
    again, other = Run(), Run(seed=1)
    again.train()
    other.train()
    assert again.bytes == unbroken.bytes
    assert again.notes.logged == unbroken.notes.logged
    assert other.bytes != unbroken.bytes


def test_every_epoch_is_logged_with_the_mean_loss_over_its_examples(unbroken: Run) -> None:
    assert [entry["epoch"] for entry in unbroken.notes.logged] == [0, 1, 2, 3, 4, 5]
    assert unbroken.notes.logged[0].keys() == {"event", "stage", "epoch", "fit"}
    assert unbroken.notes.logged[1].keys() == {"event", "stage", "epoch", "fit", "loss"}
    assert unbroken.notes.steps == EPOCHS * STEPS
    losses: list[tuple[float, int]] = []
    run = Run(config=CONFIG.model_copy(update={"epochs": 1}))
    original = run.loss
    run.loss = lambda *at: losses.append((original(*at), len(at[2]))) or losses[-1][0]  # type: ignore[method-assign]
    run.train()
    expected = sum(float(loss.detach()) * size for loss, size in losses) / EXAMPLES
    assert run.notes.logged[1]["loss"] == pytest.approx(expected, abs=1e-7)


# early stopping


def scripted(values: list[float], **settings: Any) -> tuple[Run, float, list[float]]:
    """A run whose validations find `values`; what it returns, and what `seen` was at each validation."""
    script, seen = iter(values), []

    def metric(toy: Toy) -> float:
        seen.append(float(toy.seen))
        return next(script)

    run = Run(config=CONFIG.model_copy(update=settings), metric=metric)
    return run, run.train(), seen


def test_the_best_weights_are_kept_and_patience_counts_validations() -> None:
    run, best, seen = scripted([0.1, 0.5, 0.3, 0.5], patience=2)  # a tie is nothing better
    assert best == 0.5
    assert seen == [0, 20, 40, 60]
    assert float(run.module.seen) == 20  # as it was after epoch 1
    assert not run.module.training


def test_an_untrained_module_takes_part_as_epoch_0() -> None:
    run, best, seen = scripted([0.9, 0.5, 0.4, 0.3], patience=3)
    assert best == 0.9
    assert len(seen) == 4
    assert torch.equal(run.module.weight, torch.zeros(3))


def test_validation_every_other_epoch_and_after_the_last() -> None:
    _, best, seen = scripted([0.0, 0.1, 0.2, 0.3], validate_every=2)
    assert seen == [0, 40, 80, 100]
    assert best == 0.3
    run, _, seen = scripted([0.5, 0.1, 0.2], validate_every=2, patience=2)
    assert seen == [0, 40, 80]  # two validations without a better one, four epochs
    assert [entry["epoch"] for entry in run.notes.logged] == [0, 1, 2, 3, 4]


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    _, best, _ = scripted([0.2, float("nan"), float("nan"), 0.1], patience=3)
    assert best == 0.2


def test_without_validation_the_last_weights_stay(unbroken: Run) -> None:
    run = Run(metric=None)
    assert run.train() == float("-inf")
    assert float(run.module.seen) == EPOCHS * EXAMPLES
    assert run.notes.logged[0].keys() == {"event", "stage", "epoch", "loss"}


def test_no_epochs_no_steps() -> None:
    run, best, seen = scripted([0.3], epochs=0)
    assert (best, seen, run.steps) == (0.3, [0], 0)


# interruption


def test_an_interrupted_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update=WARM | COSINE)
    whole, first, second = Run(config), Run(config, tmp_path, at_step=send(signal.SIGINT, 6)), Run(config, tmp_path)
    whole.train()
    with pytest.raises(Interrupted):
        first.train()
    second.train()
    assert second.bytes == whole.bytes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 4, 5, 20])  # within an epoch, at its end, after the last
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, unbroken: Run, number: int, step: int) -> None:
    first, second = Run(folder=tmp_path, at_step=send(number, step)), Run(folder=tmp_path)
    with pytest.raises(Interrupted, match=rf"stage 'toy', epoch {(step + 3) // 4}, step {(step - 1) % 4 + 1}"):
        first.train()
    assert first.steps == step
    assert second.train() == max(entry["fit"] for entry in unbroken.notes.logged)
    assert second.bytes == unbroken.bytes
    assert first.notes.logged + second.notes.logged == unbroken.notes.logged
    assert second.steps == EPOCHS * STEPS - step
    assert second.notes.steps == EPOCHS * STEPS  # the bar begins where the first run stood


def test_a_run_interrupted_at_every_step_gets_there(tmp_path: Path, unbroken: Run) -> None:
    logged: list[dict[str, Any]] = []
    for _ in range(EPOCHS * STEPS):
        run = Run(folder=tmp_path, at_step=send(signal.SIGINT, 1))
        with pytest.raises(Interrupted):
            run.train()
        logged += run.notes.logged
    last = Run(folder=tmp_path)
    last.train()
    assert last.steps == 0
    assert last.bytes == unbroken.bytes
    assert logged + last.notes.logged == unbroken.notes.logged


@pytest.mark.parametrize("validation", [2, 6])  # after the first epoch, after the last
def test_an_interruption_during_validation_is_not_forgotten(tmp_path: Path, unbroken: Run, validation: int) -> None:
    first, second = Run(folder=tmp_path, at_validation=send(signal.SIGTERM, validation)), Run(folder=tmp_path)
    with pytest.raises(Interrupted, match="stage 'toy'"):
        first.train()
    second.train()
    assert second.bytes == unbroken.bytes
    assert first.notes.logged + second.notes.logged == unbroken.notes.logged


def test_early_stopping_counts_on_after_an_interruption(tmp_path: Path) -> None:
    values = [0.1, 0.5, 0.3, 0.4]
    whole, best, _ = scripted(values, patience=2)
    script = iter(values)
    parts = [
        Run(whole.config, tmp_path, at_step=at, metric=lambda toy: next(script))
        for at in (send(signal.SIGINT, 2), send(signal.SIGINT, 9), send(signal.SIGINT, 99))
    ]
    for part in parts[:2]:
        with pytest.raises(Interrupted):
            part.train()
    assert parts[2].train() == best
    assert parts[2].bytes == whole.bytes
    assert [entry for part in parts for entry in part.notes.logged] == whole.notes.logged


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, unbroken: Run) -> None:
    first, second = Run(folder=tmp_path), Run(folder=tmp_path)
    assert first.train() == second.train()
    assert (second.steps, second.validations, second.notes.logged) == (0, 0, [])
    assert second.bytes == unbroken.bytes


def test_a_run_that_was_killed_goes_on_from_its_last_epoch(
    tmp_path: Path, unbroken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(number: int) -> None:
        if number == 10:
            raise MemoryError("killed")

    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    with pytest.raises(MemoryError):
        Run(folder=tmp_path, at_step=die).train()
    second = Run(folder=tmp_path)
    second.train()
    assert second.steps == EPOCHS * STEPS - 8  # epochs 1 and 2 were safe
    assert second.bytes == unbroken.bytes


def test_checkpoints_are_not_written_more_often_than_needed(tmp_path: Path) -> None:
    seen: list[bool] = []
    Run(folder=tmp_path, at_step=lambda _: seen.append(any(tmp_path.iterdir()))).train()
    assert seen == [False] * (EPOCHS * STEPS)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.safetensors"]


def test_without_a_folder_ctrl_c_does_what_it_always_does() -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(at_step=send(signal.SIGINT, 3)).train()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Run(folder=tmp_path, at_step=twice).train()
    assert list(tmp_path.iterdir()) == []


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        Run(folder=tmp_path, at_step=send(signal.SIGTERM, 2)).train()
    Run(folder=tmp_path).train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_in_a_thread_that_cannot_have_signals(tmp_path: Path, unbroken: Run) -> None:
    run = Run(folder=tmp_path)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert run.bytes == unbroken.bytes


# checkpoints on disk


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The checkpoint of a run that was stopped after two steps."""
    with pytest.raises(Interrupted):
        Run(folder=tmp_path, at_step=send(signal.SIGINT, 2)).train()
    return tmp_path / "toy.safetensors"


def test_a_checkpoint_holds_weights_best_weights_and_both_moments(interrupted: Path) -> None:
    tensors = load_file(interrupted)
    whose = ["model.weight", "model.bias", "model.seen", "best.weight", "best.bias", "best.seen"]
    assert set(whose) <= tensors.keys()
    moments = {f"optimizer.{index}.{name}" for index in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    assert tensors.keys() == {*whose, *moments}
    assert float(tensors["model.seen"]) == 12
    assert float(tensors["best.seen"]) == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no-progress", "other-progress"])
def test_a_damaged_checkpoint_is_refused(interrupted: Path, damage: str) -> None:
    good = interrupted.read_bytes()
    if damage in ("no-progress", "other-progress"):
        metadata = {"progress": json.dumps({"epoch": 1, "era": 2})} if damage == "other-progress" else None
        save_file(load_file(interrupted), interrupted, metadata=metadata)
    else:
        interrupted.write_bytes({"truncated": good[:-7], "empty": b"", "text": b"weights: 1, 2, 3" * 9}[damage])
    with pytest.raises(CheckpointError, match=r"toy\.safetensors cannot be read .*delete it to train this stage again"):
        Run(folder=interrupted.parent).train()


@pytest.mark.parametrize("other", [{"seed": 1}, {"config": CONFIG.model_copy(update={"epochs": 9})}])
def test_a_checkpoint_of_other_settings_is_refused(interrupted: Path, other: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"toy\.safetensors belongs to other settings or data: delete it"):
        Run(folder=interrupted.parent, **other).train()


def test_a_failed_write_leaves_the_old_checkpoint(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    before = interrupted.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        Checkpoints(interrupted.parent).save("toy", Progress(), {})
    assert interrupted.read_bytes() == before
    assert [path.name for path in interrupted.parent.iterdir()] == ["toy.safetensors"]


def test_a_stage_that_never_wrote_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").load("toy") is None


def test_progress_goes_through_json_unchanged() -> None:
    progress = Progress(loss_sum=0.1 + 0.2, examples=3, epoch=2)
    assert Progress(**json.loads(json.dumps(vars(progress)))) == progress
