"""The hybrid in the block world: cold items are found by their words, and words that mislead are not followed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import rng
from world import block_world

BLOCKS = block_world()
SHUFFLED = TextVectors(*(part[torch.from_numpy(rng(5, "shuffle").permutation(BLOCKS.split.num_items))]
                         for part in (BLOCKS.text.vectors, BLOCKS.text.present)))  # fmt: skip


def cold_for_every_third(part: Any, seed: int) -> Any:
    """The same part of a split, but what every third user is to find is a cold item of the own block."""
    item = part.item.copy()
    for user in range(0, len(item), 3):
        item[user] = rng(seed, "cold-target", user).choice(BLOCKS.cold_of(int(BLOCKS.user_block[user])))
    return replace(part, item=item)


MIXED = replace(BLOCKS.split, valid=cold_for_every_third(BLOCKS.split.valid, 0))  # to learn from
ASKED = replace(BLOCKS.split, test=cold_for_every_third(BLOCKS.split.test, 1))  # everybody's history is a walk
ALONE = {"drift": False, "cold_budget": 0.0}  # nothing but the fitted gate


@cache
def in_blocks(world: str = "next", fusion: str = "gate") -> Any:
    """A hybrid with default settings; the gate alone where cold items are asked for, which nothing announces."""
    model = build("hybrid", {"fusion": fusion, "gate": ALONE if "mixed" in world and fusion == "gate" else {}})
    text = SHUFFLED if "shuffled" in world else BLOCKS.text
    model.fit(replace(BLOCKS.task(seed=3), split=MIXED if "mixed" in world else BLOCKS.split, text=text))
    return model


def found(model: Any, split: Any, metric: str = "ndcg@20", **kwargs: Any) -> float:
    return float(evaluate_model(model, split, **kwargs).overall[metric])


@pytest.mark.parametrize("fusion", ["gate", "static"])
def test_cold_items_are_found_and_next_items_hardly_suffer(fusion: str) -> None:
    model = in_blocks(fusion=fusion)
    assert found(model, BLOCKS.cold_split(), "recall@10") >= 0.9
    graph, text = (found(model, BLOCKS.split, branch=branch) for branch in model.branches)
    assert graph > text + 0.2  # texts tell blocks apart, not the places in a block
    assert found(model, BLOCKS.split) > 0.98 * graph


@pytest.mark.parametrize("fusion", ["gate", "static"])
def test_with_shuffled_text_it_is_as_good_as_a_model_of_clicks_alone(fusion: str) -> None:
    model = in_blocks("shuffled", fusion)
    best = found(model, BLOCKS.split, branch="graph")
    for name in ("ease", "transitions", "item-knn"):
        alone = build(name)
        alone.fit(BLOCKS.task())
        best = max(best, found(alone, BLOCKS.split))
    assert found(model, BLOCKS.split) >= 0.98 * best
    assert found(model, BLOCKS.split, branch="text") < 0.3


def test_where_cold_items_are_asked_for_the_gate_beats_the_static_weights() -> None:
    gate, static = in_blocks("mixed"), in_blocks("mixed", "static")
    assert found(gate, ASKED) > found(static, ASKED) + 0.02
    gamma, _ = gate.gate_values()
    cold, warm = BLOCKS.cold, np.setdiff1d(np.arange(1, BLOCKS.split.num_items), BLOCKS.cold)
    assert float(gamma[cold].mean()) > float(gamma[warm].mean()) + 0.2  # words count more where clicks are few
    assert found(gate, BLOCKS.cold_split(), "recall@10") >= 0.9


def test_the_gate_shuts_where_text_misleads() -> None:
    """A third of what is asked for cannot be found by anything."""
    gate, static = in_blocks("mixed shuffled"), in_blocks("mixed shuffled", "static")
    assert found(gate, ASKED) >= 0.99 * max(found(static, ASKED), found(gate, ASKED, branch="graph"))
    cold = torch.from_numpy(BLOCKS.cold)
    assert (
        float(gate.gate_values()[0][cold].mean()) < 0.2 < 0.6 < float(in_blocks("mixed").gate_values()[0][cold].mean())
    )


@pytest.mark.parametrize("graph", [["lightgcn-history", "transitions"], ["graphsage"]])
def test_other_models_can_be_the_graph_branch(graph: list[str]) -> None:
    small = {"epochs": 10, "batch_size": 64}
    model = build("hybrid", {"graph": graph, "settings": {graph[0]: small}})
    model.fit(BLOCKS.task(seed=3))
    assert model.sum.branches == (*graph, "text-knn")
    assert model.sum.experts[graph[0]].config.epochs == 10
    assert found(model, BLOCKS.split) > 0.95 * found(model, BLOCKS.split, branch="graph")
    assert found(model, BLOCKS.cold_split(), "recall@10") >= 0.8
