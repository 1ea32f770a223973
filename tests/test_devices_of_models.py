"""Every model that is trained by gradient gives the same scores on a second device, which other_device.py simulates.

Sparse matrices stay outside of the simulation: that they are where the dense tensors are, only a real device can tell.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from graphllmrec.errors import RecipeError
from graphllmrec.models.graph.lightgcn_history import LightGCNHistory
from graphllmrec.models.registry import MODELS, build, model_class
from graphllmrec.protocol import Model, Queries, SilentLogger, Task, TextVectors
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.device import on_cpu
from graphllmrec.train.loop import TrainedConfig
from other_device import Remote, other_device
from world import block_world

WORLD = block_world()
REVIEWS = TextVectors(WORLD.directions[torch.from_numpy(WORLD.user_block)], torch.from_numpy(WORLD.user_block) < 4)
TASK = replace(WORLD.task(seed=7), user_text=REVIEWS)
KNOWN = Queries.of(WORLD.split.known("test"), np.arange(WORLD.split.num_users))
UNKNOWN = Queries.anonymous(KNOWN.histories)
TRAINED = [name for name in MODELS if issubclass(model_class(name).config_class, TrainedConfig)]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lightgcn", {"num_layers": 0}),
    ("lightgcn-history", {"negatives": 5, "edge_dropout": 0.2, "cosine": True, "init": "spectral"}),
    ("lightgcn-softmax", {"loss": "slk", "contrast": 0.1, "edge_dropout": 0.2, "l2": 1e-3, "popularity": 0.5}),
    ("lightgcn-sampled", {"loss": "bpr", "contrast": 0.1, "l2": 1e-3}),
    ("lightgcn-sampled", {"loss": "softmax", "negatives": 5, "fanouts": (2, 2)}),
    ("lightgcn-sampled", {"loss": "in-batch", "cosine": True, "edge_dropout": 0.2}),
    ("lightgcn-sampled", {"loss": "directau"}),
    ("graphsage", {"aggregator": "max"}),
    ("graphsage", {"loss": "in-batch", "ids": False}),
    ("sign", {"negatives": 20, "ids": False}),
    ("alpharec", {"query": "user"}),
    ("alphafuse", {"encoder": "mean"}),
    ("alphafuse", {"negatives": 20}),
    ("recmind", {"query": "user", "loss": "bpr"}),
    ("recmind", {"query": "user", "loss": "slk", "fusion": "late"}),
    ("recmind", {"query": "user", "hidden": 6}),
    ("recmind", {"loss": "bpr"}),
    ("recmind", {"negatives": 20, "item_bias": True}),
]
QUICK = {"epochs": 2, "batch_size": 64}


def fitted(name: str, device: str, settings: dict[str, Any], task: Task = TASK) -> Model:
    short = {"min_steps": 3} if name in ("sign", "alpharec", "alphafuse") else {}
    model = build(name, QUICK | short | settings | {"device": device})
    model.fit(task)
    return model


def assert_same(there: Model, here: Model) -> None:
    """Same scores, of users of the training, of unknown users and for a new item; all that is kept is on the CPU."""
    assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in there.state().values())
    there, here = (model.with_items(WORLD.new_text(3)) for model in (there, here))
    for queries in (KNOWN, UNKNOWN):
        torch.testing.assert_close(there.scores(queries), here.scores(queries), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in TRAINED), *VARIANTS], ids=str)
def test_another_device_gives_the_same_scores(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fitted(name, "cpu", settings)
    with other_device(monkeypatch):
        there = fitted(name, "cuda", settings)
    assert_same(there, here)


def hybrid(device: str) -> Model:
    settings = {"graph": ("sign", "item-knn"), "settings": {"sign": QUICK | {"min_steps": 3, "device": device}}}
    model = build("hybrid", settings | {"gate": {"epochs": 2, "min_steps": 0, "device": device}})
    model.fit(replace(TASK, logger=(notes := Notes())))
    assert {"gate-or-static", "cold-lift"} <= notes.events
    return model


class Notes(SilentLogger):
    """Keeps the names of what is logged."""

    def __init__(self) -> None:
        self.events: set[str] = set()

    def log(self, event: str, **values: Any) -> None:
        self.events.add(event)


def test_the_gate_of_the_hybrid_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    here = hybrid("cpu")
    with other_device(monkeypatch):
        there = hybrid("cuda")
    assert_same(there, here)


class Stopping(SilentLogger):
    """Stops a training after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, **values: float | str) -> None:
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_training_that_was_stopped_continues_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with other_device(monkeypatch):
        whole = fitted("sign", "cuda", {})
        kept = replace(TASK, checkpoints=Checkpoints(tmp_path, every=0))
        with pytest.raises(KeyboardInterrupt):
            fitted("sign", "cuda", {}, replace(kept, logger=Stopping(3)))
        resumed = fitted("sign", "cuda", {}, kept)
    assert save(resumed.state()) == save(whole.state())


def test_the_simulated_device_refuses_what_a_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with other_device(monkeypatch):
        there = torch.ones(3).to("cuda")
        assert there.device == torch.zeros(2, device="cuda").device == torch.device("cuda", 0)
        with pytest.raises(RuntimeError, match="found cuda:0 and cpu"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        assert type(there.cpu()) is torch.Tensor
        assert type(there * 2) is Remote


def test_a_copy_on_the_cpu_leaves_the_module_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.BatchNorm1d(3)  # has parameters and buffers
    assert on_cpu(module) is module
    with other_device(monkeypatch):
        copy = on_cpu(module.to("cuda"))
    assert isinstance(module.weight, Remote)
    assert all(type(value) is not Remote and value.device.type == "cpu" for value in copy.state_dict().values())
    assert isinstance(copy.weight, torch.nn.Parameter)
    assert copy.weight.requires_grad


@pytest.mark.parametrize("name", TRAINED)
def test_a_device_that_is_not_there_is_an_error_of_the_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="this machine has no 'cuda'"):
        fitted(name, "cuda", {})


class Losses(SilentLogger):
    """Keeps the losses of the epochs."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def log(self, event: str, **values: Any) -> None:
        if event == "epoch" and "loss" in values:
            self.found.append(values["loss"])


@pytest.mark.parametrize("name", ["lightgcn-history", "alpharec", "alphafuse", "recmind"])
def test_bfloat16_trains(name: str) -> None:
    losses, exact = Losses(), Losses()
    settings = {"min_steps": 0, "patience": 20} | ({"warmup_epochs": 0, "align": 0} if name == "recmind" else {})
    bfloat16 = settings | {"epochs": 6, "precision": "bfloat16"}
    scores = fitted(name, "cpu", bfloat16, replace(TASK, logger=losses)).scores(KNOWN)
    assert losses.found[-1] < losses.found[0]
    assert torch.isfinite(scores).all()
    assert scores.dtype == torch.float32
    fitted(name, "cpu", settings | {"epochs": 1}, replace(TASK, logger=exact))
    assert losses.found[0] == pytest.approx(exact.found[0], rel=0.02)


def test_a_batch_in_two_parts_gives_the_same_model() -> None:
    settings = {"cosine": True, "cold_dropout": 0.0, "dropout": 0.0, "batch_size": 50}  # what is drawn differs by part
    whole, parts = (fitted("lightgcn-history", "cpu", settings | {"accumulate": size}) for size in (1, 2))
    assert isinstance(whole, LightGCNHistory)
    assert isinstance(parts, LightGCNHistory)
    torch.testing.assert_close(parts.items, whole.items, atol=1e-4, rtol=1e-4)
    assert not torch.equal(parts.items, whole.items)
