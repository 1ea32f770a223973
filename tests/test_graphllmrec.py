"""GraphLLMRec: its equations against NumPy, what it learns from the stack, new items, exact shares."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from graphllmrec.data.tables import Histories
from graphllmrec.errors import Interrupted, TextError
from graphllmrec.models.fusion import graphllmrec
from graphllmrec.models.fusion.hybrid import Stack
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import Beginnings
from graphllmrec.protocol import Queries, SilentLogger, Task, TextVectors
from graphllmrec.train.checkpoint import Checkpoints
from tiny import ITEMS, QUERIES, QUERY, SPLIT, TEXT, TRAIN, USERS, WALKS, Notes, interactions
from world import World, block_world

EXPERTS: dict[str, Any] = {"graph": ["ease", "transitions"], "settings": {"ease": {"l2": 3.0}}, "fusion": "static"}
TINY: dict[str, Any] = EXPERTS | {"embedding_dim": 7, "text_dim": 4, "epochs": 3, "min_steps": 0, "twins": 3}
UNCLICKED, SILENT = 3, 6  # items without a training click, and without text
CUT = replace(SPLIT, train=SPLIT.train.where(SPLIT.train.item != UNCLICKED))
TASK = Task(CUT, TEXT)


@cache
def tiny() -> Any:
    model = build("graphllmrec", TINY)
    model.fit(TASK)
    return model


@cache
def taught() -> tuple[Any, Stack, World]:
    """A model, the stack that taught it, and their world."""
    world, settings = block_world(), EXPERTS | {"embedding_dim": 24, "text_dim": 8, "min_steps": 300, "twins": 40}
    model, stack = build("graphllmrec", settings), Stack(graphllmrec.GraphLLMRecConfig(**settings).as_stack())
    model.fit(world.task())
    stack.fit(world.task())
    return model, stack, world


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-12)


def test_scores_are_the_equations() -> None:
    model, tau = tiny(), tiny().config.temperature
    net = {name: value.detach().double().numpy() for name, value in model.net.state_dict().items()}
    features = [unit(row) for row in model.whitening.apply(TEXT).double().numpy()]
    expected = np.zeros((len(QUERY), ITEMS))
    for row, history in enumerate(QUERY):
        query = np.zeros(7)
        for back, item in enumerate(history[::-1]):
            own = net["sources"][item] * (item != UNCLICKED)
            query += np.exp(net["log_recency"][back]) * (own + net["to_source"] @ features[item])
        for item in range(ITEMS):
            clicked = item != UNCLICKED
            vector = (net["items"][item] * clicked + net["to_item"] @ features[item]) / tau
            bias = net["bias"][item] if clicked else net["new_bias"]
            expected[row, item] = (unit(query) @ vector + bias) if len(history) else 0.0
    np.testing.assert_allclose(model.scores(QUERIES).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(net["log_recency"]) > 0


def test_the_score_is_one_dot_product() -> None:
    model = tiny()
    items, queries = model.item_vectors(), model.query_vectors(QUERIES)
    assert items.shape == (ITEMS, 8)
    assert queries.shape == (len(QUERY), 8)
    torch.testing.assert_close(queries @ items.T, model.scores(QUERIES))


def test_the_loss_is_the_divergence_of_what_the_history_does_not_hold() -> None:
    random = np.random.default_rng(0)
    taught_scores, scores = random.normal(size=(2, 2, 5)).astype(np.float32) * 3
    histories = Histories.from_lists([[1], [0, 4]])
    parts = [graphllmrec._without_history(torch.from_numpy(values), histories) for values in (taught_scores, scores)]
    expected = 0.0
    for row, left in enumerate(([0, 2, 3, 4], [1, 2, 3])):
        p, q = (np.exp(values[row, left].astype(np.float64)) for values in (taught_scores, scores))
        p, q = p / p.sum(), q / q.sum()
        expected += float((p * np.log(p / q)).sum()) / 2
    assert float(graphllmrec._divergence(*parts)) == pytest.approx(expected, rel=1e-5)


def test_histories_go_on_with_items_that_the_stack_ranks_and_the_history_lacks() -> None:
    model, seed = build("graphllmrec", TINY | {"drawn": 2}), 0
    stack = Stack(model.config.as_stack())
    stack.fit(TASK)
    teacher = graphllmrec._Teacher(stack, TEXT, TASK, temperature=0.5, twins=3)
    features, clicked = torch.randn(ITEMS, 4), torch.ones(ITEMS, dtype=torch.bool)
    net = graphllmrec._Net(model.config, 4, ITEMS, seed)
    loss = graphllmrec._Loss(model.config, net, features, clicked, teacher, TASK)
    first = Histories.from_lists([[0], [4, 2], [1]])
    seen, taught_scores = loss._lesson(first, torch.Generator().manual_seed(1))
    assert [list(seen[row])[: len(first[row % 3])] for row in range(9)] == [list(first[row % 3]) for row in range(9)]
    assert seen.lengths.tolist() == [1, 2, 1, 2, 3, 2, 3, 4, 3]
    for row in range(9):
        assert len(set(seen[row])) == len(seen[row]), "an item of the history was drawn again"
        assert max(seen[row]) < ITEMS, "a twin was drawn"
        expected = teacher.scores(seen.take(np.array([row])))[0]
        expected[torch.from_numpy(seen[row])] = -1e9
        torch.testing.assert_close(taught_scores[row], expected, rtol=1e-4, atol=1e-4)


def test_the_temperature_makes_the_validation_targets_likeliest() -> None:
    stack, notes = Stack(graphllmrec.GraphLLMRecConfig(**TINY).as_stack()), Notes()
    stack.fit(TASK)
    found = graphllmrec._calibrated(stack, replace(TASK, logger=notes))
    likelihood = []
    for temperature in graphllmrec.TEMPERATURES:
        total = 0.0
        for user, history in enumerate(CUT.known("valid")[user] for user in range(USERS)):
            scores = stack.scores(Queries.of(CUT.known("valid"), np.array([user]))).double().numpy()[0] / temperature
            rest = [item for item in range(ITEMS) if item not in history]
            total += scores[WALKS[user][-2]] - np.log(np.exp(scores[rest]).sum())
        likelihood.append(total)
    assert (
        found
        == graphllmrec.TEMPERATURES[int(np.argmax(likelihood))]
        == notes.events["temperature-tuned"]["temperature"]
    )


def test_it_ranks_as_its_stack_does() -> None:
    model, stack, world = taught()
    queries = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    lists = []
    for scores in (model.scores(queries), stack.scores(queries)):
        rows = torch.from_numpy(queries.histories.row_of_entry), torch.from_numpy(queries.histories.items)
        lists.append(scores.index_put(rows, torch.tensor(-1e9)).topk(3, dim=1).indices.numpy())
    shared = [len(set(one) & set(other)) / 3 for one, other in zip(*lists, strict=True)]
    assert np.mean(shared) > 0.8


def test_new_items_lie_where_the_stack_places_them() -> None:
    """In the blocks that their texts point to; and an item of the catalogue without clicks is a new item."""
    model, _, world = taught()
    cold = world.cold
    queries = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    scores = model.scores(queries)[:, cold].numpy()
    own = world.item_block[cold][scores.argmax(1)] == world.user_block
    assert own.mean() > 0.9
    text = TextVectors(world.text.vectors[cold], torch.ones(len(cold), dtype=torch.bool))
    more = model.with_items(text)
    torch.testing.assert_close(more.scores(queries)[:, -len(cold) :], model.scores(queries)[:, cold])
    gate = more.gate_values()[0]  # the static weights of this stack are the same for all items
    torch.testing.assert_close(gate[-len(cold) :], gate[torch.from_numpy(cold)])


def test_shares_and_clicks_add_up() -> None:
    model = tiny()
    for item in range(ITEMS):
        found = model.explain(QUERIES, item)
        assert found.score == pytest.approx(float(model.scores(QUERIES)[0, item]), abs=1e-4)
        assert sum(found.shares.values()) == pytest.approx(found.score)
        assert found.history is not None
        assert sum(value for _, value in found.history) == pytest.approx(found.score - found.shares["prior"], abs=1e-4)
        assert [row for row, _ in found.history] != []
    assert model.explain(QUERIES, UNCLICKED).shares["clicks"] == 0
    assert model.explain(QUERIES, SILENT).shares["text"] == 0
    gate, contexts = model.gate_values()
    assert ((gate >= 0) & (gate <= 1)).all()
    torch.testing.assert_close(sum(contexts.values()), torch.ones(ITEMS))


def test_branches_add_up_to_the_score() -> None:
    model = tiny()
    parts = [model.branch_scores(QUERIES, branch) for branch in model.branches]
    torch.testing.assert_close(sum(parts), model.scores(QUERIES))
    with pytest.raises(ValueError, match="unknown branch 'clicks'"):
        model.branch_scores(QUERIES, "clicks")


def test_without_an_order_all_clicks_weigh_the_same() -> None:
    model = build("graphllmrec", TINY)
    model.fit(replace(TASK, split=replace(CUT, ordered=False)))
    turned = Queries.anonymous(Histories.from_lists([history[::-1] for history in QUERY]))
    torch.testing.assert_close(model.scores(turned), model.scores(QUERIES))


def test_an_interrupted_fit_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    class Stops(SilentLogger):
        name, steps = "", 0

        def begin(self, name: str, total: int | None = None) -> None:
            self.name, self.steps = name, 0

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.steps += steps
            if self.name == "train graphllmrec" and self.steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    kept = replace(TASK, checkpoints=Checkpoints(tmp_path))
    stopped, resumed = build("graphllmrec", TINY | {"batch_size": 4}), build("graphllmrec", TINY | {"batch_size": 4})
    with pytest.raises(Interrupted, match="stage 'graphllmrec'"):
        stopped.fit(replace(kept, logger=Stops()))
    resumed.fit(kept)
    whole = build("graphllmrec", TINY | {"batch_size": 4})
    whole.fit(TASK)
    assert save(resumed.state()) == save(whole.state())


def test_text_is_needed() -> None:
    with pytest.raises(TextError, match="graphllmrec needs item text"):
        build("graphllmrec", TINY).fit(Task(SPLIT))


@pytest.mark.parametrize("ordered", [True, False])
def test_beginnings_are_histories_of_earlier_times(ordered: bool) -> None:
    known = interactions(TRAIN, 0).histories(USERS)
    beginnings, lengths = Beginnings(known, ordered, 3), set()
    examples = np.arange(len(beginnings))
    for round_ in range(30):
        drawn = beginnings.draw(examples, np.random.default_rng(round_))
        for example in examples:
            clicks, found = list(TRAIN[beginnings.user[example]]), list(drawn[example])
            lengths.add(len(found))
            assert set(found) <= set(clicks)
            assert len(set(found)) == len(found)
            if ordered:
                end = clicks.index(found[-1]) + 1
                assert found == clicks[max(end - 3, 0) : end]
    assert lengths == {1, 2, 3}
    again = beginnings.draw(examples, np.random.default_rng(0)).items
    np.testing.assert_array_equal(again, beginnings.draw(examples, np.random.default_rng(0)).items)
