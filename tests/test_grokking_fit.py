"""A whole fit of RecMind whose graph branch groks: the event is detected, and a share of the gate is handed over."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

spec = spec_from_file_location("grokking_fit", Path(__file__).parents[1] / "benchmarks" / "grokking_fit.py")
assert spec is not None
assert spec.loader is not None
benchmark = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(benchmark)

SHORT = {"learning_rate": 2e-2, "epochs": 300, "validate_every": 10}


@pytest.fixture(scope="module")
def fits() -> tuple[Any, Any]:
    """Without and with the schedule."""
    return tuple(benchmark.Fit("nothing", 0, gate_schedule=name, **SHORT) for name in ("none", "grokking"))


def test_the_graph_branch_memorises_first_and_generalises_late(fits: tuple[Any, Any]) -> None:
    _, fit = fits
    kinds = [event["kind"] for event in fit.events if event["branch"] == "graph"]
    assert kinds == ["memorised", "generalising"]
    event = fit.event
    assert event["evidence"]["train"] >= 0.9
    assert event["detected"] >= 2 * event["evidence"]["memorised"]
    valid = [each["branches"]["graph"]["valid"]["ndcg@20"] for each in fit.epochs]
    before, after = (valid[fit.steps.index(step)] for step in (event["evidence"]["memorised"], fit.steps[-1]))
    assert after > 2 * before


def test_a_share_of_the_gate_goes_to_the_branch_from_then_on(fits: tuple[Any, Any]) -> None:
    plain, fit = fits
    assert fit.first_share >= fit.event["detected"]
    first = fit.steps.index(fit.first_share)
    assert not any(fit.shares[:first])
    assert all(0.05 < share < 0.95 for share in fit.shares[first:])
    assert not any(each["share"]["text"] for each in fit.epochs)
    until = slice(0, first + 1)  # the gate is moved after the validation
    np.testing.assert_array_equal(fit.valid[until], plain.valid[until])
    assert [fit.text_weight(step) for step in fit.steps[until]] == [
        plain.text_weight(step) for step in fit.steps[until]
    ]
    after = fit.steps[first + 1 :]
    assert all(fit.text_weight(step) < plain.text_weight(step) for step in after)
    share = fit.shares[first]
    assert fit.text_weight(after[0]) == pytest.approx((1 - share) * plain.text_weight(after[0]), rel=0.1)
