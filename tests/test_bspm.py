"""BSPM against its ODEs solved step by step in dense NumPy; tuning and the clicks held out for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphllmrec.evaluation.evaluation import validation_metric
from graphllmrec.models.baselines import bspm
from graphllmrec.protocol import Queries, Task
from tiny import CLICKS, DECAY, ITEMS, QUERY, SPLIT, TASK, Notes, assert_scores, fitted
from world import block_world


def normal_form(user_power: float, item_power: float) -> np.ndarray:
    out = np.zeros_like(CLICKS)
    for user, row in enumerate(CLICKS):
        for item, click in enumerate(row):
            out[user, item] = click * sum(row) ** -user_power * max(sum(CLICKS[:, item]), 1) ** -item_power
    return out / np.linalg.norm(out, 2)


def solved(x: np.ndarray, p: np.ndarray, time: float, steps: int, solver: str) -> list[np.ndarray]:
    """States of dx/dt = -x P by the textbook's stages."""
    h, states = time / steps, []
    for _ in range(steps):
        k1 = -x @ p
        if solver == "euler":
            x = x + h * k1
        else:
            k2 = -(x + h / 2 * k1) @ p
            k3 = -(x + h / 2 * k2) @ p
            k4 = -(x + h * k3) @ p
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    return states


def expected(merge: str, solver: str, time: float, steps: int, powers: tuple[float, float], popularity: float):
    norm = normal_form(*powers)
    p, vectors = norm.T @ norm, np.linalg.svd(norm)[2][:3]
    degree = np.maximum(CLICKS.sum(0), 1)
    out = np.zeros((len(QUERY), ITEMS))
    for query, history in enumerate(QUERY):
        x = np.zeros(ITEMS)
        for position, item in enumerate(history):
            x[item] += DECAY ** (len(history) - 1 - position)
        ideal = 0.2 * (x / degree ** powers[1]) @ vectors.T @ vectors * degree ** powers[1]
        states = solved(x @ p if merge == "late" else x @ p + ideal, p, time, steps, solver)
        if merge == "early":
            out[query] = states[-1]
        elif merge == "late":
            out[query] = states[-1] + ideal
        else:
            out[query] = np.mean([x @ p, *states], axis=0)
    return out * degree**popularity


@pytest.mark.parametrize("merge", ["early", "late", "mean"])
@pytest.mark.parametrize(("solver", "time", "steps"), [("rk4", 2.5, 1), ("euler", 1.2, 1), ("rk4", 2.0, 3)])
def test_bspm_is_its_differential_equations(merge: str, solver: str, time: float, steps: int) -> None:
    settings = {"merge": merge, "solver": solver, "sharpen_time": time, "sharpen_steps": steps}
    model = fitted("bspm", rank=3, decay=DECAY, **settings)
    assert_scores(model, expected(merge, solver, time, steps, (0.5, 0.5), 0.0), 3e-6)


def test_other_powers_of_the_degrees_and_popularity() -> None:
    settings = {"user_power": 0.2, "item_power": 0.6, "popularity": 0.3, "solver": "euler", "sharpen_time": 1.1}
    model = fitted("bspm", rank=3, decay=DECAY, **settings)
    assert_scores(model, expected("early", "euler", 1.1, 1, (0.2, 0.6), 0.3), 5e-6)


def test_without_sharpening_it_is_gf_cf() -> None:
    model = fitted("bspm", rank=3, ideal=0.3, sharpen_time=0.0, decay=DECAY)
    filtered = fitted("graph-filter", rank=3, ideal=0.3, decay=DECAY)
    users = np.arange(SPLIT.num_users)
    queries = Queries.of(SPLIT.known("test"), users)
    torch.testing.assert_close(model.scores(queries), filtered.scores(queries))


def test_held_out_clicks_are_a_random_tenth_of_every_users_clicks() -> None:
    world = block_world().split
    split = bspm.hold_out(world, 3, 0.2)
    assert len(split.train) + len(split.valid) == len(world.train)
    assert split.valid.histories(world.num_users).lengths.tolist() == [1] * world.num_users  # of five clicks
    pairs = {(u, i) for part in (split.train, split.valid) for u, i in zip(part.user, part.item, strict=True)}
    assert pairs == set(zip(world.train.user, world.train.item, strict=True))
    assert np.array_equal(bspm.hold_out(world, 3, 0.2).valid.item, split.valid.item)
    assert not np.array_equal(bspm.hold_out(world, 4, 0.2).valid.item, split.valid.item)
    assert not len(bspm.hold_out(replace(world, train=world.train.where(world.train.order == 0)), 0, 0.9).valid)


def test_tuning_takes_the_best_of_those_tried() -> None:
    notes = Notes()
    task = Task(SPLIT, logger=notes)
    model = fitted("bspm", task, sharpen_time="tune", popularity="tune", rank=3, decay=1.0)
    best = notes.events["bspm-tuned"]
    assert (model.sharpen_time, model.popularity) == (best["sharpen_time"], best["popularity"])
    for time in bspm._TIMES:
        model.sharpen_time = time
        assert validation_metric(model, SPLIT) <= best["ndcg"] + 1e-9


def test_without_a_validation_part_tuning_holds_clicks_out_and_fits_on_all() -> None:
    unvalidated = replace(SPLIT, valid=SPLIT.valid.where(np.zeros(len(SPLIT.valid), bool)), ordered=False)
    notes = Notes()
    model = fitted("bspm", Task(unvalidated, logger=notes), popularity="tune", rank=3)
    assert "bspm-tuned" in notes.events
    assert model.clicks.nnz == len(SPLIT.train)


def test_a_fixed_setting_is_not_tuned() -> None:
    assert fitted("bspm", TASK, sharpen_time="tune", popularity=0.25, rank=3, decay=1.0).popularity == 0.25
