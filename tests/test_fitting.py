"""Fitting the gate against loops: the board, its NDCG, query features, a step, folds, lifts of cold and new items."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import Dense, cross_entropy, slope
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories
from graphllmrec.errors import RecipeError
from graphllmrec.models.fusion import gate_fitting as fitting
from graphllmrec.models.fusion.gate_fitting import (
    Folds,
    GateTargets,
    build_gate_targets,
    context_drift,
    fit_gate,
    keep_up_new,
    lift_cold,
    out_of_fold,
    query_features,
    tune_prior,
)
from graphllmrec.models.fusion.hybrid import GateConfig
from graphllmrec.nn.gate import CONTEXTS, ContextGate, GateInputs, head_degree
from graphllmrec.protocol import Queries, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.loop import TrainingStage
from tiny import CLICKS, QUERIES, QUERY, SPLIT, TASK, TRAIN, USERS, Notes, fitted
from world import block_world

ITEMS, EXPERTS, ASKED = 30, 3, 9
DEGREES = [int(degree) for degree in np.arange(ITEMS) % 7]
KNOWN = [[(3 * query + n) % ITEMS for n in range(query % 4)] for query in range(ASKED)]  # some know nothing
ROW = [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 8]  # queries 4 and 8 have more targets than one
TARGET = [5, 7, 21, 20, 1, 2, 0, 9, 9, 14, 16, 28]  # items 0, 7, 14, 21, 28 have no click


def targets_by_hand() -> GateTargets:
    random = rng(1, "board")
    return GateTargets(
        experts=torch.from_numpy(random.normal(size=(EXPERTS, ASKED, ITEMS))).half(),
        features=torch.from_numpy(random.normal(size=(ASKED, 2)).astype(np.float32)),
        known=Histories.from_lists(KNOWN),
        row=torch.tensor(ROW),
        target=torch.tensor(TARGET),
        count=torch.bincount(torch.tensor(ROW), minlength=ASKED),
        weight=torch.ones(ASKED),
    )


def shares(degrees: Any, cold_degree: float, head_degree: float) -> Dense:
    """π (n, 5) by the formula."""
    out = np.zeros((len(degrees), 5))
    for item, degree in enumerate(degrees):
        p_cold = 1 / (1 + ((1 + degree) / (1 + cold_degree)) ** 3)
        p_head = 1 / (1 + ((1 + head_degree) / (1 + degree)) ** 3)
        soft = [p_cold * (1 - p_head), p_cold * p_head, (1 - p_cold) * (1 - p_head), (1 - p_cold) * p_head]
        out[item] = [0, *soft] if degree else [1, 0, 0, 0, 0]
    return out


def inputs() -> GateInputs:
    features = torch.from_numpy(rng(2, "board").normal(size=(ITEMS, 2)).astype(np.float32))
    return GateInputs(torch.from_numpy(shares(DEGREES, 2.5, 5.0)).float(), features, torch.zeros(len(features)))


def random_gate(seed: int = 3, size: float = 0.2) -> ContextGate:
    gate, random = ContextGate(EXPERTS, 2, 2), rng(seed, "board")
    for parameter in gate.parameters():
        parameter.data = torch.from_numpy(random.normal(0, size, tuple(parameter.shape)).astype(np.float32))
    return gate


def doubles(gate: ContextGate) -> dict[str, Dense]:
    return {name: value.detach().double().numpy().copy() for name, value in gate.named_parameters()}


CONTEXT_OF = torch.from_numpy(shares(SPLIT.item_degree(), 3.0, 5.0)).float()  # of the tiny world
ZSCORES, ASKING = targets_by_hand().experts.double().numpy(), targets_by_hand().features.double().numpy()
SHARES, ABOUT = shares(DEGREES, 2.5, 5.0), inputs().features.double().numpy()


def gated(w: dict[str, Dense], query: int, item: int) -> float:
    """Σ_e w_e z_e + β of the hand-made targets."""
    share, x, y, z = SHARES[item], ABOUT[item], ASKING[query], ZSCORES[:, query, item]
    total = float(share @ w["context_bias"])
    for expert in range(EXPERTS):
        inner = sum(share[c] * w["log_weight"][c, expert] for c in range(5))
        inner += sum(x[f] * w["item_slope"][f, expert] + y[f] * w["query_slope"][f, expert] for f in range(2))
        total += math.exp(inner) * z[expert]
    return total


# the targets


def test_scores_of_the_targets_are_gated_and_known_items_come_last() -> None:
    gate = random_gate()
    rows = torch.tensor([4, 0, 7])
    found, w = targets_by_hand().scores(gate, inputs(), rows).detach(), doubles(gate)
    for place, query in enumerate(rows.tolist()):
        for item in range(ITEMS):
            if item in KNOWN[query]:
                assert float(found[place, item]) == -1e4
            else:
                assert float(found[place, item]) == pytest.approx(gated(w, query, item), abs=5e-6)


def ndcg(scores: Dense, query: int) -> float:
    """NDCG@20 of a query whose scores (ITEMS,) are given; what it knows is not ranked, equal scores count against."""
    targets = [item for row, item in zip(ROW, TARGET, strict=True) if row == query]
    gain = 0.0
    for target in targets:
        rivals = [item for item in range(ITEMS) if item != target and item not in KNOWN[query]]
        rank = sum(1 for item in rivals if scores[item] >= scores[target])
        gain += 1 / math.log2(rank + 2) if rank < 20 else 0.0
    return gain / sum(1 / math.log2(place + 2) for place in range(len(targets)))


def test_ndcg_of_the_targets_equals_a_loop_over_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_ROWS", 4)  # several blocks
    gate, w = random_gate(), doubles(random_gate())
    expected = [ndcg(np.array([gated(w, query, item) for item in range(ITEMS)]), query) for query in range(ASKED)]
    assert 0 in expected  # one is not among the first 20
    np.testing.assert_allclose(targets_by_hand().ndcg(gate, inputs()).numpy(), expected, atol=1e-6)
    some = [7, 1, 8, 4, 2]  # in this order
    found = targets_by_hand().ndcg(gate, inputs(), torch.tensor(some))
    np.testing.assert_allclose(found.numpy(), [expected[query] for query in some], atol=1e-6)


def test_equal_scores_count_against_a_target() -> None:
    flat = replace(targets_by_hand(), experts=torch.zeros(EXPERTS, ASKED, ITEMS).half())
    gate = ContextGate(EXPERTS, 2, 2)  # no biases: every item scores 0
    expected = [ndcg(np.zeros(ITEMS), query) for query in range(ASKED)]
    np.testing.assert_allclose(flat.ndcg(gate, inputs()).numpy(), expected, atol=1e-6)


def test_the_gate_targets_hold_the_z_scores_for_validation_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_ROWS", 5)
    model, degree = fitted("z-sum"), torch.from_numpy(SPLIT.item_degree()).float()
    made = build_gate_targets(model, TASK, degree, [1], CONTEXT_OF, GateConfig())
    queries = Queries.of(SPLIT.known("valid"), np.arange(USERS))
    zscores = torch.stack([model.branch_scores(queries, name) for name in model.branches])
    torch.testing.assert_close(made.experts.float(), zscores, rtol=1e-3, atol=1e-3)  # half precision
    torch.testing.assert_close(made.features, query_features(queries, zscores, degree, [1]))
    assert [made.known[row].tolist() for row in range(USERS)] == [walk.tolist() for walk in TRAIN]
    assert list(zip(made.row.tolist(), made.target.tolist(), strict=True)) == list(
        zip(SPLIT.valid.user.tolist(), SPLIT.valid.item.tolist(), strict=True)
    )
    assert made.count.tolist() == [1] * USERS
    centre = made.features.mean(0)
    torch.testing.assert_close(made.centred(centre).features.mean(0), torch.zeros(3), rtol=0, atol=1e-6)


def test_gate_targets_keep_no_more_users_than_the_limit_and_no_more_numbers_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, degree, notes = fitted("z-sum"), torch.ones(9), Notes()
    some = build_gate_targets(model, TASK, degree, [1], CONTEXT_OF, GateConfig(tune_users=5))
    assert some.experts.shape == (3, 5, 9)
    monkeypatch.setattr(fitting, "_HELD", 3 * 9 * 8 + 5)  # more than half of the users: all items are kept
    task = replace(TASK, logger=notes)
    assert build_gate_targets(model, task, degree, [1], CONTEXT_OF, GateConfig()).experts.shape == (3, 8, 9)
    said = notes.events["gate-users"]
    assert (said["users"], said["of"], said["columns"], said["items"]) == (8, USERS, 9, 9)


def test_a_gate_that_does_not_fit_into_memory_is_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: 1_500_000_000)
    held, step = 10_000 * 15_000 * (4 * 2 + 16), 4 * 256 * 15_000 * (4 * 4 + 4)
    with pytest.raises(
        RecipeError, match=r"on 10,000 users needs 3\.91 GB, 1\.50 GB are free; lower it, or use model\.f"
    ):
        fitting._check_memory(4, 10_000, 15_000, 256, 1_000)
    assert fitting._check_memory(4, 1_000, 15_000, 256, 1_000) == held // 10 + step
    monkeypatch.setattr(fitting, "free_memory", lambda: held // 10 + 4 * 10**8 * (2 * 4 + 4))
    assert fitting._check_memory(4, 1_000, 15_000, 256, 10**8) == fitting.free_memory()  # scores of a block are more
    monkeypatch.setattr(fitting, "free_memory", lambda: 10_000)
    with pytest.raises(RecipeError, match="fitting the gate on 14 users"):
        build_gate_targets(fitted("z-sum"), TASK, torch.ones(9), [1], CONTEXT_OF, GateConfig())


def test_one_user_is_the_least_and_so_is_one_query_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_HELD", 10)
    made = build_gate_targets(fitted("z-sum"), TASK, torch.ones(9), [1], CONTEXT_OF, GateConfig())
    assert made.experts.shape == (3, 1, 9)
    monkeypatch.setattr(fitting, "_HELD", 3 * 9 * USERS)
    for held, step in ((10, 1), (3 * 9 * 4 + 5, 4), (10_000, 5)):
        monkeypatch.setattr(fitting, "_BLOCK", held)
        monkeypatch.setattr(fitting, "_ROWS", 5)
        steps = Steps()
        build_gate_targets(fitted("z-sum"), replace(TASK, logger=steps), torch.ones(9), [1], CONTEXT_OF, GateConfig())
        assert steps.sizes == [min(step, USERS - start) for start in range(0, USERS, step)]


class Steps(Notes):
    """Keeps how many queries are scored at a time, too."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def advance(self, steps: int = 1, **values: float | str) -> None:
        self.sizes.append(steps)


def test_the_memory_that_is_checked_is_that_of_the_fit_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(fitting, "_check_memory", lambda *about: asked.append(about) or 123_456_789)
    monkeypatch.setattr(fitting, "_ROWS", 5)
    task = replace(TASK, logger=(notes := Notes()))
    build_gate_targets(fitted("z-sum"), task, torch.ones(9), [1], CONTEXT_OF, GateConfig(batch_size=77))
    assert asked == [(3, USERS, 9, 77, 5 * 9)]  # experts, users, columns, batch, scores computed at a time
    assert notes.events["gate-users"]["gb"] == 0.12


# some columns of each query


def block_targets(limit: int = 10_000) -> tuple[GateTargets, GateInputs]:
    """Of the block world, and what the gate reads of its items."""
    world = block_world()
    model, degree = fitted("z-sum", world.task()), torch.from_numpy(world.split.item_degree()).float()
    features = torch.from_numpy(rng(2, "board").normal(size=(len(degree), 2)).astype(np.float32))
    about = GateInputs(
        torch.from_numpy(shares(degree.tolist(), 2.5, 5.0)).float(), features, torch.zeros(len(features))
    )
    return build_gate_targets(model, world.task(), degree, [1], about.contexts, GateConfig(tune_users=limit)), about


def gate_of_three_features(seed: int = 3) -> ContextGate:
    gate = ContextGate(EXPERTS, 2, 3)
    for number, parameter in enumerate(gate.parameters()):
        values = rng(seed, "slopes", number).normal(0, 0.3, tuple(parameter.shape))
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return gate


@pytest.mark.parametrize(("highest", "sampled"), [(100, 1), (1, 100), (3, 100)])
def test_columns_that_hold_every_item_give_the_figures_of_all_items(
    monkeypatch: pytest.MonkeyPatch, highest: int, sampled: int
) -> None:
    monkeypatch.setattr(fitting, "HIGHEST", highest)
    monkeypatch.setattr(fitting, "SAMPLED", sampled)
    whole, about = block_targets()
    targets = block_world().split.targets("valid")
    columns = fitting._Chooser.of(about.contexts, 0).choose(whole.experts.float(), whole.known, targets, 1)
    kept = whole.experts.gather(2, columns.items.long().expand(EXPERTS, -1, -1))
    some = replace(whole, experts=kept, columns=columns)
    gate, pairs = gate_of_three_features(), torch.tensor([3, 0, 7, 5])
    for one, other in ((whole, some), (some, whole)):
        grown = one.cross_entropy(gate, about, pairs).sum()
        gradients = torch.autograd.grad(grown, list(gate.parameters()))
        wanted = other.cross_entropy(gate, about, pairs).sum()
        torch.testing.assert_close(grown, wanted, rtol=1e-5, atol=1e-5)
        for found, expected in zip(gradients, torch.autograd.grad(wanted, list(gate.parameters())), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some.ndcg(gate, about), whole.ndcg(gate, about))


def test_columns_are_ranked_once_known_items_never_and_targets_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "HIGHEST", 4)
    monkeypatch.setattr(fitting, "SAMPLED", 5)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_HELD", EXPERTS * 72 * 59)  # less than half of the 120 users
        patch.setattr(fitting, "_BLOCK", EXPERTS * 72 * 50)  # several blocks
        some, about = block_targets()
    whole, _ = block_targets(len(some.count))  # the same users
    columns = some.columns
    assert whole.columns is None
    assert columns is not None
    assert len(some.count) == 59 * 72 // columns.items.shape[1] > 59  # 59 users with all items
    assert columns.items.shape == columns.stands_for.shape == some.experts.shape[1:]
    groups = about.contexts.argmax(1)
    for query in range(len(some.count)):
        ranked = [(int(item), float(n)) for item, n in zip(columns.items[query], columns.stands_for[query]) if n]  # noqa: B905
        items = [item for item, _ in ranked]
        assert len(set(items)) == len(items)
        assert not set(items) & set(some.known[query].tolist())
        pair = int((some.row == query).nonzero())
        target, place = int(some.target[pair]), int(columns.place[pair])
        assert (int(columns.items[query, place]), float(columns.stands_for[query, place])) == (target, 1.0)
        for expert in range(EXPERTS):  # the four highest of every expert and context
            zscores = whole.experts[expert, query].clone()
            zscores[torch.from_numpy(whole.known[query])] = -1e4
            for group in set(groups.tolist()):
                own = (groups == group).nonzero()[:, 0]
                lowest = zscores[own].sort(descending=True).values[:4][-1]
                sure = {int(item) for item in own if zscores[item] > lowest and zscores[item] > -1e4}
                assert sure <= {item for item, n in ranked if n == 1}


@pytest.mark.parametrize(("room", "width", "whole"), [(60, 0, True), (59, 0, False), (30, 71, True)])
def test_all_items_are_kept_where_half_of_the_users_fit_or_columns_would_not_be_fewer(
    monkeypatch: pytest.MonkeyPatch, room: int, width: int, whole: bool
) -> None:
    """Of 120 users and 72 items, each user with one target."""
    monkeypatch.setattr(fitting, "HIGHEST", 4)
    monkeypatch.setattr(fitting, "SAMPLED", 5)
    if width:
        monkeypatch.setattr(fitting._Chooser, "width", lambda chooser, experts: width)
    monkeypatch.setattr(fitting, "_HELD", EXPERTS * 72 * room)
    targets, _ = block_targets()
    assert (targets.columns is None) == whole
    if whole:
        assert targets.experts.shape == (EXPERTS, room, 72)


def test_cross_entropy_counts_a_sampled_item_as_often_as_it_stands_for() -> None:
    whole, gate, w = targets_by_hand(), random_gate(), doubles(random_gate())
    items = [[TARGET[ROW.index(query)], *((query + np.arange(3, 27, 4)) % ITEMS)] for query in range(ASKED)]  # (U, 7)
    stands_for = np.array([[1, 1, 0, 2.5, 1, 4, 2.5]] * ASKED)  # 0: not ranked
    chosen = torch.tensor(np.array(items))
    columns = fitting.Columns(chosen.int(), torch.from_numpy(stands_for).float(), torch.zeros(len(ROW)).long())
    some = replace(whole, experts=whole.experts.gather(2, chosen.expand(EXPERTS, -1, -1)), columns=columns)
    pairs = [0, 3, 8]
    found = some.cross_entropy(gate, inputs(), torch.tensor(pairs)).detach()
    for place, query in enumerate(ROW[pair] for pair in pairs):
        terms = [
            number * math.exp(gated(w, query, item))
            for item, number in zip(items[query], stands_for[query], strict=True)
        ]
        expected = math.log(sum(terms)) - gated(w, query, items[query][0])
        assert float(found[place]) == pytest.approx(expected, abs=1e-5)


def test_the_columns_move_to_another_device_with_the_targets() -> None:
    columns = fitting.Columns(torch.zeros(ASKED, 2).int(), torch.ones(ASKED, 2), torch.zeros(len(ROW)).long())
    moved = replace(targets_by_hand(), columns=columns).to(torch.device("meta"))
    assert moved.columns is not None
    moving = [*vars(moved).values(), *vars(moved.columns).values()]
    assert {part.device.type for part in moving if isinstance(part, torch.Tensor)} == {"meta"}
    assert targets_by_hand().to(torch.device("meta")).columns is None


def test_sums_over_columns_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Σ exp(score) and the number of better items, over many samples, against all items."""
    monkeypatch.setattr(fitting, "HIGHEST", 1)
    monkeypatch.setattr(fitting, "SAMPLED", 4)
    contexts, random = torch.from_numpy(shares(DEGREES, 2.5, 5.0)), rng(8, "columns")
    zscores = torch.from_numpy(random.normal(size=(EXPERTS, 2, ITEMS)).astype(np.float32))
    known, targets = Histories.from_lists([[3, 8], []]), Histories.from_lists([[5], [7, 20]])
    values = zscores.sum(0).exp()  # (2, ITEMS)
    expected = [sum(float(values[q, j]) for j in range(ITEMS) if j not in known[q].tolist()) for q in range(2)]
    better = [sum(j not in known[q].tolist() and bool(values[q, j] >= 1) for j in range(ITEMS)) for q in range(2)]
    sums, counts = np.zeros((400, 2)), np.zeros((400, 2))
    for seed in range(400):
        columns = fitting._Chooser.of(contexts, seed).choose(zscores, known, targets, 2)
        kept = values.gather(1, columns.items.long())
        sums[seed] = (kept * columns.stands_for).sum(1).numpy()
        counts[seed] = ((kept >= 1) * columns.stands_for).sum(1).numpy()
    for found, wanted in ((sums, expected), (counts, better)):
        error = np.abs(found.mean(0) - wanted) / (found.std(0) / 20)
        assert (error < 4).all()
        assert (found.std(0) > 0).all()


@pytest.mark.parametrize(("text", "leaders"), [([2], (0, 2)), ([0, 1], (2, 0)), ([], None), ([0, 1, 2], None)])
def test_query_features_are_those_of_the_history_and_the_agreement_of_the_branches(
    text: list[int], leaders: Any
) -> None:
    experts = torch.from_numpy(rng(5, "board").normal(size=(3, len(QUERY), 9)).astype(np.float32))
    degree = [float(CLICKS[:, item].sum()) for item in range(9)]
    found = query_features(QUERIES, experts, torch.tensor(degree), text)
    for query, history in enumerate(QUERY):
        logs = sum(math.log(1 + degree[item]) for item in history)
        expected = [math.log(1 + len(history)) / 3, logs / max(len(history), 1) / 5, 0.0]
        if leaders:
            graph, words = (experts[place, query].double().numpy() for place in leaders)
            expected[2] = sum(graph[item] * words[item] for item in range(9)) / 9
        np.testing.assert_allclose(found[query].numpy(), expected, atol=1e-6)


# what targets weigh


def test_a_query_counts_as_the_contexts_of_its_targets_drift() -> None:
    drift = [2.0, 1.5, 1.0, 0.9, 0.5]
    made = targets_by_hand().weighted(inputs().contexts, torch.tensor(drift))
    raw = []
    for query in range(ASKED):
        own = [pair for pair in range(len(ROW)) if ROW[pair] == query]
        raw.append(sum(SHARES[TARGET[pair]] @ drift for pair in own) / len(own))
    np.testing.assert_allclose(made.weight.numpy(), np.array(raw) / np.mean(raw), rtol=1e-6)
    values = torch.arange(ASKED).float()
    assert made.mean(values) == pytest.approx(float(np.mean(values.numpy() * np.array(raw) / np.mean(raw))))


def drifting_split() -> Split:
    """The block world, in which user 0 has ended with an item nobody else knows, and some then click new items."""
    world = block_world()
    split, train, valid = world.split, world.split.train.item.copy(), world.split.valid.item.copy()
    train[np.flatnonzero(split.train.user == 0)[-1]] = world.cold[0]
    valid[:3], valid[3] = world.cold[1], world.cold[0]
    return replace(split, train=replace(split.train, item=train), valid=replace(split.valid, item=valid))


@pytest.mark.parametrize("short", [False, True])
def test_contexts_drift_from_the_last_training_clicks_to_validation(short: bool) -> None:
    split, cold = drifting_split(), 2.0
    if short:  # users of one training click, and of two
        row = np.arange(len(split.train)) % 5
        split = replace(split, train=split.train.where((row < 1) | (split.train.user % 3 != 1) & (row < 2)))
    known = split.train.histories(split.num_users)
    degree = np.zeros(split.num_items, dtype=np.int64)
    last = []
    for user in range(split.num_users):
        ends = len(known[user]) > 1  # a user's only click stays
        last += known[user][-1:].tolist() if ends else []
        for item in known[user][:-1] if ends else known[user]:
            degree[item] += 1
    contexts = shares(degree, cold, head_degree(degree))
    earlier, later = contexts[last].mean(0), contexts[split.valid.item].mean(0)
    if not short:
        assert (earlier[0], later[0]) == (1 / split.num_users, 4 / split.num_users)  # new when they were clicked
    found = context_drift(split, cold)
    expected = np.clip((later + 0.001) / (earlier + 0.001), 0.5, 2.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_nothing_drifts_where_no_user_has_two_training_clicks() -> None:
    split = drifting_split()
    first = replace(split, train=split.train.where(np.arange(len(split.train)) % 5 == 0))
    assert context_drift(first, 3.0).tolist() == [1.0] * len(CONTEXTS)


def test_drift_has_its_limits() -> None:
    split = block_world().split
    unseen = replace(split, valid=replace(split.valid, item=np.resize(block_world().cold, len(split.valid))))
    found = dict(zip(CONTEXTS, context_drift(unseen, 3.0).tolist(), strict=True))
    assert found["new"] == max(found.values()) == 2.0
    assert found["warm/tail"] == found["warm/head"] == min(found.values()) == 0.5


def test_nothing_drifts_without_an_order_or_in_a_ready_made_split() -> None:
    split = drifting_split()
    assert context_drift(split, 3.0).tolist() != [1.0] * len(CONTEXTS)
    for other in (replace(split, ordered=False), replace(split, kind="ready-made")):
        assert context_drift(other, 3.0).tolist() == [1.0] * len(CONTEXTS)


# a step


@pytest.mark.parametrize("pairs", [None, np.array([8, 1, 5, 11, 4])])
def test_a_step_is_cross_entropy_among_unknown_items_and_the_pull_to_the_start(
    monkeypatch: pytest.MonkeyPatch, pairs: Any
) -> None:
    kept: list[TrainingStage] = []
    monkeypatch.setattr(fitting, "train", lambda stage, task: kept.append(stage))
    gate, start = random_gate(), doubles(random_gate())
    weight = torch.linspace(0.2, 1.8, ASKED)
    fit_gate("gate", gate, inputs(), replace(targets_by_hand(), weight=weight), GateConfig(l2=2.0), TASK, pairs)
    [stage] = kept
    for parameter, other in zip(gate.parameters(), random_gate(seed=4).parameters(), strict=True):
        parameter.data = other.data
    w = doubles(gate)
    rows = np.array([2, 0, 4])
    count = len(TARGET) if pairs is None else len(pairs)

    def expected() -> float:
        total = 2.0 / (2 * count) * sum(float(((w[name] - start[name]) ** 2).sum()) for name in w)
        for row in rows:
            pair = row if pairs is None else pairs[row]
            items = [item for item in range(ITEMS) if item not in KNOWN[ROW[pair]]]
            scores = [gated(w, ROW[pair], item) for item in items]
            total += float(weight[ROW[pair]]) * cross_entropy(scores, items.index(TARGET[pair])) / len(rows)
        return total

    loss = stage.loss(rows, At(0, stage.name, 1, 0))
    loss.backward()
    assert stage.num_examples == count
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-6)
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None
        found = parameter.grad.numpy()
        np.testing.assert_allclose(found, slope(expected, w[name]), rtol=1e-6, atol=1e-6, err_msg=name)


def test_fitting_makes_the_targets_likelier_and_a_strong_pull_prevents_it() -> None:
    def entropy(gate: ContextGate) -> float:
        with torch.no_grad():
            scores = targets_by_hand().scores(gate, inputs(), torch.tensor(ROW))
        return float(torch.nn.functional.cross_entropy(scores, torch.tensor(TARGET)))

    found = {}
    for l2 in (0.0, 1e6):
        gate = random_gate()
        fit_gate("gate", gate, inputs(), targets_by_hand(), GateConfig(l2=l2, min_steps=40), TASK)
        found[l2] = entropy(gate)
    before = entropy(random_gate())
    assert found[0.0] < before - 0.1
    assert abs(found[1e6] - before) < 0.1


# folds


def test_no_gate_is_measured_on_queries_it_was_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[tuple[str, set[int]]] = []

    def instead_of_fitting(name: str, gate: ContextGate, *args: Any) -> None:
        *_, pairs = args
        fits.append((name, {ROW[pair] for pair in pairs}))
        for parameter in gate.parameters():
            parameter.data = parameter.data + len(fits)  # every fold's gate is another

    monkeypatch.setattr(fitting, "fit_gate", instead_of_fitting)
    gate = random_gate(size=0.1)
    before = doubles(gate)
    found = out_of_fold(gate, inputs(), targets_by_hand(), GateConfig(), TASK).ndcg(inputs(), targets_by_hand())
    assert [name for name, _ in fits] == ["gate-fold-1", "gate-fold-2", "gate-fold-3"]
    for query in range(ASKED):
        without = [number for number, (_, used) in enumerate(fits, start=1) if query not in used]
        assert len(without) == 1  # each query is left out once, with all of its targets
        other = random_gate(size=0.1)
        for parameter in other.parameters():
            parameter.data = parameter.data + without[0]
        assert float(found[query]) == pytest.approx(float(targets_by_hand().ndcg(other, inputs())[query]), abs=1e-6)
    assert all(np.array_equal(before[name], value) for name, value in doubles(gate).items())  # the gate itself stays


def test_a_fold_without_users_is_left_out() -> None:
    one = GateTargets(
        targets_by_hand().experts[:, :1], targets_by_hand().features[:1], Histories.from_lists([[1]]),
        torch.tensor([0]), torch.tensor([5]), torch.tensor([1]), torch.ones(1),
    )  # fmt: skip
    folds = out_of_fold(random_gate(), inputs(), one, GateConfig(epochs=1, min_steps=0), TASK)
    assert folds.gates == folds.held_out == []  # no other query to learn from
    assert folds.ndcg(inputs(), one).tolist() == [0.0]


# cold and new items

RAISED = {"cold": [1, 2], "new": [0]}  # places in CONTEXTS, in the order in which they are lifted
COLD_TARGETS, NEW_TARGETS = [1, 2, 9, 9, 16], [7, 21, 0, 14, 28]


def lifted(budget: float, made: GateTargets | None = None) -> tuple[ContextGate, dict[str, Any]]:
    gate, folds = random_gate(), Folds([random_gate()], [torch.arange(ASKED)])
    return gate, lift_cold(gate, inputs(), made or targets_by_hand(), budget, folds)


def by_lifts(done: dict[str, Any]) -> list[float]:
    """What was added to the biases, by context."""
    return [done["new"]["lift"], done["cold"]["lift"], done["cold"]["lift"], 0.0, 0.0]


def held_out_ndcg(folds: Folds, weight: Dense, raised: Dense) -> float:
    """Weighted NDCG of every query under the gate that leaves it out, with biases that are raised by so much."""
    total = 0.0
    for gate, rows in zip(folds.gates, folds.held_out, strict=True):
        w = doubles(gate)
        w["context_bias"] += raised
        for query in rows.tolist():
            total += weight[query] * ndcg(np.array([gated(w, query, item) for item in range(ITEMS)]), query)
    return total / ASKED


def lifts_by_loops(folds: Folds, weight: Dense, share: float) -> dict[str, Any]:
    """Cold first, then new on top of it: every step up to the first that gives up more than `share` of what was."""
    raised, done = np.zeros(5), {}
    for kind, places in RAISED.items():
        before, lift = held_out_ndcg(folds, weight, raised), 0.0
        tried = {"0.0": before}
        for step in fitting.LIFTS:
            higher = raised.copy()
            higher[places] += step
            tried[str(step)] = held_out_ndcg(folds, weight, higher)
            if tried[str(step)] < before * (1 - share):
                break
            lift = step
        raised[places] += lift
        done[kind] = {"lift": lift, "tried": tried}
    return done


def two_folds() -> Folds:
    half = torch.arange(ASKED) < 5
    return Folds([random_gate(seed=5), random_gate(seed=6)], [half.nonzero()[:, 0], (~half).nonzero()[:, 0]])


@pytest.mark.parametrize("budget", [0.005, 0.01, 0.05, 0.1, 0.5])
def test_the_cost_of_a_lift_is_measured_on_gates_that_have_not_seen_the_targets(budget: float) -> None:
    weight = torch.linspace(1.8, 0.2, ASKED)
    expected = lifts_by_loops(two_folds(), weight.double().numpy(), budget / 2)
    gate, folds = random_gate(), two_folds()
    done = lift_cold(gate, inputs(), replace(targets_by_hand(), weight=weight), budget, folds)
    assert list(done) == ["cold", "new"]
    for kind, wanted in expected.items():
        assert done[kind]["lift"] == wanted["lift"]
        assert list(done[kind]["tried"]) == list(wanted["tried"])
        assert done[kind]["tried"] == pytest.approx(wanted["tried"], abs=1e-6)
    assert done["cold"]["targets"] == len(COLD_TARGETS)
    assert done["new"]["targets"] == len(NEW_TARGETS)
    for one, start in zip((gate, *folds.gates), (random_gate(), *two_folds().gates), strict=True):
        moved = (one.context_bias - start.context_bias).detach()  # all gates alike, and they stay lifted
        torch.testing.assert_close(moved, torch.tensor(by_lifts(done)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("budget", [0.001, 0.05, 0.1, 0.2, 1.0])
def test_each_lift_spends_no_more_than_half_of_the_budget(budget: float) -> None:
    gate, done = lifted(budget)
    raised, before = random_gate(), float(targets_by_hand().ndcg(random_gate(), inputs()).mean())
    first = before
    for kind, places in RAISED.items():
        raised.context_bias.data[places] += done[kind]["lift"]
        after, tried = float(targets_by_hand().ndcg(raised, inputs()).mean()), done[kind]["tried"]
        assert tried["0.0"] == pytest.approx(before)
        assert tried[str(float(done[kind]["lift"]))] == pytest.approx(after)
        assert after >= before * (1 - budget / 2)
        if done[kind]["lift"] < max(fitting.LIFTS):  # one step further would have been too much
            steps = [0.0, *fitting.LIFTS]
            assert float(list(tried)[-1]) == steps[steps.index(done[kind]["lift"]) + 1]
            assert list(tried.values())[-1] < before * (1 - budget / 2)
        before = after
    assert float(targets_by_hand().ndcg(gate, inputs()).mean()) == pytest.approx(before)
    assert before >= first * (1 - budget)


def test_steps_are_fine_where_a_little_costs_much_and_never_coarse() -> None:
    steps = np.diff([0.0, *fitting.LIFTS])
    assert steps[0] <= 0.1
    assert (steps[:-1] <= steps[1:] + 1e-9).all()
    assert 0 < steps.min() < steps.max() <= 0.25


def test_the_lift_raises_the_biases_of_cold_and_new_items_and_nothing_else() -> None:
    gate, done = lifted(2.0)
    assert done["cold"]["lift"] == done["new"]["lift"] == max(fitting.LIFTS)  # a budget of everything, twice
    start = random_gate()
    for name, value in gate.named_parameters():
        moved = value.detach() - dict(start.named_parameters())[name].detach()
        wanted = torch.tensor(by_lifts(done)) if name == "context_bias" else torch.zeros_like(moved)
        torch.testing.assert_close(moved, wanted, rtol=1e-6, atol=1e-6)


def without(items: list[int]) -> GateTargets:
    """The targets with a warm item in the place of these targets."""
    assert DEGREES[20] == max(DEGREES)
    return replace(targets_by_hand(), target=torch.tensor([20 if item in items else item for item in TARGET]))


@pytest.mark.parametrize(
    ("budget", "missing", "kinds"),
    [
        (2.0, NEW_TARGETS, ["cold"]),
        (2.0, COLD_TARGETS, ["new"]),
        (2.0, COLD_TARGETS + NEW_TARGETS, []),
        (0.0, [], []),
    ],
)
def test_nothing_is_lifted_without_a_budget_or_without_targets_of_its_kind(
    budget: float, missing: list[int], kinds: list[str]
) -> None:
    gate, done = lifted(budget, without(missing))
    for kind, targets in (("cold", COLD_TARGETS), ("new", NEW_TARGETS)):
        assert done[kind]["lift"] == (max(fitting.LIFTS) if kind in kinds else 0)
        assert done[kind]["targets"] == sum(item not in missing for item in targets)
        if kind not in kinds:
            assert list(done[kind]["tried"]) == ["0.0"]
    before, after = doubles(random_gate()), doubles(gate)
    np.testing.assert_allclose(after.pop("context_bias"), before.pop("context_bias") + by_lifts(done), atol=1e-6)
    assert all(np.array_equal(before[name], value) for name, value in after.items())


def test_a_lift_that_costs_no_more_than_the_budget_is_taken() -> None:
    _, done = lifted(0.1, replace(targets_by_hand(), weight=torch.zeros(ASKED)))  # an NDCG of 0 has nothing to lose
    assert done["cold"]["lift"] == done["new"]["lift"] == max(fitting.LIFTS)


def test_what_one_lift_does_not_need_is_not_spent_on_the_other() -> None:
    """Without cold targets, new items still have half of the budget; with twice the budget they would go further."""
    found = [lifted(budget, without(COLD_TARGETS))[1] for budget in (0.06, 0.12)]
    assert [done["cold"]["lift"] for done in found] == [0, 0]
    assert 0 < found[0]["new"]["lift"] < found[1]["new"]["lift"]


# new items keep up with a static sum

STATIC = torch.tensor([0.5, 0.3, 0.2])[:EXPERTS]


def static_gate() -> ContextGate:
    gate = ContextGate(EXPERTS, 2, 2)
    gate.set_static(STATIC)
    return gate


def of_new_targets(gate: ContextGate) -> float:
    asked = sorted({query for query, item in zip(ROW, TARGET, strict=True) if item in NEW_TARGETS})
    return float(targets_by_hand().ndcg(gate, inputs())[asked].mean())


def sunk(gate: ContextGate) -> ContextGate:
    """The gate with new items far below all others."""
    gate.context_bias.data[fitting.NEW] = -8.0
    gate.log_weight.data[fitting.NEW] -= 1.0
    return gate


@torch.no_grad()
def test_new_items_that_a_gate_has_sunk_keep_up_with_the_static_weights() -> None:
    static, scale = static_gate(), torch.tensor(1.7)

    def made() -> ContextGate:
        gate = sunk(static_gate())
        gate.log_weight += scale.log()
        return gate

    gate, folds = made(), Folds([made()], [torch.arange(ASKED)])
    done = keep_up_new(gate, static, inputs(), targets_by_hand(), folds)
    assert done["before"] == pytest.approx(of_new_targets(made()))
    assert done["static"] == pytest.approx(of_new_targets(static))
    assert done["before"] < done["static"] <= done["after"] == pytest.approx(of_new_targets(gate))
    assert done["bias"] <= 0  # at 0 they are where the static weights have them
    torch.testing.assert_close(gate.log_weight, static.log_weight + scale.log())  # on the scale of the others
    lower = deepcopy(gate)
    lower.context_bias[fitting.NEW] -= 0.05
    assert of_new_targets(lower) < done["static"]
    for name, value in doubles(gate).items():  # the new context alone is changed
        was, now = (
            each[1:] if name in ("context_bias", "log_weight") else each for each in (doubles(made())[name], value)
        )
        np.testing.assert_array_equal(now, was)


@torch.no_grad()
def test_a_gate_that_has_nothing_to_give_stays_as_it_is() -> None:
    """Random weights rank all targets together worse than static ones, whatever the bias of new items."""

    def made() -> ContextGate:
        gate = random_gate()
        gate.context_bias[fitting.NEW] = -2.0
        return gate

    gate, folds = made(), Folds([made()], [torch.arange(ASKED)])
    done = keep_up_new(gate, static_gate(), inputs(), targets_by_hand(), folds)
    assert done["bias"] is None
    assert done["before"] < done["static"]
    for one in (gate, *folds.gates):
        assert all(np.array_equal(value, doubles(made())[name]) for name, value in doubles(one).items())


@torch.no_grad()
def test_new_items_that_keep_up_are_left_alone() -> None:
    gate = random_gate()
    gate.context_bias[fitting.NEW] = 9.0
    before = doubles(gate)
    folds = Folds([deepcopy(gate)], [torch.arange(ASKED)])
    done = keep_up_new(gate, static_gate(), inputs(), targets_by_hand(), folds)
    assert done["bias"] is None
    assert done["before"] > done["static"]
    assert all(np.array_equal(before[name], value) for name, value in doubles(gate).items())
    nobody = keep_up_new(gate, static_gate(), inputs(), without(NEW_TARGETS), folds)
    assert nobody == {"queries": 0, "bias": None}


@torch.no_grad()
def test_the_prior_that_ranks_best_is_chosen() -> None:
    logs = torch.tensor(DEGREES).float().log1p()
    chosen, tried = tune_prior(random_gate(), inputs(), targets_by_hand(), logs)
    assert set(tried) == {str(p) for p in fitting.PRIORS}
    for p in (-0.5, 0.0, 0.35):
        w = doubles(random_gate())
        total = 0.0
        for query in range(ASKED):
            scores = [gated(w, query, item) + p * float(logs[item]) for item in range(ITEMS)]
            total += ndcg(np.array(scores), query)
        assert tried[str(p)] == pytest.approx(total / ASKED, abs=1e-6)
    assert tried[str(chosen)] == max(tried.values())


# interrupted, shared


def test_a_stage_of_other_z_scores_is_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same start and features, and experts that differ in one item: what is kept of one run is not another's."""
    kept: list[TrainingStage] = []
    monkeypatch.setattr(fitting, "train", lambda stage, task: kept.append(stage))
    other = targets_by_hand()
    other.experts[2, ROW[3], TARGET[3]] += 0.5
    for made in (targets_by_hand(), targets_by_hand(), other):
        fit_gate("gate", random_gate(), inputs(), made, GateConfig(), Task(SPLIT))
    first, again, different = ([tensor.tolist() for tensor in stage.inputs] for stage in kept)
    assert first == again != different
