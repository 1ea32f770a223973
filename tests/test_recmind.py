"""RecMind against its equations in loops: training steps by finite differences, served vectors, new users and items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, load_file, save

from dense import Dense, cross_entropy, faded_mean, normalised, slope, softplus
from graphllmrec import run_folder as run
from graphllmrec.data.tables import Histories
from graphllmrec.errors import Interrupted, TextError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.fusion.recmind import RecMindConfig
from graphllmrec.models.fusion.recmind import model as recmind
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import NextClicks, UnclickedItems
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, SilentLogger, Task, TextVectors
from graphllmrec.recipe import load_recipe
from graphllmrec.rng import At, rng, torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train import validation
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.loop import TrainingStage
from tiny import CLICKS, DECAY, DIM, ITEMS, QUERY, SPLIT, TASK, TEXT, TRAIN, USERS, fitted
from world import block_world

SEED, WIDTH, AXES, LAYERS = 5, 4, 3, 2
TEMPERATURE, CLOSE, LAMBDA = 0.8, 0.5, 0.7
AT = (SEED, "recmind", 2, 1)
ROWS = np.array([3, 0, 11, 7, 4, 7])
SMALL = {
    "embedding_dim": WIDTH, "text_dim": AXES, "num_layers": LAYERS, "decay": DECAY, "temperature": TEMPERATURE,
    "align": LAMBDA, "align_temperature": CLOSE, "hardness": 0.0, "queue": 5, "dropout": 0.0, "cold_dropout": 0.0,
    "hidden": 0,
}  # fmt: skip
ALIGNMENT = ("align", "align_temperature", "hardness", "queue", "warmup_epochs", "align_size")


def small(**changes: Any) -> dict[str, Any]:
    """SMALL with changes, less what would do nothing then."""
    settings = SMALL | changes
    idle = set(ALIGNMENT) if settings.get("fusion") in ("text", "graph") else set()
    idle |= set() if settings.get("cosine", True) else {"temperature"}
    idle |= {"decay"} if settings.get("query") == "user" else set()
    return {key: value for key, value in settings.items() if key not in idle}


FEATURES = unit(Whitening.fit(TEXT, AXES).apply(TEXT)).double().numpy()
HAS_TEXT = TEXT.present.numpy()
NORM = normalised(CLICKS)
DEGREE = (CLICKS.sum(1), CLICKS.sum(0))
SCALED = tuple(np.log1p(degree) / np.log1p(degree).max() for degree in DEGREE)
EXAMPLES = NextClicks(SPLIT.train.histories(USERS), ordered=True, max_history=50)
Weights = dict[str, Dense]
Pair = tuple[Dense, Dense]


def staged(
    monkeypatch: pytest.MonkeyPatch, task: Task = TASK, **settings: Any
) -> tuple[Any, list[TrainingStage], Weights]:
    """A model served from random weights, its training stages, and those weights in float64."""
    kept: list[TrainingStage] = []

    def instead_of_training(stage: TrainingStage, _: Task) -> float:
        if not kept:
            random = rng(SEED, "weights")
            for tensor in stage.module.parameters():
                tensor.data = torch.from_numpy(np.asarray(random.normal(0, 0.6, tuple(tensor.shape)), dtype=np.float32))
        kept.append(stage)
        return 0.0

    for module in (recmind, validation):
        monkeypatch.setattr(module, "train", instead_of_training)
    model = build("recmind", small(**settings))
    model.fit(replace(task, seed=SEED))
    weights = {name: value.detach().double().numpy().copy() for name, value in kept[0].module.named_parameters()}
    return model, kept, weights


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def unit_of(vector: Dense) -> Dense:
    length = math.sqrt(float(vector @ vector))
    return vector / length if length else vector


def projected(features: Dense, weights: Weights) -> Dense:
    """W_proj x, behind the residual network where it has hidden units."""
    inner, outer = weights["projection.inner"], weights["projection.outer"]
    if len(inner):
        raw = inner @ features
        gelu = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in raw])
        features = unit_of(features + outer @ gelu)
    out: Dense = weights["projection.matrix"] @ features
    return out


def language(weights: Weights, user_features: dict[int, Dense] | None = None) -> Pair:
    """z_L of users and items."""
    items = np.zeros((ITEMS, WIDTH))
    for item in range(ITEMS):
        if HAS_TEXT[item]:
            items[item] = projected(FEATURES[item], weights)
        else:
            items[item] = weights["stand_in"] + weights["stand_in_map"] @ weights["items"][item]
    users = np.zeros((USERS, WIDTH))
    for user in range(USERS):
        own = (user_features or {}).get(user)
        users[user] = np.mean([items[i] for i in TRAIN[user]], axis=0) if own is None else projected(own, weights)
    return users, items


def embedded(weights: Weights) -> Pair:
    return weights.get("users", np.zeros((USERS, WIDTH))), weights["items"]


def one_hop(users: Dense, items: Dense) -> Pair:
    out = np.zeros_like(users), np.zeros_like(items)
    for user in range(USERS):
        for item in range(ITEMS):
            out[0][user] += NORM[user, item] * items[item]
            out[1][item] += NORM[user, item] * users[user]
    return out


def lightgcn(weights: Weights) -> Pair:
    """z_G: the mean of the layers of the embeddings."""
    layers = [embedded(weights)]
    for _ in range(LAYERS):
        layers.append(one_hop(*layers[-1]))
    return np.mean([users for users, _ in layers], axis=0), np.mean([items for _, items in layers], axis=0)


def gate(side: int, node: int, graph: Dense, text: Dense, weights: Weights) -> float:
    name = ("user_gate", "item_gate")[side]
    if not DEGREE[side][node]:
        return 1.0
    raw = float(weights[f"{name}.by_graph"] @ graph + weights[f"{name}.by_text"] @ text)
    return sigmoid(raw + float(weights[f"{name}.by_degree"]) * SCALED[side][node] + float(weights[f"{name}.bias"]))


def gated(graph: Pair, text: Pair, weights: Weights) -> tuple[Pair, list[Dense]]:
    """(1 - γ) E + γ z_L of users and items, and γ of both."""
    mixed, gates = [], []
    for side in (0, 1):
        own = [gate(side, node, graph[side][node], text[side][node], weights) for node in range(len(graph[side]))]
        rows = zip(own, graph[side], text[side], strict=True)
        mixed.append(np.array([(1 - g) * e + g * z for g, e, z in rows]))
        gates.append(np.array(own))
    return (mixed[0], mixed[1]), gates


def fused(weights: Weights, text: Pair, fusion: str) -> tuple[Pair, Dense]:
    """h of users and items, and the items' γ."""
    if fusion == "text":
        return text, np.ones(ITEMS)
    if fusion == "graph":
        return lightgcn(weights), np.zeros(ITEMS)
    if fusion == "late":
        mixed, gates = gated(lightgcn(weights), text, weights)
        return mixed, gates[1]
    layer, layers, seen = embedded(weights), [], []
    for _ in range(LAYERS):
        mixed, gates = gated(layer, text, weights)
        layers.append(mixed)
        seen.append(gates[1])
        layer = one_hop(*mixed)
    layers.append(layer)
    h = np.mean([users for users, _ in layers], axis=0), np.mean([items for _, items in layers], axis=0)
    return h, np.mean(seen, axis=0)


def scaled_query(query: Dense, weights: Weights, cosine: bool) -> Dense:
    query = unit_of(query) if cosine else query
    query = query @ weights["query_map"] if "query_map" in weights else query
    return query / TEMPERATURE if cosine else query


def scaled_item(item: Dense, cosine: bool) -> Dense:
    return unit_of(item) if cosine else item


def item_bias(weights: Weights) -> Dense:
    bias = weights.get("bias", np.zeros(ITEMS))
    out: Dense = float(weights["popularity"]) * np.log1p(DEGREE[1]) + bias * (DEGREE[1] > 0)
    return out


def alignment(weights: Weights, users: list[int], items: list[int]) -> float:
    """Symmetric InfoNCE of the batch's distinct users and items, nothing queued, halved for the two kinds."""
    total = 0.0
    for nodes, graph, text in zip((users, items), lightgcn(weights), language(weights), strict=True):
        for first, second in ((graph, text), (text, graph)):
            for place, node in enumerate(nodes):
                scores = [float(unit_of(first[node]) @ unit_of(second[other])) / CLOSE for other in nodes]
                total += cross_entropy(scores, place) / (2 * len(nodes))
    return total / 2


def assert_step(stage: TrainingStage, weights: Weights, rows: np.ndarray, expected: Callable[[], float]) -> None:
    """Loss and all gradients of a batch, against `expected` (which reads `weights`) and its slopes."""
    loss = stage.loss(rows, At(SEED, stage.name, AT[2], AT[3]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(), abs=2e-6)
    for name, parameter in stage.module.named_parameters():
        if parameter.requires_grad and name in weights:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            np.testing.assert_allclose(found.numpy(), slope(expected, weights[name]), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
def test_a_step_of_histories(monkeypatch: pytest.MonkeyPatch, fusion: str, cosine: bool) -> None:
    settings = {
        "fusion": fusion,
        "cosine": cosine,
        "item_bias": not cosine,
        "hidden": 3 if cosine and fusion != "graph" else 0,
    }
    _, stages, weights = staged(monkeypatch, **settings, text_dropout=0.0)
    users, items = np.unique(EXAMPLES.user[ROWS]).tolist(), np.unique(EXAMPLES.target[ROWS]).tolist()

    def expected() -> float:
        (_, h), _ = fused(weights, language(weights), fusion)
        total = 0.0
        for row in ROWS:
            history = EXAMPLES.histories(np.array([row])).items.tolist()
            query = scaled_query(faded_mean(history, h, DECAY), weights, cosine)
            scores = [float(query @ scaled_item(h[i], cosine)) + item_bias(weights)[i] for i in range(ITEMS)]
            total += cross_entropy(scores, int(EXAMPLES.target[row])) / len(ROWS)
        return total + (LAMBDA * alignment(weights, users, items) if fusion in ("intra", "late") else 0.0)

    assert [stage.name for stage in stages] == (["recmind-align"] if fusion in ("intra", "late") else []) + ["recmind"]
    assert_step(stages[-1], weights, ROWS, expected)


@pytest.mark.parametrize("fusion", ["intra", "late"])
def test_a_step_of_the_warm_up(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    _, stages, weights = staged(monkeypatch, fusion=fusion, query="user", loss="bpr")
    users, items = np.unique(SPLIT.train.user[ROWS]).tolist(), np.unique(SPLIT.train.item[ROWS]).tolist()
    assert stages[0].validate is None
    assert_step(stages[0], weights, ROWS, lambda: alignment(weights, users, items))


@pytest.mark.parametrize("fusion", ["intra", "late"])
def test_a_step_as_published(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    _, stages, weights = staged(monkeypatch, fusion=fusion, query="user", loss="bpr", cosine=False)
    user, liked = SPLIT.train.user[ROWS], SPLIT.train.item[ROWS]
    other = UnclickedItems(SPLIT.train.histories(USERS), ITEMS).draw(user, *AT)

    def expected() -> float:
        (users, items), _ = fused(weights, language(weights), fusion)
        own = users @ items.T + item_bias(weights)
        losses = [softplus(own[u, j] - own[u, i]) for u, i, j in zip(user, liked, other, strict=True)]
        return float(np.mean(losses)) + LAMBDA * alignment(weights, sorted(set(user)), sorted(set(liked)))

    assert_step(stages[-1], weights, ROWS, expected)


def test_a_step_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stages, weights = staged(monkeypatch, query="user", loss="softmax", align=0.0)
    rows = np.array([1, 4, 0])

    def expected() -> float:
        (users, items), _ = fused(weights, language(weights), "intra")
        losses = []
        for user in rows:
            query = scaled_query(users[user], weights, cosine=True)
            scores = [float(query @ unit_of(items[i])) + item_bias(weights)[i] for i in range(ITEMS)]
            losses += [cross_entropy(scores, int(item)) for item in TRAIN[user]]
        return float(np.mean(losses))

    assert_step(stages[-1], weights, rows, expected)


def test_dropped_items_are_items_without_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stages, weights = staged(monkeypatch, cold_dropout=0.5, align=0.0)
    cold = (torch.rand(ITEMS, 1, generator=torch_rng(SEED, "recmind/cold", 2, 1)) < 0.5).numpy()
    assert 0 < cold.sum() < ITEMS

    def expected() -> float:
        text = language(weights)
        (_, h), _ = fused(weights, text, "intra")
        h = np.where(cold, text[1] * LAYERS / (LAYERS + 1), h)
        total = 0.0
        for row in ROWS:
            history = EXAMPLES.histories(np.array([row])).items.tolist()
            query = scaled_query(faded_mean(history, h, DECAY), weights, cosine=True)
            scores = [float(query @ unit_of(h[i])) + item_bias(weights)[i] for i in range(ITEMS)]
            total += cross_entropy(scores, int(EXAMPLES.target[row])) / len(ROWS)
        return total

    assert_step(stages[-1], weights, ROWS, expected)


# serving


@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
def test_histories_get_the_scores_of_the_equation(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    model, _, weights = staged(monkeypatch, fusion=fusion)
    text = language(weights)
    (_, h), gates = fused(weights, text, fusion)
    branches = {"fused": h, "text": text[1], "graph": lightgcn(weights)[1]}
    queries = Queries.anonymous(Histories.from_lists(QUERY))
    for branch, vectors in branches.items():
        expected = [
            [float(scaled_query(faded_mean(list(q), vectors, DECAY), weights, True) @ unit_of(v)) for v in vectors]
            for q in QUERY
        ]
        found = model.scores(queries) if branch == "fused" else model.branch_scores(queries, branch)
        np.testing.assert_allclose(found.numpy(), np.array(expected) + item_bias(weights), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(model.gate_values()[0].numpy(), gates, atol=1e-6)
    with pytest.raises(ValueError, match="unknown branch 'prose'"):
        model.branch_scores(queries, "prose")


@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
def test_users_of_training_get_the_scores_of_training(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    """Their vector is made from their history when they ask; with the history of training it is that of training."""
    model, _, weights = staged(monkeypatch, fusion=fusion, query="user", loss="bpr", cosine=False)
    text = language(weights)
    all_users = Queries.of(SPLIT.train.histories(USERS), np.arange(USERS))
    for branch, pair in {"": fused(weights, text, fusion)[0], "text": text, "graph": lightgcn(weights)}.items():
        found = model.branch_scores(all_users, branch) if branch else model.scores(all_users)
        np.testing.assert_allclose(found.numpy(), pair[0] @ pair[1].T + item_bias(weights), rtol=1e-5, atol=5e-6)


def test_an_unknown_user_is_a_node_whose_embedding_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stages, weights = staged(monkeypatch, query="user", loss="bpr", cosine=False)
    net = stages[-1].module
    net.users.data[4] = 0
    weights["users"][4] = 0
    model._export_vectors(net)
    expected = fused(weights, language(weights), "intra")[0]
    unknown = Queries.anonymous(Histories.from_lists([TRAIN[4]]))
    found = model.scores(unknown)[0].numpy()
    np.testing.assert_allclose(found, expected[1] @ expected[0][4] + item_bias(weights), rtol=1e-5, atol=5e-6)


def test_a_later_click_moves_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = staged(monkeypatch, query="user", loss="bpr")
    now, then = (Queries.of(SPLIT.known(part), np.arange(USERS)) for part in ("test", "valid"))
    assert not torch.allclose(model.scores(now), model.scores(then), atol=1e-3)


def test_texts_of_users_stand_in_for_the_mean_of_their_items(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.from_numpy(rng(SEED, "reviews").normal(size=(USERS, DIM)).astype(np.float32))
    present = torch.arange(USERS) % 3 == 0
    reviews = TextVectors(vectors * present[:, None], present)
    task = replace(TASK, user_text=reviews)
    model, _, weights = staged(monkeypatch, task, query="user", loss="bpr", cosine=False)
    features = unit(Whitening.fit(TEXT, AXES).apply(reviews)).double().numpy()
    text = language(weights, {user: features[user] for user in range(0, USERS, 3)})
    expected = fused(weights, text, "intra")[0]
    all_users = Queries.of(SPLIT.train.histories(USERS), np.arange(USERS))
    found = model.scores(all_users).numpy()
    np.testing.assert_allclose(found, expected[0] @ expected[1].T + item_bias(weights), rtol=1e-5, atol=5e-6)
    with pytest.raises(TextError, match="13 text vectors for 14 users"):
        build("recmind", small()).fit(replace(task, user_text=TextVectors(vectors[1:], present[1:])))


@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
def test_new_items_are_their_text(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    model, _, weights = staged(monkeypatch, fusion=fusion, query="user", loss="bpr", cosine=False)
    before = model.scores(Queries.anonymous(Histories.from_lists(QUERY)))
    model = model.with_items(TextVectors(TEXT.vectors[:2], torch.tensor([True, False])))
    share = {"intra": LAYERS / (LAYERS + 1), "graph": 0.0}.get(fusion, 1.0)
    expected = [share * projected(FEATURES[0], weights), share * weights["stand_in"]]
    np.testing.assert_allclose(model.item_vectors()[-2:, :-1].numpy(), expected, atol=1e-6)
    after = model.scores(Queries.anonymous(Histories.from_lists(QUERY)))
    assert torch.equal(after[:, :ITEMS], before)
    assert model.gate_values()[0][-2:].tolist() == ([0.0, 0.0] if fusion == "graph" else [1.0, 1.0])
    assert torch.isfinite(model.scores(Queries.anonymous(Histories.from_lists([[ITEMS, 1], [ITEMS + 1]])))).all()


@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
@pytest.mark.parametrize("query", ["user", "history"])
def test_shares_of_an_explanation_add_up_to_the_score(monkeypatch: pytest.MonkeyPatch, fusion: str, query: str) -> None:
    model, _, _ = staged(monkeypatch, fusion=fusion, query=query)
    queries = Queries.of(SPLIT.train.histories(USERS), np.array([3]))
    for item in range(ITEMS):
        found = model.explain(queries, item)
        assert found.score == pytest.approx(float(model.scores(queries)[0, item]), abs=1e-5)
        assert sum(found.shares.values()) == pytest.approx(found.score, abs=1e-6)
        assert found.gate == pytest.approx(float(model.gate_values()[0][item]))
        if fusion == "graph":
            assert found.shares["text"] == pytest.approx(0, abs=1e-6)
        if fusion == "text" or found.gate == 1.0:
            assert found.shares["clicks"] == pytest.approx(0, abs=1e-6)


# training


def test_at_the_start_fewer_clicks_mean_more_language() -> None:
    model = build("recmind", small() | {"epochs": 0, "warmup_epochs": 0})
    model.fit(TASK)
    gates, degree = model.gate_values()[0].numpy(), DEGREE[1]
    order = np.argsort(degree, kind="stable")
    assert (np.diff(gates[order]) <= 1e-6).all()
    assert gates[order][0] > gates[order][-1]
    assert set(gates[degree == 0]) <= {1.0}


def test_ablations_are_settings() -> None:
    kind = RecMindConfig
    assert kind().aligned
    assert not kind(align=0.0).aligned
    assert not kind(fusion="text").aligned
    with pytest.raises(ValidationError, match="needs num_layers of at least 1"):
        kind(num_layers=0)
    with pytest.raises(ValidationError, match='needs query = "user"'):
        kind(loss="slk", query="history")


@pytest.mark.parametrize(
    ("settings", "idle", "needed"),
    [
        ({"cosine": False, "temperature": 0.3}, "temperature", "cosine = true"),
        ({"text_dropout": 0.4}, "text_dropout", "hidden above 0"),
        ({"fusion": "text", "cold_dropout": 0.4}, "cold_dropout", "a graph branch"),
        ({"fusion": "graph", "align": 0.3}, "align", 'fusion "intra" or "late"'),
        ({"fusion": "text", "warmup_epochs": 3}, "warmup_epochs", 'fusion "intra" or "late"'),
        ({"fusion": "text", "gate_schedule": "late"}, "gate_schedule", 'fusion "intra" or "late"'),
        ({"align": 0.0, "warmup_epochs": 0, "queue": 9}, "queue", "an alignment"),
        ({"fusion": "text", "align_size": 9}, "align_size", "an alignment"),
        ({"fusion": "text", "hardness": 0.1}, "hardness", "an alignment"),
        ({"fusion": "text", "align_temperature": 0.1}, "align_temperature", "an alignment"),
        ({"monitor_users": 0, "gate_schedule": "ratio"}, "gate_schedule", "monitor_users above 0"),
        ({"gate_schedule": "ratio", "gate_schedule_strength": 1.0}, "gate_schedule_strength", '"grokking" or "late"'),
        ({"gate_schedule": "late", "gate_schedule_half_life": 1.0}, "gate_schedule_half_life", '"grokking"'),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], idle: str, needed: str) -> None:
    with pytest.raises(ValidationError, match=f"{idle} has no effect: it needs .*{needed}"):
        RecMindConfig(**settings)


def test_settings_of_adapters_need_epochs_of_them() -> None:
    with pytest.raises(ValidationError, match=r"lora.epochs of at least 1"):
        RecMindConfig(lora={"rank": 4})
    assert RecMindConfig(lora={"rank": 4, "epochs": 1}).lora.rank == 4


@pytest.mark.parametrize("name", ["recmind", "recmind-lora"])
def test_recipes(name: str) -> None:
    recipe = load_recipe(name)
    config = recipe.model.config
    assert isinstance(config, RecMindConfig)
    assert config.query == "history"
    assert bool(config.lora.epochs) == (name == "recmind-lora")
    unordered = recipe.for_data(ordered=False).model.config
    assert isinstance(unordered, RecMindConfig)
    assert unordered.query == "user"


@pytest.mark.parametrize("loss", ["bpr", "softmax", "slk"])
def test_user_queries_learn_their_block(loss: str) -> None:
    world = block_world()
    model = build(
        "recmind", {"query": "user", "loss": loss, "batch_size": 32, "epochs": 8, "embedding_dim": 16, "queue": 32}
    )
    model.fit(world.task())
    all_users = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    scores = model.scores(all_users)
    known = all_users.histories
    scores[torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)] = -torch.inf
    assert (world.item_block[scores.argmax(1).numpy()] == world.user_block).mean() > 0.9
    new = model.scores(Queries.anonymous(Histories.from_lists([[12, 13, 14]])))[0]
    new[[12, 13, 14]] = -torch.inf
    assert world.item_block[int(new.argmax())] == 1


@pytest.mark.parametrize("query", ["history", "user"])
def test_cold_items_are_found_by_their_text(query: str) -> None:
    world = block_world()
    model = build("recmind", {"query": query, "batch_size": 64, "epochs": 5, "embedding_dim": 16})
    model.fit(world.task())
    cold = evaluate_model(model, world.cold_split()).overall["recall@10"]
    alone = build("recmind", {"query": query, "batch_size": 64, "epochs": 5, "embedding_dim": 16, "fusion": "graph"})
    alone.fit(world.task())
    assert cold > 0.95 > evaluate_model(alone, world.cold_split()).overall["recall@10"]


def test_the_warm_up_brings_the_branches_together() -> None:
    world = block_world()
    likeness = []
    for epochs in (0, 20):
        model = build(
            "recmind", {"epochs": 0, "warmup_epochs": epochs, "batch_size": 64, "embedding_dim": 8, "text_dim": 8}
        )
        model.fit(replace(world.task(), split=replace(world.split, valid=world.split.valid.where(np.zeros(120) > 0))))
        warm = np.setdiff1d(np.arange(world.split.num_items), [*world.cold, 0])
        graph, text = (unit(model.tables[branch])[warm] for branch in ("graph", "text"))
        scores = graph @ text.T
        likeness.append(
            float((scores.diag()[:, None] >= scores).float().mean())
        )  # rank of the own text vector among all
    assert likeness[1] > likeness[0] + 0.2


class _Stops(SilentLogger):
    """Asks the process to stop after some steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, **values: float | str) -> None:
        import os
        import signal

        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("after", [3, 14])  # in the warm-up, in the joint phase
def test_stopped_and_resumed_is_never_stopped(tmp_path: Path, after: int) -> None:
    """The queue is training state: what it holds must come back with the checkpoint."""
    world = block_world()
    settings = {"warmup_epochs": 1, "epochs": 2, "batch_size": 64, "embedding_dim": 8, "queue": 100, "align_size": 16}
    whole = build("recmind", settings)
    whole.fit(world.task())
    stopped = build("recmind", settings)
    task = replace(world.task(), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(Interrupted):
        stopped.fit(replace(task, logger=_Stops(after)))
    resumed = build("recmind", settings)
    resumed.fit(task)
    assert save(resumed.state()) == save(whole.state())


def test_without_text_there_is_an_error_that_says_what_to_do() -> None:
    for text in (None, TextVectors(torch.zeros(ITEMS, DIM), torch.zeros(ITEMS, dtype=torch.bool))):
        with pytest.raises(TextError, match="use lightgcn-fast"):
            build("recmind", small()).fit(replace(TASK, text=text))
    with pytest.raises(TextError, match="8 text vectors for 9 items"):
        build("recmind", small()).fit(replace(TASK, text=TextVectors(TEXT.vectors[1:], TEXT.present[1:])))


@pytest.mark.parametrize("query", ["history", "user"])
def test_state_holds_all_that_is_served(query: str) -> None:
    model = build("recmind", small(query=query, epochs=1))
    model.fit(TASK)
    other = build("recmind", small(query=query))
    other.restore(load(save(model.state())))
    known = Queries.of(SPLIT.known("test"), np.arange(USERS))
    for branch in model.branches:
        assert torch.equal(model.branch_scores(known, branch), other.branch_scores(known, branch))
    assert torch.equal(model.similar_scores(2), other.similar_scores(2))
    assert int(model.similar_scores(2).argmax()) == 2


@pytest.mark.parametrize("fusion", ["intra", "late", "text", "graph"])
def test_every_ablation_can_be_kept_and_read_again(fusion: str, tmp_path: Path) -> None:
    model = fitted("recmind", TASK, **small(fusion=fusion, epochs=1))
    run.finish(tmp_path, model)
    again = build("recmind", model.config.model_dump())
    again.restore(load_file(tmp_path / "model.safetensors"))
    queries = Queries.of(TASK.split.known("valid"), np.arange(TASK.split.num_users))
    torch.testing.assert_close(again.scores(queries), model.scores(queries), rtol=0, atol=0)


# branches in training


def test_following_the_branches_changes_no_weight() -> None:
    world = block_world()
    settings = {"warmup_epochs": 1, "epochs": 3, "batch_size": 64, "embedding_dim": 8, "queue": 100, "align_size": 16}
    saved = []
    for more in ({"monitor_users": 0}, {"monitor_users": 30}, {"monitor_users": 30, "gate_schedule": "none"}):
        model = build("recmind", settings | more)
        model.fit(world.task())
        saved.append(save(model.state()))
    assert saved[0] == saved[1] == saved[2]


def test_every_validation_tells_what_graph_text_and_both_can_do() -> None:
    notes = _Everything()
    build("recmind", small() | {"epochs": 2}).fit(replace(TASK, logger=notes))
    epochs = [entry for entry in notes.logged if entry["event"] == "epoch" and entry["stage"] == "recmind"]
    assert [entry["epoch"] for entry in epochs] == [0, 1, 2]
    for entry in epochs:
        assert list(entry["branches"]) == ["graph", "text", "fused"]
        assert entry["share"] == {"graph": 0.0, "text": 0.0}
        for found in entry["branches"].values():
            assert set(found["train"]) == set(found["valid"]) == {"loss", "ndcg@20"}


@pytest.mark.parametrize("query", ["history", "user"])
def test_a_shifted_gate_is_served_and_kept(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """γ' = γ + m (1 - γ) of items and users with clicks, in training, for every query, and from the file."""
    monkeypatch.setattr(recmind, "build_gate_schedule", lambda *_: lambda _moment: {"graph": 0.0, "text": 0.5})
    settings = small(query=query) | {
        "loss": "softmax",
        "epochs": 1,
        "warmup_epochs": 0,
        "fusion": "late",
        "patience": 9,
    }
    plain, moved = build("recmind", settings | {"epochs": 0}), build("recmind", settings)
    kept: list[Any] = []
    monkeypatch.setattr(type(moved), "_export_vectors", _keeping(type(moved)._export_vectors, kept))
    plain.fit(TASK)
    before = plain.gate_values()[0]
    net = kept[-1]
    net.shift_gates({"graph": 0.0, "text": 0.5})
    plain._export_vectors(net)
    clicked = torch.from_numpy(CLICKS.sum(0) > 0)
    after = plain.gate_values()[0]
    torch.testing.assert_close(after[clicked], (before + 0.5 * (1 - before))[clicked])
    assert torch.equal(after[~clicked], before[~clicked])
    moved.fit(TASK)
    again = build("recmind", settings)
    again.restore(load(save(moved.state())))
    all_users = Queries.of(SPLIT.train.histories(USERS), np.arange(USERS))
    assert torch.equal(again.scores(all_users), moved.scores(all_users))
    assert float(kept[-1].item_gate.shift) in (0.0, 0.5)  # as it was when the best weights were measured


def _keeping(export_vectors: Any, kept: list[Any]) -> Any:
    def keep(self: Any, net: Any) -> None:
        kept.append(net)
        export_vectors(self, net)

    return keep


class _Everything(SilentLogger):
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, event: str, **values: Any) -> None:
        self.logged.append({"event": event, **values})
