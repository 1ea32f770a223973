"""What moves the gate: every control against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from graphllmrec.grokking.detector import GrokkingDetector, Scale
from graphllmrec.grokking.gate_schedule import (
    LATE_PHASE,
    MOST,
    WHOLE,
    Measured,
    Moment,
    build_gate_schedule,
    handed_over,
    moved_by,
)

STEPS, EVERY = 4000, 10
SCALES = {"loss": Scale(4.0), "ndcg": Scale()}


def level(value: float) -> dict[str, float]:
    """Values of this level."""
    return {"loss": 4.0 * (1 - value), "ndcg": value}


def course(step: int) -> dict[str, Measured]:
    """Both branches know their training data at 100; "text" generalises from 1,000 to 2,000, "graph" never does."""
    known = min(step / 100, 1.0)
    late = 0.8 * min(max((step - 1000) / 1000, 0.0), 1.0)
    return {"graph": Measured(level(known), level(0.3 * known)), "text": Measured(level(known), level(late))}


def shown(name: str, strength: float = 2.0, half_life: float = 4.0, collapse: int = STEPS + 1):
    """Priors at every step, and the detector in the end."""
    detector, control, priors = GrokkingDetector(SCALES), build_gate_schedule(name, strength, half_life), {}
    for step in range(0, STEPS + 1, EVERY):
        branches = course(step if step < collapse else 0)
        branches = branches if step < collapse else {n: Measured(level(1.0), level(0.0)) for n in branches}
        for branch, each in (branches | {WHOLE: branches["graph"]}).items():
            detector.update(step, train=each.train, valid=each.valid, branch=branch)
        priors[step] = control(Moment(step, STEPS, branches, detector))
    return priors, detector


def test_a_branch_that_comes_late_gets_a_share_that_grows_with_its_lift_and_fades() -> None:
    priors, detector = shown("grokking")
    event = detector.event("text")
    assert event is not None
    distance = event.detected - event.evidence["memorised"]
    for step, prior in priors.items():
        assert prior["graph"] == 0.0
        if step <= 1375:  # before it is told, and while the whole with its level of .3 does better
            assert prior["text"] == 0.0
        elif step >= 1410:
            assert prior["text"] > 0
    assert 1000 < event.detected < 1200
    lift = detector.lift("text")
    assert lift == pytest.approx(0.8, abs=0.01)
    assert priors[STEPS]["text"] == pytest.approx(2 * lift * 2 ** (-(STEPS - event.detected) / (4 * distance)))
    later = event.detected + EVERY * round(4 * distance / EVERY)
    assert detector.event("graph") is None
    assert later > STEPS or priors[later]["text"] == pytest.approx(lift, rel=0.01)


def test_a_collapse_takes_the_share_back() -> None:
    priors, detector = shown("grokking", collapse=3000)
    assert priors[2990]["text"] > 1
    assert priors[STEPS] == {"graph": 0.0, "text": 0.0}
    assert detector.event("text") is None


def test_the_ratio_is_gradient_blending() -> None:
    priors, _ = shown("ratio")
    start, now = course(0), course(1500)
    found = {}
    for name in ("graph", "text"):
        gained = start[name].valid["loss"] - now[name].valid["loss"]
        gap = (now[name].valid["loss"] - now[name].train["loss"]) - (
            start[name].valid["loss"] - start[name].train["loss"]
        )
        found[name] = max(gained, 1e-3) / max(gap, 1e-3) ** 2
    for name, value in found.items():
        assert priors[1500][name] == pytest.approx(value / sum(found.values()))


def test_the_late_phase_counts_what_is_gained_in_it() -> None:
    detector, control = GrokkingDetector(SCALES), build_gate_schedule("late", 2.0, 4.0)
    start = math.ceil(LATE_PHASE * STEPS / EVERY) * EVERY
    for step in range(0, STEPS + 1, EVERY):
        valid = 0.2 if step <= start else 0.5
        detector.update(step, train=level(0.5), valid=level(valid), branch="text")
        prior = control(Moment(step, STEPS, {"text": Measured(level(0.5), level(valid))}, detector))["text"]
        if step <= start:
            assert prior == 0.0
    assert prior == pytest.approx(2 * 0.3)


def test_no_control_moves_nothing() -> None:
    priors, _ = shown("none")
    assert all(value == 0.0 for prior in priors.values() for value in prior.values())


def test_what_is_handed_over_goes_to_one_side() -> None:
    gamma = torch.tensor([0.1, 0.5, 0.9])
    for moved, expected in ((0.5, [0.55, 0.75, 0.95]), (-0.5, [0.05, 0.25, 0.45])):
        torch.testing.assert_close(handed_over(gamma, torch.tensor(moved)), torch.tensor(expected))
    assert moved_by({"text": 3.0, "graph": 0.0}, "text", "graph") == MOST
    assert moved_by({"text": 0.0, "graph": 3.0}, "text", "graph") == -MOST
    assert moved_by({"text": 0.7, "graph": 0.2}, "text", "graph") == pytest.approx(0.5)


def test_nothing_handed_over_leaves_gates_and_gradients_as_they_are_to_the_last_bit() -> None:
    raw = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain, moved = (raw.clone().requires_grad_() for _ in range(2))
    first, second = torch.sigmoid(plain), handed_over(torch.sigmoid(moved), torch.zeros(()))
    assert torch.equal(first, second)
    for gamma in (first, second):
        (gamma * raw).sum().backward()
    assert torch.equal(plain.grad, moved.grad)
