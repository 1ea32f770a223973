"""The context gate and the text branch against their formulas, entry by entry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import Dense, cross_entropy, slope
from graphllmrec.data.tables import Histories
from graphllmrec.fuse import text_branch
from graphllmrec.fuse.gate import CONTEXTS, ContextGate, GateInputs, head_degree_of, memberships
from graphllmrec.fuse.text_branch import TextBranch, TextBranchConfig
from graphllmrec.models.base import TextVectors
from graphllmrec.rng import rng, torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.loop import Stage
from tiny import DECAY, ITEMS, QUERIES, QUERY, SPLIT, TASK, TEXT, TRAIN

DEGREES = [0, 1, 2, 3, 4, 10, 40, 300]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def routed(degree: int, cold_degree: float, head_degree: float) -> list[float]:
    p_cold = sigmoid(3 * (math.log(1 + cold_degree) - math.log(1 + degree)))
    p_head = sigmoid(3 * (math.log(1 + degree) - math.log(1 + head_degree)))
    return [p_cold * (1 - p_head), p_cold * p_head, (1 - p_cold) * (1 - p_head), (1 - p_cold) * p_head]


# contexts


@pytest.mark.parametrize(("cold_degree", "head_degree"), [(3.0, 30.0), (0.0, 1.0), (10.0, 5.0)])
def test_memberships_equal_the_formula_and_add_up_to_1(cold_degree: float, head_degree: float) -> None:
    found = memberships(torch.tensor(DEGREES), cold_degree, head_degree)
    expected = [routed(degree, cold_degree, head_degree) for degree in DEGREES]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-6)


def test_an_item_at_a_threshold_is_half_this_half_that() -> None:
    at_cold, at_head = memberships(torch.tensor([3, 1000]), 3.0, 1000.0)
    names = dict(zip(CONTEXTS, at_cold.tolist(), strict=True))
    assert names["cold/tail"] + names["cold/head"] == pytest.approx(0.5, abs=1e-6)
    names = dict(zip(CONTEXTS, at_head.tolist(), strict=True))
    assert names["cold/head"] + names["warm/head"] == pytest.approx(0.5, abs=1e-6)
    twice = memberships(torch.tensor([2001]), 3.0, 1000.0)[0]  # (1 + d) doubled: 8 : 1
    assert float(twice[3] + twice[1]) == pytest.approx(8 / 9, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [([1, 7, 2, 2, 4], 4), ([5, 5, 5, 5], 5), ([10, 1, 1], 10), ([0, 0, 3], 3), ([0, 0], 1.0), ([], 1.0), ([1], 1)],
)
def test_head_items_are_the_most_clicked_that_hold_half_of_all_clicks(degrees: list[int], expected: float) -> None:
    held, wanted = 0, 1.0
    for degree in sorted(degrees, reverse=True):
        if held < sum(degrees) / 2:
            held, wanted = held + degree, float(degree)
    assert head_degree_of(np.array(degrees, dtype=np.int64)) == wanted == expected


# γ, α and β


def inputs() -> GateInputs:
    """Eight items; item 0 has no clicks, item 2 no text, item 5 neither."""
    random = rng(3, "gate-test")
    features = torch.from_numpy(random.normal(size=(len(DEGREES), 2)).astype(np.float32))
    clicked = torch.tensor([False, True, True, True, True, False, True, True])
    has_text = torch.tensor([True, True, False, True, True, False, True, True])
    return GateInputs(memberships(torch.tensor(DEGREES), 3.0, 30.0), features, clicked, has_text)


def test_gate_scale_and_prior_are_mixtures_over_contexts() -> None:
    gate, given, random = ContextGate(num_features=2), inputs(), rng(4, "gate-test")
    for parameter in gate.parameters():
        parameter.data = torch.from_numpy(random.normal(size=tuple(parameter.shape)).astype(np.float32))
    with torch.no_grad():
        values = gate(given)
    a, w, s, b = (value.detach().double().numpy() for value in (gate.logit, gate.slope, gate.log_scale, gate.prior))
    x = given.features.double().numpy()
    for item, degree in enumerate(DEGREES):
        share = routed(degree, 3.0, 30.0)
        gamma = sum(share[c] * sigmoid(a[c] + w[c] @ x[item]) for c in range(4))
        gamma = 0.0 if not given.has_text[item] else 1.0 if not given.clicked[item] else gamma
        assert float(values.gamma[item]) == pytest.approx(gamma, abs=1e-6)
        assert float(values.scale[item]) == pytest.approx(sum(share[c] * math.exp(s[c]) for c in range(4)), abs=1e-6)
        assert float(values.prior[item]) == pytest.approx(sum(share[c] * b[c] for c in range(4)), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0, 5.0])
def test_the_static_gate_is_graph_plus_weight_times_text(weight: float) -> None:
    gate = ContextGate(num_features=2)
    gate.prior.data += 1
    gate.slope.data += 1
    gate.set_static(weight)
    values, given = gate(inputs()), inputs()
    both = given.clicked & given.has_text
    graph = values.scale * (1 - values.gamma)
    text = values.scale * values.gamma
    np.testing.assert_allclose(graph[both].detach().numpy(), 1, atol=2e-6)
    np.testing.assert_allclose(text[both].detach().numpy(), weight, atol=2e-6)
    np.testing.assert_allclose(graph[~given.has_text].detach().numpy(), 1 + weight, atol=2e-6)
    np.testing.assert_allclose(text[~given.clicked & given.has_text].detach().numpy(), 1 + weight, atol=2e-6)
    assert values.prior.tolist() == [0.0] * len(DEGREES)


def test_playing_cold_replaces_everything_the_gate_knows_but_the_text() -> None:
    given = inputs()
    cold = torch.tensor([False, True, True, False, False, False, False, True])
    one = GateInputs(
        memberships(torch.zeros(1), 3.0, 30.0), torch.zeros(1, 2), torch.tensor([False]), torch.tensor([True])
    )
    found = given.where_cold(cold, one)
    for item in range(len(DEGREES)):
        source, row = (one, 0) if cold[item] else (given, item)
        assert torch.equal(found.contexts[item], source.contexts[row])
        assert torch.equal(found.features[item], source.features[row])
    assert found.clicked.tolist() == [False, False, False, True, True, False, True, False]
    assert torch.equal(found.has_text, given.has_text)
    gamma = ContextGate(2)(found).gamma
    assert gamma[1] == 1
    assert gamma[2] == 0  # neither clicks nor text: nothing is left


# the text branch


def staged(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[TextBranch, Stage, dict[str, Dense]]:
    """A branch with random weights in its network, its training stage, and those weights in float64."""
    kept: list[Stage] = []

    def instead_of_training(stage: Stage, *_: Any) -> float:
        random = rng(6, "weights")
        for tensor in stage.module.parameters():
            tensor.data = torch.from_numpy(random.normal(0, 0.6, tuple(tensor.shape)).astype(np.float32))
        kept.append(stage)
        return 0.0

    monkeypatch.setattr(text_branch, "train", instead_of_training)
    branch = TextBranch(TextBranchConfig(dims=4, hidden=3, decay=DECAY, **settings))
    branch.fit(TASK)
    return branch, kept[0], {name: w.detach().double().numpy().copy() for name, w in kept[0].module.named_parameters()}


def unit(vector: Dense) -> Dense:
    length = math.sqrt(sum(value * value for value in vector))
    return vector / length if length else vector


def gelu(x: float) -> float:
    return x / 2 * (1 + math.erf(x / math.sqrt(2)))


def refined(weights: dict[str, Dense], keep: Dense | None = None) -> Dense:
    """t_i = (x_i + W2 gelu(W1 x_i)) / |…| of every item, x_i the whitened text at unit length."""
    whitened = Whitening.fit(TEXT, 4).apply(TEXT).double().numpy()
    out = np.zeros_like(whitened)
    for item in range(ITEMS):
        x = unit(whitened[item])
        hidden = np.array([gelu(float(row @ x)) for row in weights["inner"]])
        out[item] = unit(x + weights["outer"] @ (hidden if keep is None else hidden * keep[item]))
    return out


def faded_query(history: Any, vectors: Dense, decay: float) -> Dense:
    return unit(sum((decay ** (len(history) - 1 - n) * vectors[i] for n, i in enumerate(history)), np.zeros(4)))


def test_a_text_score_is_counted_in_standard_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    branch, _, weights = staged(monkeypatch)
    items = refined(weights)
    np.testing.assert_allclose(branch.items.numpy(), items, atol=1e-6)
    found = (branch.query_vectors(QUERIES.histories) @ branch.items.T).numpy()
    for row, history in enumerate(QUERY):
        cosines = items @ faded_query(history, items, DECAY)
        spread = np.std([cosines[item] for item in range(ITEMS) if TEXT.present[item]])
        expected = cosines / spread if len(history) else np.zeros(ITEMS)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=2e-6)
    with_text = found[:3][:, TEXT.present.numpy()]
    np.testing.assert_allclose(with_text.std(1), 1, atol=1e-5)


def test_without_an_order_nothing_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_branch, "train", lambda *_: 0.0)
    branch = TextBranch(TextBranchConfig(dims=4, decay=DECAY))
    branch.fit(replace(TASK, split=replace(SPLIT, ordered=False)))
    assert branch.decay == 1.0
    forth, back = (branch.query_vectors(Histories.from_lists([walk])) for walk in ([1, 3, 5], [5, 3, 1]))
    torch.testing.assert_close(forth, back)


def test_an_untrained_branch_compares_whitened_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_branch, "train", lambda *_: 0.0)
    branch = TextBranch(TextBranchConfig(dims=4))
    branch.fit(TASK)
    whitened = Whitening.fit(TEXT, 4).apply(TEXT)
    torch.testing.assert_close(branch.items, torch.nn.functional.normalize(whitened, dim=1))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_text_step_is_info_nce_among_the_targets_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    _, stage, weights = staged(monkeypatch, dropout=dropout, temperature=0.4)
    rows = np.array([3, 0, 11, 7, 4, 20])
    pairs = [(walk[:at].tolist(), int(walk[at])) for walk in TRAIN for at in range(1, len(walk))]
    targets = [pairs[row][1] for row in rows]
    assert len(set(targets)) < len(targets)  # the case of a negative that is the positive is there
    keep = None
    if dropout:
        drawn = torch.rand(ITEMS, 3, generator=torch_rng(TASK.seed, "text/dropout", 2, 1))
        keep = (drawn >= dropout).double().numpy() / (1 - dropout)

    def expected() -> float:
        items, total = refined(weights, keep), 0.0
        for place, row in enumerate(rows):
            query = faded_query(pairs[row][0], items, DECAY)
            among = [other for other in range(len(rows)) if other == place or targets[other] != targets[place]]
            scores = [float(query @ items[targets[other]]) / 0.4 for other in among]
            total += cross_entropy(scores, among.index(place)) / len(rows)
        return total

    loss = stage.loss(2, 1, rows)
    loss.backward()
    assert stage.num_examples == len(pairs)
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-6)
    for name, parameter in stage.module.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), slope(expected, weights[name]), atol=2e-6, err_msg=name)


def test_new_text_gets_the_vector_it_would_have_had(monkeypatch: pytest.MonkeyPatch) -> None:
    branch, _, _ = staged(monkeypatch)
    torch.testing.assert_close(branch.vectors_of(TEXT), branch.items)
    silent = TextVectors(torch.zeros(2, TEXT.vectors.shape[1]), torch.zeros(2, dtype=torch.bool))
    assert branch.vectors_of(silent).count_nonzero() == 0


def test_a_text_branch_survives_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    branch, _, _ = staged(monkeypatch)
    again = TextBranch(branch.config)
    again.restore(branch.state())
    assert torch.equal(again.query_vectors(QUERIES.histories), branch.query_vectors(QUERIES.histories))
    assert torch.equal(again.vectors_of(TEXT), branch.vectors_of(TEXT))
