"""The training loop: the same bytes whether or not it was interrupted, the best weights kept, damage refused."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphllmrec.errors import Interrupted
from graphllmrec.rng import torch_rng
from graphllmrec.train import checkpoint, loop
from graphllmrec.train.checkpoint import Checkpoints, Progress
from toy_training import CONFIG, EPOCHS, EXAMPLES, INPUT, OUTPUT, STEPS, Run, Toy, send


@pytest.fixture(scope="module")
def unbroken() -> Run:
    run = Run()
    run.train()
    return run


# what is learned


@pytest.mark.parametrize(
    ("least", "epochs"), [(0, EPOCHS), (1, EPOCHS), (STEPS * EPOCHS, EPOCHS), (STEPS * EPOCHS + 1, 6)]
)
def test_small_data_is_seen_more_often_until_there_are_min_steps(least: int, epochs: int) -> None:
    more, plain = (
        Run(CONFIG.model_copy(update=change), metric=None) for change in ({"min_steps": least}, {"epochs": epochs})
    )
    for run in (more, plain):
        run.train()
    assert more.bytes == plain.bytes
    assert more.steps == plain.steps == epochs * STEPS


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
    run.loss = lambda rows, at: losses.append((original(rows, at), len(rows))) or losses[-1][0]  # type: ignore[method-assign]
    run.train()
    expected = sum(float(loss.detach()) * size for loss, size in losses) / EXAMPLES
    assert run.notes.logged[1]["loss"] == pytest.approx(expected, abs=1e-7)


# early stopping


def scripted(values: list[float], latest: bool = False, **settings: Any) -> tuple[Run, float, list[float]]:
    """A run whose validations find `values`; what it returns, and what `seen` was at each validation."""
    script, seen = iter(values), []

    def metric(toy: Toy) -> float:
        seen.append(float(toy.seen))
        return next(script)

    run = Run(config=CONFIG.model_copy(update=settings), metric=metric, latest=latest)
    return run, run.train(), seen


def test_the_best_weights_are_kept_and_patience_counts_validations() -> None:
    run, best, seen = scripted([0.1, 0.5, 0.3, 0.5], patience=2)  # a tie is nothing better
    assert best == 0.5
    assert seen == [0, 20, 40, 60]
    assert float(run.module.seen) == 20  # as it was after epoch 1
    assert not run.module.training


def test_of_equally_good_epochs_the_latest_is_kept_where_that_is_asked_for() -> None:
    run, best, seen = scripted([0.1, 0.5, 0.5, 0.3], latest=True, patience=9, epochs=3)
    assert best == 0.5
    assert float(run.module.seen) == seen[2]


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
    assert second.notes.logged == unbroken.notes.logged  # what came before is logged again
    assert second.steps == EPOCHS * STEPS - step
    assert second.notes.steps == EPOCHS * STEPS  # the bar begins where the first run stood


def test_a_run_interrupted_at_every_step_gets_there(tmp_path: Path, unbroken: Run) -> None:
    for _ in range(EPOCHS * STEPS):
        run = Run(folder=tmp_path, at_step=send(signal.SIGINT, 1))
        with pytest.raises(Interrupted):
            run.train()
    last = Run(folder=tmp_path)
    last.train()
    assert last.steps == 0
    assert last.bytes == unbroken.bytes
    assert last.notes.logged == unbroken.notes.logged


@pytest.mark.parametrize("validation", [2, 6])  # after the first epoch, after the last
def test_an_interruption_during_validation_is_not_forgotten(tmp_path: Path, unbroken: Run, validation: int) -> None:
    first, second = Run(folder=tmp_path, at_validation=send(signal.SIGTERM, validation)), Run(folder=tmp_path)
    with pytest.raises(Interrupted, match="stage 'toy'"):
        first.train()
    second.train()
    assert second.bytes == unbroken.bytes
    assert second.notes.logged == unbroken.notes.logged


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
    assert parts[2].notes.logged == whole.notes.logged


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, unbroken: Run) -> None:
    first, second = Run(folder=tmp_path), Run(folder=tmp_path)
    assert first.train() == second.train()
    assert (second.steps, second.validations) == (0, 0)
    assert second.notes.logged == unbroken.notes.logged
    assert second.bytes == unbroken.bytes


@pytest.mark.parametrize("step", [1, 2, 5, 8, 10, 20])
def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path: Path, unbroken: Run, step: int) -> None:
    def die(number: int) -> None:
        if number == step:
            raise MemoryError("killed")

    with pytest.raises(MemoryError):
        Run(folder=tmp_path, every=0, at_step=die).train()
    second = Run(folder=tmp_path)
    second.train()
    assert second.steps == EPOCHS * STEPS - (step - 1)  # every step before it was safe
    assert second.bytes == unbroken.bytes
    assert second.notes.logged == unbroken.notes.logged


def test_slow_checkpoints_are_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second per step and by two per checkpoint: 2 % of the time is one in 100 seconds."""
    now, saved = [0.0], []

    def save(self: Checkpoints, stage: str, progress: Progress, tensors: Any) -> None:
        now[0] += 2
        saved.append(progress.epoch * STEPS + progress.step)

    def tick(number: int) -> None:
        now[0] += 1

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Checkpoints, "save", save)
    Run(CONFIG.model_copy(update={"epochs": 60}), tmp_path, at_step=tick, metric=None, every=10).train()
    assert saved == [10, 110, 210, 240]  # the last one marks the end


def test_checkpoints_are_not_written_more_often_than_needed(tmp_path: Path) -> None:
    seen: list[bool] = []
    Run(folder=tmp_path, at_step=lambda _: seen.append(any(tmp_path.iterdir()))).train()
    assert seen == [False] * (EPOCHS * STEPS)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.safetensors"]


def test_without_a_folder_ctrl_c_does_what_it_always_does() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            Run(at_step=send(signal.SIGINT, 3)).train()
    finally:
        signal.signal(signal.SIGINT, before)


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
