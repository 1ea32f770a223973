"""The context gate against its formulas, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from graphllmrec.nn.gate import (
    CONTEXTS,
    LEARNABLE,
    ROUTED,
    ContextGate,
    GateInputs,
    head_degree,
    memberships,
    routed,
)
from graphllmrec.rng import rng

DEGREES = [0, 1, 2, 3, 4, 10, 40, 300]
THRESHOLDS = pytest.mark.parametrize(("cold_degree", "head_degree"), [(3.0, 30.0), (0.0, 1.0), (10.0, 5.0)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def soft(degree: int, cold_degree: float, head_degree: float) -> list[float]:
    """Cold or warm × tail or head."""
    p_cold = sigmoid(3 * (math.log(1 + cold_degree) - math.log(1 + degree)))
    p_head = sigmoid(3 * (math.log(1 + degree) - math.log(1 + head_degree)))
    return [p_cold * (1 - p_head), p_cold * p_head, (1 - p_cold) * (1 - p_head), (1 - p_cold) * p_head]


def shares(degree: int, cold_degree: float, head_degree: float) -> list[float]:
    """π, new items first."""
    return [0.0, *soft(degree, cold_degree, head_degree)] if degree else [1.0, 0.0, 0.0, 0.0, 0.0]


# contexts


@THRESHOLDS
def test_memberships_equal_the_formula_and_add_up_to_1(cold_degree: float, head_degree: float) -> None:
    found = memberships(torch.tensor(DEGREES), cold_degree, head_degree)
    expected = [shares(degree, cold_degree, head_degree) for degree in DEGREES]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-6)


@THRESHOLDS
def test_where_items_are_only_routed_those_without_clicks_are_as_well(cold_degree: float, head_degree: float) -> None:
    found = routed(torch.tensor(DEGREES), cold_degree, head_degree)
    expected = [soft(degree, cold_degree, head_degree) for degree in DEGREES]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-6)


@THRESHOLDS
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_a_new_item_is_new_and_nothing_else(cold_degree: float, head_degree: float, kind: torch.dtype) -> None:
    found = memberships(torch.tensor([0, 1, 0, 300], dtype=kind), cold_degree, head_degree)
    assert list(CONTEXTS) == ["new", "cold/tail", "cold/head", "warm/tail", "warm/head"]
    assert list(CONTEXTS[1:]) == list(ROUTED)
    assert found[[0, 2]].tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]] * 2  # exactly
    assert found[[1, 3], 0].tolist() == [0.0, 0.0]  # one click is enough not to be new
    assert torch.equal(found[[1, 3], 1:], routed(torch.tensor([1, 300]), cold_degree, head_degree))


def test_an_item_at_a_threshold_is_half_this_half_that() -> None:
    at_cold, at_head = memberships(torch.tensor([3, 1000]), 3.0, 1000.0)
    names = dict(zip(CONTEXTS, at_cold.tolist(), strict=True))
    assert names["cold/tail"] + names["cold/head"] == pytest.approx(0.5, abs=1e-6)
    names = dict(zip(CONTEXTS, at_head.tolist(), strict=True))
    assert names["cold/head"] + names["warm/head"] == pytest.approx(0.5, abs=1e-6)
    twice = memberships(torch.tensor([2001]), 3.0, 1000.0)[0]  # (1 + d) doubled: 8 : 1
    names = dict(zip(CONTEXTS, twice.tolist(), strict=True))
    assert names["cold/head"] + names["warm/head"] == pytest.approx(8 / 9, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ([1, 7, 2, 2, 4], 4),
        ([5, 5, 5, 5], 5),
        ([10, 1, 1], 10),
        ([2, 4, 2], 4),
        ([0, 0, 3], 3),
        ([0, 0], 1.0),
        ([], 1.0),
        ([1], 1),
    ],
)
def test_head_items_are_the_most_clicked_that_hold_half_of_all_clicks(degrees: list[int], expected: float) -> None:
    held, wanted = 0, 1.0
    for degree in sorted(degrees, reverse=True):
        if held < sum(degrees) / 2:
            held, wanted = held + degree, float(degree)
    assert head_degree(np.array(degrees, dtype=np.int64)) == wanted == expected


# weights and biases

EXPERTS, ITEM_FEATURES, QUERY_FEATURES = 3, 2, 2


def inputs() -> GateInputs:
    """Eight items with random features."""
    features = rng(3, "gate-test").normal(size=(len(DEGREES), ITEM_FEATURES)).astype(np.float32)
    zeros = torch.zeros(len(features))
    return GateInputs(memberships(torch.tensor(DEGREES), 3.0, 30.0), torch.from_numpy(features), zeros)


def random_gate() -> ContextGate:
    gate, random = ContextGate(EXPERTS, ITEM_FEATURES, QUERY_FEATURES), rng(4, "gate-test")
    for tensor in gate.state_dict().values():
        tensor.copy_(torch.from_numpy(random.normal(size=tuple(tensor.shape)).astype(np.float32)))
    return gate


def test_weights_and_biases_equal_the_formula() -> None:
    gate, given = random_gate(), inputs()
    asked = torch.from_numpy(rng(5, "gate-test").normal(size=(4, QUERY_FEATURES)).astype(np.float32))
    with torch.no_grad():
        (weights, bias), factors = gate.weigh_items(given), gate.query_factors(asked)
    a, s, t, b = (
        value.detach().double().numpy()
        for value in (gate.log_weight, gate.item_slope, gate.query_slope, gate.context_bias)
    )
    x, y = given.features.double().numpy(), asked.double().numpy()
    for item, degree in enumerate(DEGREES):
        share = shares(degree, 3.0, 30.0)
        assert float(bias[item]) == pytest.approx(sum(share[c] * b[c] for c in range(5)), abs=1e-6)
        for expert in range(EXPERTS):
            inner = sum(share[c] * a[c, expert] for c in range(5))
            inner += sum(x[item, f] * s[f, expert] for f in range(ITEM_FEATURES))
            assert float(weights[item, expert]) == pytest.approx(math.exp(inner), rel=2e-6)
            for query in range(4):
                bent = inner + sum(y[query, f] * t[f, expert] for f in range(QUERY_FEATURES))
                found = float(weights[item, expert] * factors[query, expert])
                assert found == pytest.approx(math.exp(bent), rel=4e-6)


@torch.no_grad()
def test_a_new_item_has_weights_and_a_bias_of_its_own() -> None:
    gate, given = random_gate(), inputs()
    weights, bias = gate.weigh_items(given)
    new, clicked = DEGREES.index(0), [item for item, degree in enumerate(DEGREES) if degree]
    gate.log_weight[0] += torch.tensor([math.log(2), 0.0, -1.0])
    gate.context_bias[0] += 0.7
    after, bias_after = gate.weigh_items(given)
    assert torch.equal(after[clicked], weights[clicked])
    assert torch.equal(bias_after[clicked], bias[clicked])
    torch.testing.assert_close(after[new], weights[new] * torch.tensor([2.0, 1.0, math.exp(-1)]), rtol=1e-5, atol=0)
    assert float(bias_after[new]) == pytest.approx(float(bias[new]) + 0.7, abs=1e-6)
    gate.log_weight[1:] += 1.0  # what is said of clicked items does not concern it
    gate.context_bias[1:] += 1.0
    last, bias_last = gate.weigh_items(given)
    assert torch.equal(last[new], after[new])
    assert torch.equal(bias_last[new], bias_after[new])
    torch.testing.assert_close(last[clicked], math.e * after[clicked], rtol=1e-5, atol=0)


def test_a_gate_of_an_earlier_version_has_a_shift_that_is_left_out() -> None:
    gate, earlier = ContextGate(EXPERTS, ITEM_FEATURES, QUERY_FEATURES), random_gate()
    gate.restore({**earlier.state_dict(), "shift": torch.zeros(EXPERTS)})
    assert all(torch.equal(found, earlier.state_dict()[name]) for name, found in gate.state_dict().items())


def test_a_static_gate_gives_every_item_and_query_the_same_weights() -> None:
    gate = random_gate()
    gate.set_static(torch.tensor([0.6, 0.0, 1.4]))
    weights, bias = gate.weigh_items(inputs())
    expected = torch.tensor([0.3, 0.0, 0.7]).expand(len(DEGREES), -1)
    torch.testing.assert_close(weights.detach(), expected, rtol=2e-6, atol=1e-20)
    assert bias.tolist() == [0.0] * len(DEGREES)
    assert gate.query_factors(torch.ones(2, QUERY_FEATURES)).tolist() == [[1.0] * EXPERTS] * 2


def test_where_the_gate_learns_no_expert_starts_from_nothing() -> None:
    gate = random_gate()
    gate.set_static(torch.tensor([1.0, 0.0, 0.0]), LEARNABLE)
    weights, _ = gate.weigh_items(inputs())
    expected = torch.tensor([1.0, LEARNABLE, LEARNABLE]).expand(len(DEGREES), -1)
    torch.testing.assert_close(weights.detach(), expected, rtol=2e-6, atol=0)
    weights[:, 1].sum().backward()
    assert float(gate.log_weight.grad[:, 1].abs().min()) > 0
