"""The hybrid: one score from two branches that can be explained, cold items placed by their words, nothing leaks."""

from __future__ import annotations

import math
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

from dense import clicks_of, cross_entropy, edges, normalised, slope
from graphllmrec.data.tables import Histories
from graphllmrec.errors import Interrupted, TextError
from graphllmrec.evaluate import evaluate_model
from graphllmrec.fuse.gate import CONTEXTS
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.models import build, hybrid
from graphllmrec.models.base import Queries, SilentJournal, Task, TextVectors
from graphllmrec.rng import rng, torch_rng
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.loop import Stage
from tiny import ITEMS, SPLIT, TASK, TEXT, USERS
from world import block_world

SMALL = {"graph": {"epochs": 3, "dim": 4}, "text": {"epochs": 2, "dims": 4, "hidden": 8}, "gate": {"epochs": 2}}
KNOWN = Queries.of(SPLIT.known("test"), np.arange(USERS))
STRANGER = Queries.anonymous(Histories.from_lists([[2, 5, 2, 1]]))  # one item twice
SILENT = 6  # the item of the tiny world without text


def stir(model: Any) -> Any:
    """Any gate will do: what holds, holds for all of them."""
    random = rng(1, "gate-weights")
    for parameter in model.gate.parameters():
        parameter.data = torch.from_numpy(random.normal(0, 0.7, tuple(parameter.shape)).astype(np.float32))
    return model


@cache
def stored(query: str, fusion: str) -> Any:
    model = build("hybrid", SMALL | {"graph": SMALL["graph"] | {"query": query}, "fusion": fusion})
    nobody = SPLIT.train.where(SPLIT.train.item != 3)  # item 3 has no training click
    model.fit(replace(TASK, split=replace(SPLIT, train=nobody)))
    return model


def tiny_hybrid(query: str = "history", fusion: str = "gate") -> Any:
    """A hybrid of its own, fitted on the tiny world."""
    model = build("hybrid", stored(query, fusion).config.model_dump())
    model.restore({name: tensor.clone() for name, tensor in stored(query, fusion).state().items()})
    return model


# the score


@pytest.mark.parametrize("query", ["history", "user"])
def test_a_score_is_the_gated_sum_of_the_branches(query: str) -> None:
    model = stir(tiny_hybrid(query))
    graph = model.graph.scores(KNOWN).double().numpy()
    text = model.branch_scores(KNOWN, "text").double().numpy()
    values, _ = model.gate_table()
    found = model.scores(KNOWN).detach().double().numpy()
    for item in range(ITEMS):
        gamma, scale, prior = (float(part[item]) for part in (values.gamma, values.scale, values.prior))
        clicks = graph[:, item] if item != 3 else 0.0  # what the graph branch thinks of unclicked items is left out
        expected = scale * ((1 - gamma) * clicks + gamma * text[:, item]) + prior
        np.testing.assert_allclose(found[:, item], expected, rtol=1e-5, atol=2e-6)
    assert values.gamma[3] == 1
    assert values.gamma[SILENT] == 0
    assert torch.equal(model.scores(KNOWN), model.query_vectors(KNOWN) @ model.item_vectors().T)


def test_the_static_hybrid_adds_the_weighted_text_score() -> None:
    model = tiny_hybrid(fusion="static")
    model.gate.set_static(0.7)
    both = [item for item in range(ITEMS) if item not in (3, SILENT)]
    expected = model.branch_scores(KNOWN, "graph") + 0.7 * model.branch_scores(KNOWN, "text")
    torch.testing.assert_close(model.scores(KNOWN)[:, both], expected[:, both], rtol=1e-5, atol=2e-6)


def test_the_static_weight_is_the_best_of_those_tried_on_validation() -> None:
    logged: dict[str, dict[str, Any]] = {}

    class Notes(SilentJournal):
        def log(self, event: str, **values: Any) -> None:
            logged[event] = values

    model = build("hybrid", SMALL | {"fusion": "static"})
    model.fit(replace(TASK, journal=Notes()))
    tried = logged["static-weight"]["tried"]
    assert list(map(float, tried)) == list(hybrid.WEIGHTS)
    assert tried[str(logged["static-weight"]["weight"])] == max(tried.values())
    assert float(model.gate.log_scale.detach().exp()[0]) == pytest.approx(1 + logged["static-weight"]["weight"])
    assert "cold-lift" not in logged


# explanations


@pytest.mark.parametrize("query", ["history", "user"])
@pytest.mark.parametrize("asked", ["stranger", "known"])
@pytest.mark.parametrize("item", [0, 3, SILENT])
def test_shares_add_up_to_the_score_and_history_to_clicks_and_text(query: str, asked: str, item: int) -> None:
    model = stir(tiny_hybrid(query))
    queries = STRANGER if asked == "stranger" else Queries.of(SPLIT.known("test"), np.array([4]))
    found = model.explain(queries, item)
    assert found.score == pytest.approx(float(model.scores(queries)[0, item]), abs=1e-5)
    assert sum(found.shares.values()) == pytest.approx(found.score, abs=1e-6)
    assert found.shares.keys() == {"clicks", "text", "context"}

    values, contexts = model.gate_table()
    gamma, scale = float(values.gamma[item]), float(values.scale[item])
    assert found.gate == gamma
    assert found.context == dict(zip(CONTEXTS, map(float, contexts[item]), strict=True))
    assert sum(found.context.values()) == pytest.approx(1, abs=1e-6)
    rest = scale * (1 - gamma) * float(model.graph.items[item, -1]) if item != 3 else 0.0  # the item's own bias
    if query == "user" and asked == "known":  # clicks are answered by the user's own embedding
        rest = found.shares["clicks"]
    parts = dict(found.history)
    assert sum(parts.values()) == pytest.approx(found.shares["clicks"] + found.shares["text"] - rest, abs=1e-5)
    assert parts.keys() == set(queries.histories.items.tolist())
    assert [part for _, part in found.history] == sorted(parts.values(), reverse=True)
    if item == SILENT:
        assert found.shares["text"] == 0
    if item == 3:
        assert found.shares["clicks"] == 0


def test_a_part_of_the_history_is_what_the_score_would_lose_of_it() -> None:
    """With decay 1 on both sides and one branch only, each part is that item's own inner product."""
    model = tiny_hybrid()
    model.graph.decay = model.text.decay = 1.0
    found = dict(model.explain(STRANGER, SILENT).history)  # no text: clicks only
    scale = float(model.gate_table()[0].scale[SILENT])
    for item, times in ((2, 2), (5, 1), (1, 1)):
        expected = scale * times / 4 * float(model.graph.fold[item] @ model.graph.items[SILENT, :-1])
        assert found[item] == pytest.approx(expected, abs=1e-6)


def test_an_empty_history_explains_nothing() -> None:
    found = tiny_hybrid().explain(Queries.anonymous(Histories.from_lists([[]])), 0)
    assert found.history == []
    assert found.shares["text"] == 0


# what the gate learns from


def gate_stage(monkeypatch: pytest.MonkeyPatch, **gate: Any) -> tuple[Any, Stage]:
    """A tiny hybrid whose gate was just handed over to training, and that stage."""
    kept: list[Stage] = []
    original = hybrid.train
    monkeypatch.setattr(hybrid, "train", lambda stage, task: kept.append(stage) or 0.0)
    model = build("hybrid", SMALL | {"gate": gate})
    model.fit(TASK)
    monkeypatch.setattr(hybrid, "train", original)
    return model, kept[0]


def test_a_gate_step_is_cross_entropy_of_validation_targets_among_unseen_items(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stage = gate_stage(monkeypatch, cold_share=0.4, prior=2.0, cold_degree=1.5)
    start = {name: value.detach().double().numpy().copy() for name, value in model.gate.named_parameters()}
    stir(model)
    w = {name: value.detach().double().numpy().copy() for name, value in model.gate.named_parameters()}
    rows = np.array([2, 9, 0, 13])
    cold = (torch.rand(ITEMS, generator=torch_rng(TASK.seed, "gate/cold", 1, 0)) < 0.4).tolist()
    assert sum(cold) >= 2
    queries = Queries.of(SPLIT.known("valid"), rows)
    graph, text = (model.branch_scores(queries, branch).double().numpy() for branch in ("graph", "text"))
    targets = SPLIT.valid.item[rows]
    given, unclicked = model._inputs(), model._cold_item()

    def expected() -> float:
        total = 2.0 / 2 / len(SPLIT.valid) * sum(float(((w[name] - start[name]) ** 2).sum()) for name in w)
        for place in range(len(rows)):
            scores = {}
            for item in set(range(ITEMS)) - set(queries.histories[place].tolist()):
                known = unclicked if cold[item] else given
                row = 0 if cold[item] else item
                share, x = known.contexts[row].double().numpy(), known.features[row].double().numpy()
                gamma = sum(share[c] / (1 + math.exp(-w["logit"][c] - w["slope"][c] @ x)) for c in range(4))
                gamma = 0.0 if item == SILENT else 1.0 if cold[item] else gamma
                fused = (1 - gamma) * (0.0 if cold[item] else graph[place, item]) + gamma * text[place, item]
                scores[item] = float(share @ np.exp(w["log_scale"])) * fused + float(share @ w["prior"])
            items = list(scores)
            total += cross_entropy([scores[item] for item in items], items.index(targets[place])) / len(rows)
        return total

    loss = stage.loss(1, 0, rows)
    loss.backward()
    assert stage.num_examples == len(SPLIT.valid)
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-5)
    for name, parameter in stage.module.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), slope(expected, w[name]), atol=5e-6, err_msg=name)


def test_a_rehearsed_cold_item_is_what_a_real_one_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = gate_stage(monkeypatch, cold_degree=0.5)
    model.add_items(TextVectors(TEXT.vectors[:1], TEXT.present[:1]))
    real, rehearsed = model._inputs(), model._cold_item()
    assert torch.equal(real.contexts[-1:], rehearsed.contexts)
    assert torch.equal(real.features[-1:], rehearsed.features)
    assert torch.equal(real.clicked[-1:], rehearsed.clicked)


def test_hidden_items_have_no_graph_score_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_hybrid()
    model.graph.items[:, -1] += 5  # not even a bias
    hidden = torch.arange(ITEMS) % 2 == 0
    graph, text = model._branch_scores(KNOWN, hidden=hidden)
    assert graph[:, hidden].count_nonzero() == 0
    assert graph[:, 3].count_nonzero() == 0  # nobody clicked it
    assert torch.equal(text, model.branch_scores(KNOWN, "text"))
    assert graph[:, [1, 5, 7]].abs().min() > 0


def test_agreement_is_the_cosine_with_the_text_of_co_clicked_items() -> None:
    train = edges([0, 0, 1, 1, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3, 3, 3, 4])  # users 2, 3, 4 clicked item 3 alone
    norm = normalised(clicks_of(train, 6, 6))
    text = torch.nn.functional.normalize(torch.from_numpy(rng(2, "text").normal(size=(6, 4)).astype(np.float32)), dim=1)
    text[1] = 0  # without text
    found = hybrid._agreement(Bipartite.of(train, 6, 6), text)
    for item in range(6):
        around = np.zeros(4)
        for user in range(6):
            for other in range(6):
                if other != item:
                    around += norm[user, item] * norm[user, other] * text[other].double().numpy()
        own, lengths = text[item].double().numpy(), np.linalg.norm(around) * float(text[item].norm())
        expected = float(own @ around) / lengths if lengths else 0.0
        assert float(found[item]) == pytest.approx(expected, abs=1e-6), item
    assert found[[1, 3, 4, 5]].tolist() == [0, 0, 0, 0]


def test_cold_items_are_lifted_as_far_as_the_budget_allows() -> None:
    logged: dict[str, dict[str, Any]] = {}

    class Notes(SilentJournal):
        def log(self, event: str, **values: Any) -> None:
            logged[event] = values

    for budget in (0.0, 0.3, 1.0):
        build("hybrid", SMALL | {"gate": {"cold_budget": budget, "epochs": 1}}).fit(replace(TASK, journal=Notes()))
        found = logged["cold-lift"]
        allowed = found["tried"]["0.0"] * (1 - budget)
        kept = [float(lift) for lift, value in found["tried"].items() if value >= allowed]
        assert found["lift"] == max(kept)
        assert found["cold_targets"] > 0
    assert found["lift"] == max(hybrid.LIFTS)  # a budget of everything


# without something


def test_text_is_needed_for_every_item() -> None:
    with pytest.raises(TextError, match="8 text vectors for 9 items"):
        build("hybrid", SMALL).fit(Task(SPLIT, TextVectors(TEXT.vectors[:8], TEXT.present[:8])))


def test_without_validation_it_still_recommends() -> None:
    nothing = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    model = build("hybrid", SMALL)
    model.fit(replace(TASK, split=replace(SPLIT, valid=nothing)))
    assert torch.isfinite(model.scores(KNOWN)).all()
    assert float(model.gate_table()[0].gamma[0]) == pytest.approx(1 / 3, abs=1e-6)


def test_a_branch_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown branch 'clicks'; known: graph, text"):
        tiny_hybrid().branch_scores(KNOWN, "clicks")


# items added later


def test_an_added_item_is_scored_like_its_twin_by_text_alone() -> None:
    model = stir(tiny_hybrid())
    before = model.scores(KNOWN)
    twin = TextVectors(TEXT.vectors[[3, SILENT]], TEXT.present[[3, SILENT]])  # item 3 has text and no click either
    model.add_items(twin)
    after = model.scores(KNOWN)
    assert torch.equal(after[:, :ITEMS], before)
    torch.testing.assert_close(after[:, ITEMS], before[:, 3], rtol=1e-5, atol=1e-6)
    values, _ = model.gate_table()
    assert values.gamma[ITEMS:].tolist() == [1, 0]
    torch.testing.assert_close(after[:, ITEMS + 1], values.prior[ITEMS + 1].expand(USERS).detach())
    assert model.explain(STRANGER, ITEMS).shares["clicks"] == 0
    assert model.similar_scores(ITEMS).argsort(descending=True)[:2].tolist() in ([3, ITEMS], [ITEMS, 3])


# interruption in every stage


@pytest.mark.parametrize("stage", ["graph", "text", "gate"])
def test_a_fit_interrupted_in_any_stage_resumes_to_the_same_bytes(tmp_path: Path, stage: str) -> None:
    class StopsIn(SilentJournal):
        def __init__(self) -> None:
            self.name, self.steps = "", 0

        def stage(self, name: str, total: int | None = None) -> None:
            self.name, self.steps = name, 0

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.steps += steps
            if self.name == f"train {stage}" and self.steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {part: values | {"batch_size": 8} for part, values in SMALL.items()}
    kept = replace(TASK, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(Interrupted, match=f"stage '{stage}'"):
        build("hybrid", settings).fit(replace(kept, journal=StopsIn()))
    resumed, whole = build("hybrid", settings), build("hybrid", settings)
    resumed.fit(kept)
    whole.fit(TASK)
    assert save(resumed.state()) == save(whole.state())


@pytest.mark.parametrize("other", [{"graph": {"num_layers": 1}}, {"text": {"temperature": 0.5}}, {"ordered": False}])
def test_a_stage_is_shared_only_by_runs_in_which_it_would_come_out_the_same(tmp_path: Path, other: Any) -> None:
    task = replace(TASK, split=replace(SPLIT, ordered=other.get("ordered", True)))
    settings = {part: values | other.get(part, {}) for part, values in SMALL.items()}
    build("hybrid", SMALL).fit(replace(TASK, checkpoints=Checkpoints(tmp_path / "first", tmp_path / "shared")))
    alone, sharing = build("hybrid", settings), build("hybrid", settings)
    alone.fit(task)
    sharing.fit(replace(task, checkpoints=Checkpoints(tmp_path / "second", tmp_path / "shared")))
    assert save(sharing.state()) == save(alone.state())


def test_what_is_shared_is_not_trained_again_but_logged(tmp_path: Path) -> None:
    trained: list[str] = []
    logged: list[str] = []

    class Notes(SilentJournal):
        def stage(self, name: str, total: int | None = None) -> None:
            self.name = name

        def advance(self, steps: int = 1, **values: float | str) -> None:
            if "loss" in values:
                trained.append(self.name)

        def log(self, event: str, **values: Any) -> None:
            if event == "epoch":
                logged.append(values["stage"])

    for run, gate in (("first", {"epochs": 2}), ("second", {"epochs": 1})):
        trained.clear()
        logged.clear()
        checkpoints = Checkpoints(tmp_path / run, tmp_path / "shared")
        build("hybrid", SMALL | {"gate": gate}).fit(replace(TASK, journal=Notes(), checkpoints=checkpoints))
    assert set(trained) == {"train gate"}
    assert set(logged) == {"graph", "text", "gate"}


# the block world

BLOCKS = block_world()
CHANCE = 10 / (BLOCKS.split.num_items - 6)  # ten of the items that are not masked


@cache
def in_blocks(name: str, fusion: str = "gate") -> Any:
    """A model with default settings but for the batches: there are 480 examples and 120 validation targets."""
    small = {"batch_size": 64}
    settings = (
        {"graph": small, "text": small, "gate": {"batch_size": 16}, "fusion": fusion} if name == "hybrid" else small
    )
    model = build(name, settings)
    model.fit(BLOCKS.task(seed=3))
    return model


@pytest.mark.parametrize("fusion", ["gate", "static"])
def test_cold_items_are_found_by_the_hybrid_and_not_by_lightgcn(fusion: str) -> None:
    cold = BLOCKS.cold_split()
    assert evaluate_model(in_blocks("hybrid", fusion), cold).overall["recall@10"] >= 0.9
    assert evaluate_model(in_blocks("lightgcn"), cold).overall["recall@10"] < CHANCE + 0.1


def test_on_cold_items_the_hybrid_is_no_worse_than_either_branch() -> None:
    model, cold = in_blocks("hybrid"), BLOCKS.cold_split()
    graph, text = (evaluate_model(model, cold, branch=branch).overall["recall@10"] for branch in model.branches)
    assert graph < CHANCE + 0.1
    assert evaluate_model(model, cold).overall["recall@10"] >= text


def test_on_next_items_it_gives_up_little_of_the_better_branch_to_show_cold_ones() -> None:
    model = in_blocks("hybrid")
    graph, text = (evaluate_model(model, BLOCKS.split, branch=branch).overall["ndcg@10"] for branch in model.branches)
    assert graph > text + 0.2  # texts tell blocks apart, not the places in a block
    assert evaluate_model(model, BLOCKS.split).overall["ndcg@10"] > 0.9 * graph


def test_the_gate_trusts_words_more_where_clicks_are_few() -> None:
    values, _ = in_blocks("hybrid").gate_table()
    cold = torch.from_numpy(BLOCKS.cold)
    warm = np.setdiff1d(np.arange(BLOCKS.split.num_items), BLOCKS.cold)
    assert values.gamma[cold].tolist() == [1.0] * len(cold)
    assert float(values.gamma[warm].max()) < 1
    assert values.gamma[0] == 0  # item 0 has no text
