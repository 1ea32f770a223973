"""AlphaFuse against its equations in loops: training steps by finite differences, served vectors, what plays cold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense import Dense, cross_entropy, faded_mean, slope
from graphllmrec.data.tables import Histories
from graphllmrec.errors import TextError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import uniform_items
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.rng import At, rng, torch_rng
from graphllmrec.text.whiten import Whitening
from graphllmrec.train import validation
from graphllmrec.train.loop import TrainingStage
from tiny import CLICKS, DECAY, ITEMS, QUERIES, QUERY, SPLIT, TASK, TEXT, TRAIN, Notes
from world import block_world

DIMS, IDS, SEED = 4, 3, 5
WIDTH = DIMS + IDS
ROWS = np.array([3, 0, 11, 7])  # users of one batch
SMALL = {"text_dim": DIMS, "id_dim": IDS, "decay": DECAY, "temperature": 0.8, "dropout": 0.0, "cold_dropout": 0.0}
WORDS = unit(Whitening.fit(TEXT, DIMS).apply(TEXT)).double().numpy()
DEGREE = CLICKS.sum(0)
Weights = dict[str, Dense]


def staged(monkeypatch: pytest.MonkeyPatch, task: Task = TASK, **settings: Any) -> tuple[Any, TrainingStage, Weights]:
    """A model served from random weights, its training stage, and those weights in float64."""
    kept: list[TrainingStage] = []

    def instead_of_training(stage: TrainingStage, _: Task) -> float:
        random = rng(SEED, "weights")
        for tensor in stage.module.parameters():
            tensor.data = torch.from_numpy(random.normal(0, 0.4, tuple(tensor.shape)).astype(np.float32))
        kept.append(stage)
        return 0.0

    monkeypatch.setattr(validation, "train", instead_of_training)
    model = build("alphafuse", SMALL | settings)
    model.fit(replace(task, seed=SEED))
    weights = {name: value.detach().double().numpy().copy() for name, value in kept[0].module.named_parameters()}
    return model, kept[0], weights


def item_vectors(weights: Weights, warm: np.ndarray) -> Dense:
    """e_i and the popularity term of every item."""
    out = np.zeros((ITEMS, WIDTH + 1))
    for item in range(ITEMS):
        out[item, :DIMS] = WORDS[item]
        if warm[item]:
            out[item, DIMS:WIDTH] = weights["table.ids"][item]
            out[item, WIDTH] = weights["table.popularity"][0] * math.log(1 + DEGREE[item])
    return out


def normed(row: Dense, weights: Weights, name: str) -> Dense:
    """Layer norm of one row."""
    centred = row - row.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(row: Dense) -> Dense:
    return np.array([x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in row])


def layer(hidden: Dense, weights: Weights, name: str, heads: int) -> Dense:
    """One layer over one history (n, WIDTH), step by step and head by head."""
    size, inner = WIDTH // heads, WIDTH // heads * heads
    parts = [normed(row, weights, f"{name}.before_attention") @ weights[f"{name}.into"] for row in hidden]
    out = []
    for step, row in enumerate(hidden):
        mixed = np.zeros(inner)
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            query = parts[step][:inner][mine]
            logits = [
                float(query @ parts[k][inner : 2 * inner][mine]) / math.sqrt(size)
                + weights[f"{name}.distance"][head, step - k]
                for k in range(step + 1)
            ]
            shares = np.exp(logits) / np.exp(logits).sum()
            for k, share in enumerate(shares):
                mixed[mine] += share * parts[k][2 * inner :][mine]
        row = row + mixed @ weights[f"{name}.out"]
        forward = gelu(normed(row, weights, f"{name}.before_forward") @ weights[f"{name}.first"])
        out.append(row + forward @ weights[f"{name}.second"])
    return np.array(out)


def asked(history: list[int], items: Dense, weights: Weights, settings: dict[str, Any], decay: float = DECAY) -> Dense:
    """q / temperature after the last click of a history that is not empty."""
    query = faded_mean(history, items[:, :WIDTH], decay)
    if settings.get("encoder", "attention") == "attention":
        hidden = items[history, :WIDTH] * math.sqrt(WIDTH)
        for number in range(settings.get("num_layers", 1)):
            hidden = layer(hidden, weights, f"net.layers.{number}", settings.get("num_heads", 2))
        query = query + normed(hidden[-1], weights, "net.norm") / math.sqrt(WIDTH)
    turned = query @ weights["net.query_map"]
    return np.append(turned / math.sqrt(float(turned @ turned)) / SMALL["temperature"], 1.0)


SETTINGS = [
    {"encoder": "mean", "negatives": 0},
    {"num_layers": 2, "negatives": 0},
    {"num_heads": 3, "negatives": 5, "cold_dropout": 0.4},
    {"negatives": 0, "max_history": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["mean", "two-layers", "sampled-cold", "short"])
def test_a_step(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    _, stage, weights = staged(monkeypatch, **settings)
    draw = torch.rand(ITEMS, generator=torch_rng(SEED, "alphafuse/cold", 2, 1))
    warm = (DEGREE > 0) & (draw >= settings.get("cold_dropout", 0.0)).numpy()
    drawn = uniform_items(5, ITEMS, SEED, "alphafuse", 2, 1)
    active = [items for items in TRAIN if len(items) > 1]
    limit = settings.get("max_history", 50)

    def expected() -> float:
        items, losses = item_vectors(weights, warm), []
        for row in ROWS:
            clicks = active[row][-limit - 1 :].tolist()
            for step in range(1, len(clicks)):
                query, target = asked(clicks[:step], items, weights, settings), clicks[step]
                if not settings["negatives"]:
                    losses.append(cross_entropy([float(query @ item) for item in items], target))
                    continue
                positive = float(query @ items[target])
                partition = math.exp(positive)
                for item in drawn:
                    if item != target:
                        partition += ITEMS / len(drawn) * math.exp(float(query @ items[item]))
                losses.append(math.log(partition) - positive)
        return float(np.mean(losses))

    loss = stage.loss(ROWS, At(SEED, stage.name, 2, 1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(), abs=1e-6)
    for name, parameter in stage.module.named_parameters():
        assert parameter.grad is not None, name
        np.testing.assert_allclose(parameter.grad.numpy(), slope(expected, weights[name]), atol=3e-6, err_msg=name)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=["mean", "two-layers"])
def test_served_scores(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    model, _, weights = staged(monkeypatch, **settings)
    items = item_vectors(weights, DEGREE > 0)
    for place, history in enumerate(QUERY):
        query = asked(history.tolist(), items, weights, settings) if len(history) else np.eye(WIDTH + 1)[-1]
        np.testing.assert_allclose(model.scores(QUERIES)[place].numpy(), items @ query, atol=2e-6)


def test_the_words_stay_as_they_are() -> None:
    model = build("alphafuse", SMALL | {"epochs": 3, "min_steps": 0, "batch_size": 4})
    model.fit(TASK)
    np.testing.assert_allclose(model.item_vectors()[:, :DIMS].numpy(), WORDS, atol=1e-6)
    assert not any("ids" in name for name in model.state())


def test_untrained_it_is_text_knn_that_leans_to_the_last_click() -> None:
    model = build("alphafuse", {"epochs": 0, "min_steps": 0, "encoder": "mean"})
    plain = build("text-knn", {"decay": 0.7, "text_dim": 128})
    world = block_world()
    for each in (model, plain):
        each.fit(world.task())
    queries = Queries.anonymous(Histories.from_lists([[12, 13], [31, 32, 33]]))
    mine, theirs = model.scores(queries), unit(plain.query_vectors(queries)) @ plain.item_vectors().T
    assert (mine * 0.1 - theirs).abs().max() < 0.05  # the ID embeddings start small, not at zero


def test_it_learns_the_very_next_item() -> None:
    world = block_world()
    model = build("alphafuse", {"batch_size": 64, "min_steps": 400})
    model.fit(world.task(seed=7))
    found = evaluate_model(model, world.split, ks=(1, 3)).overall["recall@1"]
    assert found > 0.6  # the text knows the block alone: one in eight


def test_without_an_order_every_step_draws_one(monkeypatch: pytest.MonkeyPatch) -> None:
    split = replace(SPLIT, ordered=False)
    model, stage, _ = staged(monkeypatch, replace(TASK, split=split))
    assert model.decay == 1.0
    loss = stage.loss
    seen = set()
    for step in range(40):
        before, after = loss.examples(ROWS[:1], At(SEED, "alphafuse", 0, step))
        clicks = [*before.items.tolist(), int(after[-1])]
        assert sorted(clicks) == sorted(TRAIN[ROWS[0]].tolist())
        assert after.tolist() == clicks[1:]
        seen.add(tuple(clicks))
    assert len(seen) > 1


def test_old_clicks_are_not_looked_at() -> None:
    model = build("alphafuse", SMALL | {"epochs": 1, "min_steps": 0, "max_history": 2})
    model.fit(TASK)
    long, short = Histories.from_lists([[0, 1, 2, 3]]), Histories.from_lists([[2, 3]])
    assert torch.equal(model.scores(Queries.anonymous(long)), model.scores(Queries.anonymous(short)))


def test_training_is_logged_and_stops() -> None:
    notes = Notes()
    model = build("alphafuse", SMALL | {"epochs": 2, "min_steps": 0})
    model.fit(replace(TASK, logger=notes))
    assert notes.events["epoch"]["epoch"] == 2


def test_text_of_other_items_is_refused() -> None:
    with pytest.raises(TextError, match="3 text vectors for 9 items"):
        build("alphafuse").fit(replace(TASK, text=TextVectors(TEXT.vectors[:3], TEXT.present[:3])))
