"""Gate schedules: each against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from graphllmrec.grokking.detector import GrokkingDetector, Scale
from graphllmrec.grokking.gate_schedule import (
    LATE_PHASE,
    MAX_SHIFT,
    WHOLE,
    BranchMetrics,
    Snapshot,
    build_gate_schedule,
    gate_shift,
    shifted,
)

STEPS, EVERY = 4000, 10
SCALES = {"loss": Scale(4.0), "ndcg": Scale()}


def level(value: float) -> dict[str, float]:
    """Values of this level."""
    return {"loss": 4.0 * (1 - value), "ndcg": value}


def course(step: int) -> dict[str, BranchMetrics]:
    """Both branches know their training data at 100; "text" generalises from 1,000 to 2,000, "graph" never does."""
    known = min(step / 100, 1.0)
    late = 0.8 * min(max((step - 1000) / 1000, 0.0), 1.0)
    return {"graph": BranchMetrics(level(known), level(0.3 * known)), "text": BranchMetrics(level(known), level(late))}


def shown(name: str, strength: float = 2.0, half_life: float = 4.0, collapse: int = STEPS + 1):
    """Shares at every step, and the detector in the end."""
    detector, schedule, shares = GrokkingDetector(SCALES), build_gate_schedule(name, strength, half_life), {}
    for step in range(0, STEPS + 1, EVERY):
        branches = course(step if step < collapse else 0)
        branches = branches if step < collapse else {n: BranchMetrics(level(1.0), level(0.0)) for n in branches}
        for branch, each in (branches | {WHOLE: branches["graph"]}).items():
            detector.update(step, train=each.train, valid=each.valid, branch=branch)
        shares[step] = schedule(Snapshot(step, STEPS, branches, detector))
    return shares, detector


def test_a_branch_that_comes_late_gets_a_share_that_grows_with_its_lift_and_fades() -> None:
    shares, detector = shown("grokking")
    event = detector.event("text")
    assert event is not None
    distance = event.detected - event.evidence["memorised"]
    for step, share in shares.items():
        assert share["graph"] == 0.0
        if step <= 1375:  # before it is detected, and while the whole with its level of .3 does better
            assert share["text"] == 0.0
        elif step >= 1410:
            assert share["text"] > 0
    assert 1000 < event.detected < 1200
    lift = detector.lift("text")
    assert lift == pytest.approx(0.8, abs=0.01)
    assert shares[STEPS]["text"] == pytest.approx(2 * lift * 2 ** (-(STEPS - event.detected) / (4 * distance)))
    later = event.detected + EVERY * round(4 * distance / EVERY)
    assert detector.event("graph") is None
    assert later > STEPS or shares[later]["text"] == pytest.approx(lift, rel=0.01)


def test_a_collapse_takes_the_share_back() -> None:
    shares, detector = shown("grokking", collapse=3000)
    assert shares[2990]["text"] > 1
    assert shares[STEPS] == {"graph": 0.0, "text": 0.0}
    assert detector.event("text") is None


def test_the_ratio_is_gradient_blending() -> None:
    shares, _ = shown("ratio")
    start, now = course(0), course(1500)
    found = {}
    for name in ("graph", "text"):
        gained = start[name].valid["loss"] - now[name].valid["loss"]
        gap = (now[name].valid["loss"] - now[name].train["loss"]) - (
            start[name].valid["loss"] - start[name].train["loss"]
        )
        found[name] = max(gained, 1e-3) / max(gap, 1e-3) ** 2
    for name, value in found.items():
        assert shares[1500][name] == pytest.approx(value / sum(found.values()))


def test_the_late_phase_counts_what_is_gained_in_it() -> None:
    detector, schedule = GrokkingDetector(SCALES), build_gate_schedule("late", 2.0, 4.0)
    start = math.ceil(LATE_PHASE * STEPS / EVERY) * EVERY
    for step in range(0, STEPS + 1, EVERY):
        valid = 0.2 if step <= start else 0.5
        detector.update(step, train=level(0.5), valid=level(valid), branch="text")
        share = schedule(Snapshot(step, STEPS, {"text": BranchMetrics(level(0.5), level(valid))}, detector))["text"]
        if step <= start:
            assert share == 0.0
    assert share == pytest.approx(2 * 0.3)


def test_the_schedule_none_moves_nothing() -> None:
    shares, _ = shown("none")
    assert all(value == 0.0 for share in shares.values() for value in share.values())


def test_a_shift_goes_to_one_side() -> None:
    gamma = torch.tensor([0.1, 0.5, 0.9])
    for shift, expected in ((0.5, [0.55, 0.75, 0.95]), (-0.5, [0.05, 0.25, 0.45])):
        torch.testing.assert_close(shifted(gamma, torch.tensor(shift)), torch.tensor(expected))
    assert gate_shift({"text": 3.0, "graph": 0.0}, "text", "graph") == MAX_SHIFT
    assert gate_shift({"text": 0.0, "graph": 3.0}, "text", "graph") == -MAX_SHIFT
    assert gate_shift({"text": 0.7, "graph": 0.2}, "text", "graph") == pytest.approx(0.5)


def test_no_shift_leaves_gates_and_gradients_as_they_are_to_the_last_bit() -> None:
    raw = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain, moved = (raw.clone().requires_grad_() for _ in range(2))
    first, second = torch.sigmoid(plain), shifted(torch.sigmoid(moved), torch.zeros(()))
    assert torch.equal(first, second)
    for gamma in (first, second):
        (gamma * raw).sum().backward()
    assert torch.equal(plain.grad, moved.grad)
