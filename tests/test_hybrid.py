"""The hybrid: gated experts of two branches that can be explained, cold items placed by their words, nothing leaks."""

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
from pydantic import ValidationError
from safetensors.torch import save

from dense import Dense, clicks_of, edges, normalised
from graphllmrec.data.tables import Histories
from graphllmrec.errors import Interrupted, TextError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.models.explain import explain_item
from graphllmrec.models.fusion import hybrid
from graphllmrec.models.fusion.gate_fitting import Folds
from graphllmrec.models.registry import build
from graphllmrec.nn.gate import CONTEXTS, LEARNABLE, NOTHING
from graphllmrec.protocol import Queries, SilentLogger, Task, TextVectors
from graphllmrec.rng import rng
from graphllmrec.train.checkpoint import Checkpoints
from tiny import DIM, ITEMS, SPLIT, TEXT, USERS, Notes
from world import BLOCKS, block_world

SMALL: dict[str, Any] = {
    "settings": {"sign": {"epochs": 2, "text_dim": 4, "hidden": 8, "batch_size": 8, "min_steps": 0, "warmup": 0}},
    "gate": {"epochs": 2, "min_steps": 0, "batch_size": 4, "decoys": 0.0},  # what is computed by hand has none
}
EXPERTS = ("sign", "item-knn", "transitions", "text-knn")
WORDS = EXPERTS.index("text-knn")  # the text branch; all others are the graph branch
UNCLICKED, SILENT = 3, 6  # items without a training click, and without text
TEXTS = tuple(None if item == SILENT else "word " * (item + 1) for item in range(ITEMS))
WORDY = TextVectors(TEXT.vectors, TEXT.present, TEXTS)
CUT = replace(SPLIT, train=SPLIT.train.where(SPLIT.train.item != UNCLICKED))
TASK = Task(CUT, WORDY)
KNOWN = Queries.of(CUT.known("test"), np.arange(USERS))
STRANGER = Queries.anonymous(Histories.from_lists([[2, 5, 2, 1]]))  # one item twice
NO_VALIDATION = replace(CUT, valid=CUT.valid.where(np.zeros(len(CUT.valid), dtype=bool)))


def fit(task: Task = TASK, **settings: Any) -> Any:
    own = SMALL if settings.get("fusion", "gate") == "gate" else {"settings": SMALL["settings"]}
    model = build("hybrid", own | settings)
    model.fit(task)
    return model


@cache
def stored(fusion: str) -> Any:
    return fit(fusion=fusion)


def tiny_hybrid(fusion: str = "gate") -> Any:
    """A hybrid of its own, fitted on the tiny world."""
    model = build("hybrid", stored(fusion).config.model_dump())
    model.restore({name: tensor.clone() for name, tensor in stored(fusion).state().items()})
    return model


def stir(model: Any) -> Any:
    """Any gate will do: what holds, holds for all of them."""
    random = rng(1, "gate-weights")
    for tensor in model.gate.state_dict().values():  # what diagnostics moved, too
        tensor.copy_(torch.from_numpy(random.normal(0, 0.4, tuple(tensor.shape)).astype(np.float32)))
    return model


@pytest.fixture
def keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gate is kept, as if it had been found better."""
    original = Folds.ndcg
    monkeypatch.setattr(Folds, "ndcg", lambda *args: original(*args) + 1)


# the score


def z(scores: Dense) -> Dense:
    out = np.zeros_like(scores)
    for row, values in enumerate(scores):
        out[row] = (values - values.mean()) / values.std() if values.std() > 0 else 0
    return out


def zscores(model: Any, queries: Queries) -> list[Dense]:
    return [z(model.sum.experts[name].scores(queries).double().numpy()) for name in EXPERTS]


def item_features(model: Any) -> Dense:
    """x of all items, not centred."""
    degree = clicks_of(CUT.train, USERS, ITEMS).sum(0)
    words = [len((text or "").split()) for text in TEXTS]
    agreement = model.agreement.double().numpy()  # a test of its own
    return np.array([[math.log(1 + degree[i]) / 5, agreement[i], math.log(1 + words[i]) / 5] for i in range(ITEMS)])


def asked_features(model: Any, queries: Queries) -> Dense:
    """y of all queries, not centred."""
    degree, experts = clicks_of(CUT.train, USERS, ITEMS).sum(0), zscores(model, queries)
    out = np.zeros((len(queries), 3))
    for query in range(len(queries)):
        history = queries.histories[query].tolist()
        logs = sum(math.log(1 + degree[item]) for item in history)
        agree = sum(experts[0][query, item] * experts[WORDS][query, item] for item in range(ITEMS)) / ITEMS
        out[query] = math.log(1 + len(history)) / 3, logs / max(len(history), 1) / 5, agree
    return out


def weight(model: Any, item: int, expert: int, asked: Dense | None = None) -> float:
    """w_e(q, i); for the average query without `asked`."""
    gate = {name: value.double().numpy() for name, value in model.gate.state_dict().items()}
    features = item_features(model)
    inner = contexts_of(item) @ gate["log_weight"][:, expert]
    inner += (features[item] - features.mean(0)) @ gate["item_slope"][:, expert]
    return math.exp(inner + (asked @ gate["query_slope"][:, expert] if asked is not None else 0.0))


def contexts_of(item: int) -> Dense:
    """π of an item, new ones first."""
    degree = clicks_of(CUT.train, USERS, ITEMS).sum(0)
    falling, head, held = sorted(degree, reverse=True), 0.0, 0.0
    for clicks in falling:
        if held < degree.sum() / 2:
            held, head = held + clicks, clicks
    if not degree[item]:
        return np.array([1.0, 0, 0, 0, 0])
    p_cold = 1 / (1 + ((1 + degree[item]) / (1 + 3)) ** 3)
    p_head = 1 / (1 + ((1 + head) / (1 + degree[item])) ** 3)
    return np.array([0, p_cold * (1 - p_head), p_cold * p_head, (1 - p_cold) * (1 - p_head), (1 - p_cold) * p_head])


@pytest.mark.parametrize("queries", [KNOWN, STRANGER], ids=["known", "stranger"])
def test_a_score_is_the_sum_of_weighted_z_scores_and_the_bias(queries: Queries) -> None:
    model = stir(tiny_hybrid())
    asked, experts = asked_features(model, queries) - model.query_centre.double().numpy(), zscores(model, queries)
    found, bias = model.scores(queries), model.gate.context_bias.detach().double().numpy()
    for item in range(ITEMS):
        for query in range(len(queries)):
            parts = [weight(model, item, e, asked[query]) * experts[e][query, item] for e in range(len(EXPERTS))]
            expected = sum(parts) + float(contexts_of(item) @ bias)
            assert float(found[query, item]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gamma_is_the_share_of_the_text_experts_and_contexts_those_of_the_clicks() -> None:
    model = stir(tiny_hybrid())
    gamma, contexts = model.gate_values()
    for item in range(ITEMS):
        weights = [weight(model, item, expert) for expert in range(len(EXPERTS))]
        assert float(gamma[item]) == pytest.approx(weights[WORDS] / sum(weights), abs=1e-6)
        np.testing.assert_allclose([float(contexts[name][item]) for name in CONTEXTS], contexts_of(item), atol=1e-6)


@torch.no_grad()
def test_a_new_item_is_scored_by_a_bias_and_weights_of_its_own() -> None:
    model = stir(tiny_hybrid())
    model = model.with_items(TextVectors(TEXT.vectors[[0]], TEXT.present[[0]], (TEXTS[0],)))
    new, clicked = [UNCLICKED, ITEMS], [item for item in range(ITEMS) if item != UNCLICKED]
    (parts, _), before = model._parts(KNOWN), model.scores(KNOWN)
    model.gate.context_bias[0] += 0.7
    model.gate.log_weight[0] += torch.tensor([math.log(2), 0.0, -1.0, math.log(3)])
    after = model.scores(KNOWN)
    assert torch.equal(after[:, clicked], before[:, clicked])
    for item in new:
        expected = 2 * parts[0, :, item] + parts[1, :, item] + math.exp(-1) * parts[2, :, item] + 3 * parts[3, :, item]
        expected += model.gate.context_bias[0]
        torch.testing.assert_close(after[:, item], expected, rtol=1e-5, atol=1e-5)
    for parameter in (model.gate.context_bias, model.gate.log_weight):
        parameter[1:] += 1  # what is said of clicked items does not concern it
    assert torch.equal(model.scores(KNOWN)[:, new], after[:, new])
    assert model.explain(STRANGER, ITEMS).context == {"new": 1} | dict.fromkeys(CONTEXTS[1:], 0)


def test_query_features_are_centred_on_the_queries_the_gate_has_learned_from() -> None:
    asked = asked_features(stored("gate"), Queries.of(CUT.known("valid"), np.arange(USERS)))
    np.testing.assert_allclose(stored("gate").query_centre.numpy(), asked.mean(0), atol=1e-6)


def test_the_branches_of_the_gate_are_those_of_the_recipe() -> None:
    """SIGN needs no text and is the text branch here: in fitting as in scoring."""
    model = fit(graph=["ease"], text=["sign"])
    queries = Queries.of(CUT.known("valid"), np.arange(USERS))
    ease, sign = (z(model.sum.experts[name].scores(queries).double().numpy()) for name in ("ease", "sign"))
    assert float(model.query_centre[2]) == pytest.approx((ease * sign).mean(), abs=1e-6)
    torch.testing.assert_close(model.explain(STRANGER, 0).shares["text"], float(model._parts(STRANGER)[0][1, 0, 0]))


@pytest.mark.parametrize("split", [CUT, NO_VALIDATION], ids=["tuned", "untuned"])
def test_static_fusion_ranks_as_z_sum_with_the_same_experts(split: Any) -> None:
    task = replace(TASK, split=split)
    static, z_sum = fit(task, fusion="static"), build("z-sum", {"experts": EXPERTS, "settings": SMALL["settings"]})
    z_sum.fit(task)
    torch.testing.assert_close(static.scores(KNOWN), z_sum.scores(KNOWN), rtol=1e-5, atol=2e-6)
    assert torch.equal(static.scores(KNOWN).argsort(1), z_sum.scores(KNOWN).argsort(1))
    assert torch.equal(static.sum.weights, z_sum.weights)


def test_an_expert_without_static_weight_has_no_say() -> None:
    model = tiny_hybrid("static")
    model.sum.weights = torch.tensor([0.25, 0.5, 0.25, 0.0])
    model.gate.set_static(model.sum.weights)
    torch.testing.assert_close(model.scores(KNOWN), model.branch_scores(KNOWN, "graph"), rtol=1e-5, atol=2e-6)
    assert float(model.gate_values()[0].max()) < 1e-20


def test_a_branch_is_scored_alone_by_its_static_weights() -> None:
    model = stir(tiny_hybrid())
    model.sum.weights = torch.tensor([0.2, 0.3, 0.4, 0.1])
    experts = zscores(model, KNOWN)
    graph, text = (model.branch_scores(KNOWN, branch).numpy() for branch in model.branches)
    np.testing.assert_allclose(graph, 0.2 * experts[0] + 0.3 * experts[1] + 0.4 * experts[2], atol=2e-6)
    np.testing.assert_allclose(text, 0.1 * experts[WORDS], atol=2e-6)
    model.sum.weights = torch.tensor([0.0, 0.0, 0.0, 1.0])  # a branch without weight can still be looked at
    np.testing.assert_allclose(model.branch_scores(KNOWN, "graph").numpy(), sum(experts[:WORDS]), atol=2e-6)
    with pytest.raises(ValueError, match="unknown branch 'clicks'; known: graph, text"):
        model.branch_scores(KNOWN, "clicks")


def test_weight_moves_between_the_branches() -> None:
    model = tiny_hybrid()
    before, _ = model.gate_values()
    share = model.explain(STRANGER, 0).shares["text"]
    with torch.no_grad():
        model.gate.log_weight[:, WORDS] += math.log(3)
    after, _ = model.gate_values()
    torch.testing.assert_close(after, 3 * before / (1 + 2 * before), rtol=1e-5, atol=1e-6)
    assert model.explain(STRANGER, 0).shares["text"] == pytest.approx(3 * share, rel=1e-5)


# explanations


@pytest.mark.parametrize("item", [0, UNCLICKED, SILENT])
@pytest.mark.parametrize("asked", ["stranger", "known", "nobody"])
def test_shares_add_up_to_the_score(asked: str, item: int) -> None:
    model = stir(tiny_hybrid())
    nobody = Queries.anonymous(Histories.from_lists([[]]))
    queries = {"stranger": STRANGER, "known": Queries.of(CUT.known("test"), np.array([4])), "nobody": nobody}[asked]
    found = explain_item(model, queries, item)
    assert found.score == pytest.approx(float(model.scores(queries)[0, item]), abs=1e-5)
    assert sum(found.shares.values()) == pytest.approx(found.score, abs=1e-6)
    assert found.shares.keys() == {"clicks", "text", "context"}
    gamma, contexts = model.gate_values()
    assert found.gate == float(gamma[item])
    assert found.context == {name: float(membership[item]) for name, membership in contexts.items()}
    assert sum(found.context.values()) == pytest.approx(1, abs=1e-6)
    assert {row for row, _ in found.history} <= set(queries.histories.items.tolist())
    experts, features = zscores(model, queries), asked_features(model, queries)
    text = weight(model, item, WORDS, features[0] - model.query_centre.double().numpy()) * experts[WORDS][0, item]
    assert found.shares["text"] == pytest.approx(text, rel=1e-5, abs=1e-5)


# what the gate knows of items


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


def test_words_are_counted_where_texts_are_at_hand() -> None:
    assert stored("gate").num_words.tolist() == [0 if item == SILENT else item + 1 for item in range(ITEMS)]
    assert hybrid._count_words(TEXT).tolist() == [float(item != SILENT) for item in range(ITEMS)]


# without something


def test_text_is_needed_for_every_item() -> None:
    with pytest.raises(TextError, match="8 text vectors for 9 items"):
        fit(Task(SPLIT, TextVectors(TEXT.vectors[:8], TEXT.present[:8])))
    with pytest.raises(TextError, match="hybrid needs item text, and this data has none"):
        fit(Task(SPLIT))


def test_without_validation_the_weights_are_equal_and_it_still_recommends() -> None:
    notes = Notes()
    model = fit(replace(TASK, split=NO_VALIDATION, logger=notes))
    assert torch.isfinite(model.scores(KNOWN)).all()
    torch.testing.assert_close(model.gate_values()[0], torch.full((ITEMS,), 1 / len(EXPERTS)))
    assert not {"gate-or-static", "cold-lift"} & notes.events.keys()


def test_without_an_order_transitions_are_left_out_and_a_branch_may_be_empty() -> None:
    unordered = replace(TASK, split=replace(CUT, ordered=False))
    assert fit(unordered).sum.branches == ("sign", "item-knn", "text-knn")
    model = fit(unordered, graph=["transitions"], settings={})
    assert model.sum.branches == ("text-knn",)
    assert model.branch_scores(KNOWN, "graph").count_nonzero() == 0
    found = model.explain(STRANGER, 0)
    assert found.shares["clicks"] == 0
    assert found.gate == 1


def test_what_users_wrote_counts() -> None:
    written = TextVectors(TEXT.vectors[torch.arange(USERS) % 6] * -1, torch.ones(USERS, dtype=torch.bool))
    with_words = fit(replace(TASK, user_text=written), fusion="static")
    change = (with_words.branch_scores(KNOWN, "text") - stored("static").branch_scores(KNOWN, "text")).abs()
    assert float(change.max()) > 0.01
    assert hybrid.Hybrid.abilities.uses_user_text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graph": ["neural"]}, "unknown expert 'neural'; known: "),
        ({"graph": ["ease"], "text": ["ease"]}, "expert 'ease' is given twice"),
        ({"graph": ["hybrid"]}, "a stack cannot be an expert of itself"),
        ({"graph": []}, "at least 1 item"),
        ({"settings": {"ease": {}}}, rf"settings.ease: not one of the experts \({', '.join(EXPERTS)}\)"),
        ({"settings": {"sign": {"epochs": -1}}}, "settings.sign.epochs: Input should be greater than or equal to 0"),
        ({"gate": {"epoch": 1}}, "gate.epoch\n *Extra inputs are not permitted"),
    ],
)
def test_experts_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build("hybrid", settings)


# items added later


def test_an_added_item_is_scored_like_its_twin_by_text() -> None:
    model = stir(tiny_hybrid())
    twin = TextVectors(TEXT.vectors[[UNCLICKED]], TEXT.present[[UNCLICKED]], (TEXTS[UNCLICKED],))
    model = model.with_items(twin)
    scores = model.scores(KNOWN)
    torch.testing.assert_close(scores[:, ITEMS], scores[:, UNCLICKED], rtol=1e-5, atol=1e-5)
    new, old = model.explain(STRANGER, ITEMS), model.explain(STRANGER, UNCLICKED)
    assert new.shares == pytest.approx(old.shares, rel=1e-5, abs=1e-5)
    assert new.gate == pytest.approx(old.gate)
    assert new.context == old.context


def test_an_item_without_text_can_be_added_and_all_of_it_survives_saving() -> None:
    model = stir(tiny_hybrid())
    model = model.with_items(TextVectors(torch.zeros(1, DIM), torch.zeros(1, dtype=torch.bool)))
    assert torch.isfinite(model.scores(KNOWN)).all()
    again = build("hybrid", model.config.model_dump())
    again.restore(model.state())
    assert torch.equal(again.scores(KNOWN), model.scores(KNOWN))
    assert again.explain(STRANGER, ITEMS) == model.explain(STRANGER, ITEMS)
    for branch in model.branches:
        assert torch.equal(again.branch_scores(KNOWN, branch), model.branch_scores(KNOWN, branch))


# the gate has to prove itself


class Log(SilentLogger):
    """All that is logged, and the stages that were trained."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.trained: set[str] = set()

    def begin(self, name: str, total: int | None = None) -> None:
        self.name = name

    def advance(self, steps: int = 1, **values: float | str) -> None:
        if "loss" in values:
            self.trained.add(self.name)

    def log(self, event: str, **values: Any) -> None:
        self.lines.append({"event": event, **values})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


def test_a_gate_that_is_worse_for_users_it_has_not_seen_is_not_kept() -> None:
    log = Log()
    wild = SMALL["gate"] | {"learning_rate": 10.0, "l2": 0.0, "cold_budget": 0.0}
    model = fit(replace(TASK, logger=log), gate=wild)
    [said] = log.of("gate-or-static")
    assert said["gate"] < said["static"]
    assert not said["kept"]
    assert "train gate-fold-3" in log.trained
    assert "train gate" not in log.trained
    assert torch.equal(model.scores(KNOWN), stored("static").scores(KNOWN))


def test_a_gate_that_is_better_is_fitted_from_the_static_weights(keeps: None) -> None:
    log = Log()
    model = fit(replace(TASK, logger=log), gate=SMALL["gate"] | {"l2": 1e6, "cold_budget": 0.0})
    assert log.of("gate-or-static")[0]["kept"]
    assert "train gate" in log.trained
    assert float((model.scores(KNOWN) - stored("static").scores(KNOWN)).abs().max()) > 0
    free = fit(gate=SMALL["gate"] | {"l2": 0.0, "cold_budget": 0.0})

    start = stored("static").gate.log_weight.detach().clamp_min(math.log(LEARNABLE))

    def moved(other: Any) -> float:
        return float((other.gate.log_weight.detach() - start).abs().max())

    assert moved(model) < 0.3 * moved(free)  # pulled back


def test_cold_and_new_items_are_lifted_where_the_gate_is_not_kept() -> None:
    log = Log()
    wild = SMALL["gate"] | {"learning_rate": 10.0, "cold_budget": 1.0, "cold_degree": 2.5}
    model = fit(replace(TASK, logger=log), gate=wild)
    [said], clicks = log.of("cold-lift"), CUT.item_degree()[CUT.valid.item]
    assert not log.of("gate-or-static")[0]["kept"]
    assert said["cold"]["targets"] == ((clicks > 0) & (clicks < 2.5)).sum() > 0
    assert said["new"]["targets"] == (CUT.valid.item == UNCLICKED).sum() > 0
    assert said["cold"]["tried"]["0.0"] == pytest.approx(log.of("gate-or-static")[0]["static"])
    cold, new = said["cold"]["lift"], said["new"]["lift"]
    assert model.gate.context_bias.tolist() == [new, cold, cold, 0, 0] == [5, 5, 5, 0, 0]


def test_cold_and_new_items_are_lifted_where_the_gate_is_kept(keeps: None) -> None:
    log = Log()
    model = fit(replace(TASK, logger=log), gate=SMALL["gate"] | {"cold_budget": 1.0})
    [said] = log.of("cold-lift")
    assert log.of("gate-or-static")[0]["kept"]
    assert said["cold"]["tried"]["0.0"] == pytest.approx(log.of("gate-or-static")[0]["gate"])
    unlifted = fit(gate=SMALL["gate"] | {"cold_budget": 0.0})
    cold, new = said["cold"]["lift"], said["new"]["lift"]
    assert cold == new == 5
    moved = (model.gate.context_bias - unlifted.gate.context_bias).detach()
    torch.testing.assert_close(moved, torch.tensor([new, cold, cold, 0, 0]), rtol=1e-6, atol=1e-6)


def test_new_items_are_not_lifted_where_validation_has_none() -> None:
    log = Log()
    seen = replace(CUT, valid=CUT.valid.where(CUT.valid.item != UNCLICKED))
    wild = SMALL["gate"] | {"learning_rate": 10.0, "cold_budget": 1.0}
    model = fit(replace(TASK, split=seen, logger=log), gate=wild)
    [said] = log.of("cold-lift")
    assert not log.of("gate-or-static")[0]["kept"]
    assert (said["new"]["lift"], said["new"]["targets"], len(said["new"]["tried"])) == (0, 0, 1)
    assert model.gate.context_bias.tolist() == [0, said["cold"]["lift"], said["cold"]["lift"], 0, 0]
    assert said["cold"]["lift"] > 0


# baselines of the gate, decoys


def test_a_static_sum_with_a_prior_adds_a_multiple_of_the_log_clicks() -> None:
    log = Log()
    model = fit(replace(TASK, logger=log), fusion="static+prior", gate={"decoys": 0.0})
    [said] = log.of("prior-tuned")
    assert model.prior == said["prior"] == float(max(said["tried"], key=lambda p: said["tried"][p]))
    assert said["tried"]["0.0"] <= said["tried"][str(model.prior)]
    model.prior = 0.3
    degree = torch.from_numpy(clicks_of(CUT.train, USERS, ITEMS).sum(0)).float()
    expected = stored("static").scores(KNOWN) + 0.3 * degree.log1p()
    torch.testing.assert_close(model.scores(KNOWN), expected, rtol=1e-5, atol=2e-6)
    again = build("hybrid", model.config.model_dump())
    again.restore(model.state())
    assert torch.equal(again.scores(KNOWN), model.scores(KNOWN))
    assert sum(model.explain(STRANGER, 0).shares.values()) == pytest.approx(
        float(model.scores(STRANGER)[0, 0]), abs=1e-5
    )


def test_a_static_sum_with_a_lift_adds_one_number_for_cold_and_one_for_new_items() -> None:
    log = Log()
    model = fit(replace(TASK, logger=log), fusion="static+lift", gate={"cold_budget": 1.0, "decoys": 0.0})
    [said] = log.of("cold-lift")
    assert not log.of("gate-or-static")
    cold, new = said["cold"]["lift"], said["new"]["lift"]
    assert (cold, new, said["kept_up"]["bias"]) == (5, 5, None)
    contexts = np.array([contexts_of(item) for item in range(ITEMS)])
    added = torch.from_numpy(contexts @ np.array([new, cold, cold, 0, 0])).float()
    torch.testing.assert_close(model.scores(KNOWN), stored("static").scores(KNOWN) + added, rtol=1e-5, atol=2e-5)


def test_a_gate_by_degree_weighs_items_with_as_many_clicks_alike() -> None:
    world, split = planted_world()
    weights = {}
    for fusion in ("gate", "degree"):
        model = build("hybrid", {"fusion": fusion, "graph": ["ease", "transitions"]})
        model.fit(Task(split, world.text))
        assert model.gate.log_weight.std(0).max() > 0, "not fitted"
        weights[fusion] = model.gate.weigh_items(model.inputs())[0]
        slopes = torch.cat([model.gate.query_slope, model.gate.item_slope[1:]]).detach()
        assert bool(slopes.any()) == (fusion == "gate")
    degree = torch.from_numpy(split.item_degree())
    for clicks in degree.unique():
        same = degree == clicks
        assert torch.equal(weights["degree"][same], weights["degree"][same][:1].expand(int(same.sum()), -1))
    assert not torch.equal(weights["degree"], weights["gate"])


@pytest.mark.parametrize("fusion", ["static+lift", "static+prior"])
def test_settings_of_the_gate_that_a_static_sum_does_not_read_are_refused(fusion: str) -> None:
    with pytest.raises(ValidationError, match=r'gate\.epochs has no effect: it needs fusion = "gate"'):
        build("hybrid", {"fusion": fusion, "gate": {"epochs": 9, "decoys": 1.0}})


def planted_world(share: int = 6) -> tuple[Any, Any]:
    """The block world, in which every sixth user clicks an item without training clicks, and its split."""
    world = block_world()
    split, users = world.split, np.arange(world.split.num_users)

    def some_new(part: Any, which: int) -> Any:
        item = part.item.copy()
        for user in users[(users + which) % share == 0]:
            item[user] = world.cold_of(world.user_block[user])[which]
        return replace(part, item=item)

    return world, replace(split, valid=some_new(split.valid, 0), test=some_new(split.test, 1))


def decoys_of_the_world(world: Any, number: int) -> TextVectors:
    """Items that nobody clicks, with texts of the same kind as those of the items."""
    random = rng(5, "decoys-of-the-world")
    blocks, noise = random.integers(0, BLOCKS, number), random.normal(0, 0.05, (number, world.directions.shape[1]))
    vectors = world.directions[torch.from_numpy(blocks)] + torch.from_numpy(noise.astype(np.float32))
    return TextVectors(torch.nn.functional.normalize(vectors, dim=1), torch.ones(number, dtype=torch.bool))


def test_new_items_rank_no_worse_than_by_static_weights_whatever_unclicked_items_there_are() -> None:
    world, split = planted_world()
    figures: dict[str, list[float]] = {}
    for fusion in ("static", "gate", "static+lift"):
        model = build("hybrid", {"fusion": fusion, "graph": ["ease", "transitions"]})
        model.fit(Task(split, world.text))
        for number in (0, 30, 100):
            more = replace(split, num_items=split.num_items + number)
            found = evaluate_model(model.with_items(decoys_of_the_world(world, number)), more)
            figures.setdefault(fusion, []).append(found.strata["item_degree"]["0"]["ndcg@20"])
    for fusion in ("gate", "static+lift"):
        assert (np.array(figures[fusion]) >= np.array(figures["static"])).all(), figures


def test_decoys_are_candidates_of_the_fit_and_no_part_of_the_model() -> None:
    seen: dict[float, int] = {}
    for share in (0.0, 0.5):
        log = Log()
        model = fit(replace(TASK, logger=log), gate=SMALL["gate"] | {"decoys": share})
        seen[share] = log.of("gate-users")[0]["items"]
        assert model.scores(KNOWN).shape[1] == len(model.gate_values()[0]) == ITEMS
    assert seen == {0.0: ITEMS, 0.5: ITEMS + round(0.5 * ITEMS)}


# interruption in every stage


STAGES = {"sign": 2, "gate-fold-1": 3, "gate-fold-2": 1, "gate-fold-3": 4, "gate": 6}  # and the step to stop after


@pytest.mark.parametrize("stage", STAGES)
def test_a_fit_interrupted_in_any_stage_resumes_to_the_same_bytes_and_log(
    keeps: None, tmp_path: Path, stage: str
) -> None:
    class StopsIn(Log):
        steps = 0

        def begin(self, name: str, total: int | None = None) -> None:
            self.name, self.steps = name, 0

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.steps += steps
            if self.name == f"train {stage}" and self.steps == STAGES[stage]:
                os.kill(os.getpid(), signal.SIGTERM)

    kept = replace(TASK, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(Interrupted, match=f"stage '{stage}'"):
        fit(replace(kept, logger=StopsIn()))
    log, whole_log = Log(), Log()
    resumed, whole = fit(replace(kept, logger=log)), fit(replace(TASK, logger=whole_log))
    assert save(resumed.state()) == save(whole.state())
    assert log.lines == whole_log.lines


def test_the_log_tells_with_every_epoch_how_much_the_text_counts_in_every_context(keeps: None) -> None:
    log = Log()
    model = fit(replace(TASK, logger=log), gate=SMALL["gate"] | {"cold_budget": 0.0})
    epochs = [line for line in log.of("epoch") if line["stage"] == "gate"]
    assert [line["epoch"] for line in epochs] == [1, 2]
    gamma, contexts = model.gate_values()
    for name in CONTEXTS:
        expected = float((contexts[name] * gamma).sum() / contexts[name].sum())
        assert epochs[-1]["gate"][name]["mean"] == pytest.approx(expected, abs=1e-6)
    assert epochs[0]["gate"] != epochs[1]["gate"]


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"sign": SMALL["settings"]["sign"] | {"temperature": 0.5}}},
        {"settings": SMALL["settings"] | {"text-knn": {"text_dim": 2}}},
        {"settings": SMALL["settings"] | {"transitions": {"window": 1}}},
        {"settings": SMALL["settings"] | {"item-knn": {"neighbours": 1}}},
        {"gate": SMALL["gate"] | {"cold_degree": 1.0}},
        {"text": ["text-knn", "popularity"]},
        {"ordered": False},
    ],
    ids=["sign", "text-knn", "transitions", "item-knn", "gate", "experts", "ordered"],
)
def test_a_stage_is_shared_only_by_runs_in_which_it_would_come_out_the_same(
    keeps: None, tmp_path: Path, other: Any
) -> None:
    settings = dict(other)
    task = replace(TASK, split=replace(CUT, ordered=settings.pop("ordered", True)))
    fit(replace(TASK, checkpoints=Checkpoints(tmp_path / "first", tmp_path / "shared")))
    sharing = fit(replace(task, checkpoints=Checkpoints(tmp_path / "second", tmp_path / "shared")), **settings)
    assert save(sharing.state()) == save(fit(task, **settings).state())


def test_what_is_shared_is_not_trained_again_but_logged(keeps: None, tmp_path: Path) -> None:
    logs = {}
    for run, fusion in (("first", "static"), ("second", "gate"), ("third", "gate")):
        logs[run] = Log()
        checkpoints = Checkpoints(tmp_path / run, tmp_path / "shared")
        fit(replace(TASK, logger=logs[run], checkpoints=checkpoints), fusion=fusion)
    gates = {f"train {name}" for name in STAGES if name != "sign"}
    assert [logs[run].trained for run in logs] == [{"train sign"}, gates, set()]
    assert logs["third"].lines == logs["second"].lines
    assert {line["stage"] for line in logs["third"].of("epoch")} == set(STAGES)


def test_stages_of_one_name_and_other_settings_lie_beside_each_other(keeps: None, tmp_path: Path) -> None:
    """Runs with other settings in between take nothing from those that share with each other."""
    other = {
        "settings": {"sign": SMALL["settings"]["sign"] | {"temperature": 0.5}},
        "gate": SMALL["gate"] | {"learning_rate": 0.01},
    }
    every = {f"train {name}" for name in STAGES}
    logs, models = [Log() for _ in range(4)], []
    for number, (log, settings) in enumerate(zip(logs, ({}, other, {}, other), strict=True)):
        checkpoints = Checkpoints(tmp_path / str(number), tmp_path / "shared")
        models.append(fit(replace(TASK, logger=log, checkpoints=checkpoints), **settings))
        assert (checkpoints.earlier > 0) == (number > 1)  # seconds
    assert [log.trained for log in logs] == [every, every, set(), set()]
    first, second, third, fourth = (save(model.state()) for model in models)
    assert first == third != second == fourth
    assert [logs[2].lines, logs[3].lines] == [logs[0].lines, logs[1].lines]
    names = sorted(path.name for path in (tmp_path / "shared").iterdir())
    for stage in STAGES:
        assert sum(name.rpartition("-")[0] == stage for name in names) == 2
    assert len(names) == 2 * len(STAGES)


def test_new_items_are_ranked_by_text_though_tuning_gave_it_no_weight() -> None:
    world = block_world()
    model = build("hybrid", {"fusion": "static", "graph": ["item-knn"]})
    model.fit(world.task())
    assert isinstance(model, hybrid.Hybrid)
    model.sum.weights = torch.tensor([1.0, 0.0])
    model.gate.set_static(model.sum.weights)
    model._keep_text_for_new(model.gate, NOTHING)
    new = torch.cat([world.new_text(block).vectors for block in (2, 4)])
    more, first = model.with_items(TextVectors(new, torch.ones(2, dtype=torch.bool))), world.split.num_items
    queries = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    scores = more.scores(queries)
    for block, better in ((2, first), (4, first + 1)):
        own = torch.from_numpy(world.user_block == block)
        assert (scores[own, better] > scores[own, 2 * first + 1 - better]).all()
    history = Queries.anonymous(Histories.from_lists([[first], [0, 1]]))  # of a new item: nothing but its text is known
    alike = more.scores(history)
    torch.testing.assert_close(alike[0], more.sum.branch_scores(history, "text-knn")[0])
    explained = more.explain(history, 25)
    assert sum(explained.shares.values()) == pytest.approx(float(alike[0, 25]), abs=1e-5)
    assert explained.shares["context"] == 0
