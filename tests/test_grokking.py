"""The grokking detector on curves with known events."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from graphllmrec.grokking.callback import GrokkingCallback
from graphllmrec.grokking.detector import LIFT, Event, GrokkingDetector, Scale

LENGTH, EVERY = 400, 10  # updates, steps between them
SCALES = {"loss": Scale(chance=4.0)}


def step_at(place: int) -> int:
    return place * EVERY


def ramp(start: int, end: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A level that rises from `low` at update `start` to `high` at `end`."""
    return low + (high - low) * np.clip((np.arange(LENGTH) - start) / max(end - start, 1), 0, 1)


def detect(train: np.ndarray, valid: np.ndarray, detector: GrokkingDetector | None = None) -> tuple[list[Event], str]:
    """Events and final state for these levels, given as losses (chance level 4) and as metrics."""
    detector = detector or GrokkingDetector(SCALES)
    events = []
    for place, (known, new) in enumerate(zip(train, valid, strict=True)):
        values = ({"loss": 4 * (1 - level), "accuracy": float(level)} for level in (known, new))
        events += detector.update(step_at(place), train=next(values), valid=next(values))
    return events, detector.state()


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


MEMORISED = ramp(5, 20)  # training level


# events


@pytest.mark.parametrize(("start", "end"), [(150, 170), (100, 300), (60, 390)], ids=["jump", "slow", "very slow"])
def test_a_late_rise_is_an_event_with_its_onset(start: int, end: int) -> None:
    events, _ = detect(MEMORISED, ramp(start, end))
    assert kinds(events) == ["memorised", "generalising"]
    memorised, event = events
    assert step_at(15) <= memorised.onset <= step_at(25)
    tenth = start + (end - start) / 10  # where a tenth of the rise is done
    assert event.detected <= step_at(1) * (tenth + 5)  # median and confirmation: five updates
    assert step_at(start) <= event.onset < event.detected
    assert event.confidence > 0.99


def test_an_event_settles_when_the_level_stops_rising() -> None:
    assert detect(MEMORISED, ramp(100, 120))[1] == "settled"
    assert detect(MEMORISED, ramp(200, 398))[1] == "generalising"
    assert detect(MEMORISED, ramp(500, 600))[1] == "plateau"


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        (ramp(0, 100), ramp(0, 100)),
        (ramp(0, 100), ramp(0, 130, high=0.9)),
        (ramp(0, 300, high=0.8), ramp(100, 300)),
        (MEMORISED, ramp(0, 20, high=0.5)),
        (MEMORISED, ramp(0, 15, high=0.6) - ramp(20, 100, high=0.3)),
        (MEMORISED, ramp(100, 300, high=0.05)),
        (MEMORISED, np.zeros(LENGTH)),
    ],
    ids=["ordinary", "a little behind", "not memorised", "good at once", "overfitting", "next to nothing", "nothing"],
)
def test_runs_without_an_event(train: np.ndarray, valid: np.ndarray) -> None:
    assert "generalising" not in kinds(detect(train, valid)[0])


def noises(count: int, size: float, memory: float) -> Iterator[np.ndarray]:
    """Levels around .3 that wander: AR(1) of standard deviation `size`."""
    for seed in range(count):
        random, value, out = np.random.default_rng(seed), 0.0, []
        for _ in range(LENGTH):
            value = memory * value + math.sqrt(1 - memory**2) * random.normal()
            out.append(0.3 + size * value)
        yield np.array(out)


@pytest.mark.parametrize(("size", "memory"), [(0.01, 0.0), (0.03, 0.0), (0.02, 0.8)])
def test_noise_on_a_plateau_is_no_event(size: float, memory: float) -> None:
    alarms = sum("generalising" in kinds(detect(MEMORISED, valid)[0]) for valid in noises(50, size, memory))
    assert alarms <= 1


def test_the_same_lift_without_regard_to_noise_would_raise_alarms() -> None:
    """The condition that the lift is six deviations is what makes a lift of .05 usable."""
    alarms = 0
    for valid in noises(50, 0.03, 0.0):
        since = valid[20:]  # memorised
        lift = since - since.cumsum() / np.arange(1, len(since) + 1)
        alarms += bool((lift[20:] >= LIFT).any())
    assert alarms == 50


def test_ordinary_learning_that_ends_with_the_wait_is_no_event() -> None:
    """Above the mean since memorisation by more than LIFT, but no longer rising when the wait ends."""
    assert kinds(detect(ramp(0, 100), ramp(0, 150, high=0.8))[0]) == ["memorised"]


def test_a_rise_that_begins_before_the_end_of_the_wait_is_an_event() -> None:
    events, _ = detect(ramp(5, 50), ramp(50, 200, low=0.3, high=0.7))  # memorised at 45, end of the wait at 90
    assert kinds(events) == ["memorised", "generalising"]
    assert step_at(90) <= events[1].detected <= step_at(110)


def test_a_metric_alone_that_jumps_counts_half() -> None:
    """A jump of accuracy by .08 is an event where accuracy is the only value, and none beside a loss at chance."""
    for loss, expected in (({}, ["memorised", "generalising"]), ({"loss": 4.5}, ["memorised"])):
        detector, events = GrokkingDetector(SCALES), []
        for place in range(LENGTH):
            valid = loss | {"accuracy": 0.08 if place > 200 else 0.0}
            events += detector.update(step_at(place), train={"loss": 0.0}, valid=valid)
        assert kinds(events) == expected


# collapse and forgetting


def test_a_collapse_is_detected_and_another_event_can_follow() -> None:
    valid = ramp(100, 120) - ramp(200, 210) + ramp(300, 320)
    events, _ = detect(MEMORISED, valid)
    assert kinds(events) == ["memorised", "generalising", "collapse", "generalising"]
    assert step_at(200) < events[2].onset <= events[2].detected <= step_at(220)
    assert events[3].detected >= step_at(300)


def test_forgetting_the_training_data_leads_back_to_the_baseline() -> None:
    events, state = detect(MEMORISED - ramp(200, 210, high=0.6), ramp(100, 120))
    assert kinds(events) == ["memorised", "generalising", "forgotten"]
    assert state == "baseline"


def test_the_lift_is_the_rise_of_validation_and_zero_after_a_collapse() -> None:
    detector = GrokkingDetector(SCALES)
    detect(MEMORISED, 0.2 + 0.5 * ramp(100, 120), detector)
    assert detector.lift() == pytest.approx(0.5, abs=0.02)
    collapsing = GrokkingDetector(SCALES)
    detect(MEMORISED, ramp(100, 120) - ramp(200, 210), collapsing)
    assert collapsing.lift() == 0.0
    assert GrokkingDetector().lift("graph") == 0.0


# scales, branches, waiting


def test_a_metric_is_scaled_from_chance_to_its_best_value() -> None:
    """NDCG from .01 to .07 is an event if the best value is .12, and none if it is 1."""
    for perfect, expected in ((0.12, ["memorised", "generalising"]), (1.0, ["memorised"])):
        detector, events = GrokkingDetector({"ndcg@20": Scale(0.01, perfect)}), []
        for place, level in enumerate(ramp(100, 150)):
            train, valid = {"loss": 2.0 * (place < 5)}, {"ndcg@20": 0.01 + 0.06 * level}
            events += detector.update(step_at(place), train=train, valid=valid)
        assert kinds(events) == expected


def test_a_loss_without_a_chance_level_is_scaled_by_its_first_value() -> None:
    detector, events = GrokkingDetector(), []
    for place, (known, level) in enumerate(zip(MEMORISED, ramp(100, 150), strict=True)):
        events += detector.update(step_at(place), train={"loss": 7 * (1 - known)}, valid={"loss": 9 * (1 - level)})
    assert kinds(events) == ["memorised", "generalising"]


def test_branches_are_independent() -> None:
    detector, found = GrokkingDetector(SCALES), {"graph": [], "text": []}
    for place in range(LENGTH):
        for branch, valid in (("graph", ramp(150, 170)), ("text", ramp(5, 20, high=0.5))):
            train, new = {"loss": 4 * (1 - MEMORISED[place])}, {"loss": 4 * (1 - valid[place])}
            found[branch] += detector.update(step_at(place), train=train, valid=new, branch=branch)
    assert kinds(found["graph"]) == ["memorised", "generalising"]
    assert kinds(found["text"]) == ["memorised"]
    assert {event.branch for event in found["graph"]} == {"graph"}
    assert detector.state("text") == "plateau"
    assert detector.state("unknown") == "baseline"


def test_evidence_has_the_ratio_of_progress_measures_since_memorisation() -> None:
    detector, events = GrokkingDetector(SCALES), []
    for place, (known, level) in enumerate(zip(MEMORISED, ramp(100, 120), strict=True)):
        values = ({"loss": 4 * (1 - each)} for each in (known, level))
        norm = {"weight_norm": 10.0 if place < 50 else 4.0}
        events += detector.update(step_at(place), train=next(values), valid=next(values), progress=norm)
    assert events[1].evidence["weight_norm since memorised"] == pytest.approx(0.4)
    assert events[1].evidence["memorised"] == events[0].onset
    assert json.loads(json.dumps(events[1].to_json()))["kind"] == "generalising"


def test_an_event_is_plausible_only_for_a_branch_that_has_memorised_and_not_generalised() -> None:
    detector = GrokkingDetector(SCALES)
    assert detector.waits_until(0.01, 0.1) is None
    events, _ = detect(MEMORISED, np.zeros(LENGTH), detector)
    assert detector.waits_until(0.01, 0.1) == events[0].onset + 5 / (0.01 * 0.1)
    assert detector.waits_until(0.01, 0.0) is None
    after_event = GrokkingDetector(SCALES)
    detect(MEMORISED, ramp(100, 120), after_event)
    assert after_event.waits_until(0.01, 0.1) is None


# memory and errors


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    detector, sizes = GrokkingDetector(SCALES), []
    for place in range(20_000):
        detector.update(place, train={"loss": 0.0}, valid={"loss": 4.0 + 0.1 * math.sin(place)})
        if place in (200, 19_999):
            sizes.append(len(pickle.dumps(detector)))
    assert abs(sizes[1] - sizes[0]) < 64


def test_values_that_are_not_finite_count_as_chance_level() -> None:
    events, _ = detect(MEMORISED, np.where(np.arange(LENGTH) < 200, np.nan, 0.0))
    assert kinds(events) == ["memorised"]


def test_steps_must_rise_and_values_must_be_given() -> None:
    detector = GrokkingDetector()
    detector.update(5, train={"loss": 1.0}, valid={"loss": 1.0})
    with pytest.raises(ValueError, match="steps must rise: 5 after 5"):
        detector.update(5, train={"loss": 1.0}, valid={"loss": 1.0})
    for train, valid in (({}, {"loss": 1.0}), ({"loss": 1.0}, {})):
        with pytest.raises(ValueError, match="at least one training and one validation value"):
            detector.update(6, train=train, valid=valid)


# Hugging Face Trainer


def test_the_callback_follows_a_trainer(tmp_path: Path) -> None:
    received: list[Event] = []
    callback = GrokkingCallback(GrokkingDetector(SCALES), metrics=["accuracy"], on_event=received.append)
    model, data = torch.nn.Linear(2, 1), [{"x": torch.ones(2), "labels": torch.zeros(1)}] * 8

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.inner(x)
            return {"loss": (found - labels).square().mean(), "logits": found}

    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=0.5, logging_steps=1, eval_steps=1,
        eval_strategy="steps", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(
        Toy(), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback],
        compute_metrics=lambda _: {"accuracy": 0.1},
    ).train()  # fmt: skip
    assert kinds(callback.events) == ["memorised"]
    assert received == callback.events
    assert callback.detector.state() in ("memorised", "plateau")


def test_evaluations_before_the_first_training_loss_are_skipped() -> None:
    callback = GrokkingCallback(metrics=["accuracy"])
    state = SimpleNamespace(global_step=0)
    callback.on_evaluate(None, state, None, metrics={"eval_loss": 1.0, "eval_accuracy": 0.5})
    callback.on_log(None, state, None, logs={"loss": 1.0})
    with pytest.raises(KeyError, match="eval_accuracy"):
        callback.on_evaluate(None, state, None, metrics={"eval_loss": 1.0})
