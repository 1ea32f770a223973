"""Alignment of two views against its equation in loops; the queue."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dense import Dense, slope
from graphllmrec.nn.align import Queue, alignment_loss

DIM, TEMPERATURE = 4, 0.3
RANDOM = np.random.default_rng(3)


def views(count: int) -> tuple[Dense, Dense]:
    return RANDOM.normal(size=(count, DIM)), RANDOM.normal(size=(count, DIM))


def tensor(values: Dense) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def cosine(a: Dense, b: Dense) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def in_loops(
    first: Dense, second: Dense, ids: list[int], past: list[tuple[int, Dense, Dense]], weights: list[list[list[float]]]
) -> float:
    """The equation, term by term. `weights[way][v]`: of the negatives of entity v, batch before queue."""
    total = 0.0
    for way in (0, 1):
        for v in range(len(ids)):
            asking, positive = ((first[v], second[v]), (second[v], first[v]))[way]
            numerator = math.exp(cosine(asking, positive) / TEMPERATURE)
            negatives = similarities(first, second, ids, past, way, v)
            denominator = numerator + sum(
                weight * math.exp(score / TEMPERATURE) for weight, score in zip(weights[way][v], negatives, strict=True)
            )
            total += math.log(numerator / denominator)
    return -total / (2 * len(ids))


def similarities(
    first: Dense, second: Dense, ids: list[int], past: list[tuple[int, Dense, Dense]], way: int, v: int
) -> list[float]:
    """Cosines of entity v with its negatives, batch before queue."""
    asking = (first, second)[way][v]
    found = [cosine(asking, (second, first)[way][other]) for other in range(len(ids)) if other != v]
    return found + [cosine(asking, entry[2 - way]) for entry in past if entry[0] != ids[v]]


def hard_weights(
    first: Dense, second: Dense, ids: list[int], past: list[tuple[int, Dense, Dense]], hardness: float
) -> list[list[list[float]]]:
    out: list[list[list[float]]] = [[], []]
    for way in (0, 1):
        for v in range(len(ids)):
            raw = [math.exp(hardness * s / TEMPERATURE) for s in similarities(first, second, ids, past, way, v)]
            out[way].append([weight / (sum(raw) / len(raw)) for weight in raw])
    return out


@pytest.mark.parametrize("hardness", [0.0, 0.7])
@pytest.mark.parametrize("queued", [0, 3, 6])
def test_value_and_gradients_are_those_of_the_equation(hardness: float, queued: int) -> None:
    first, second = views(5)
    ids, old_ids = [7, 2, 9, 4, 5], [4, 0, 7, 1, 2, 3][:queued]  # some are in the batch too
    old = views(queued)
    queue = Queue(6, DIM)
    queue.push(tensor(old[0]), tensor(old[1]), torch.tensor(old_ids, dtype=torch.int64))
    past = list(zip(old_ids, *old, strict=True))
    weights = hard_weights(first, second, ids, past, hardness)  # constants to the gradient
    inputs = [tensor(view).requires_grad_() for view in (first, second)]
    loss = alignment_loss(*inputs, torch.tensor(ids), queue, TEMPERATURE, hardness)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(in_loops(first, second, ids, past, weights), abs=1e-6)
    for given, array in zip(inputs, (first, second), strict=True):
        assert given.grad is not None
        expected = slope(lambda: in_loops(first, second, ids, past, weights), array)
        np.testing.assert_allclose(given.grad.numpy(), expected, atol=1e-6)


def test_an_only_negative_weighs_1_however_hard_it_is() -> None:
    first, second = (tensor(view) for view in views(2))
    about = first, second, torch.tensor([3, 5]), Queue(2, DIM), TEMPERATURE
    assert float(alignment_loss(*about, hardness=2.0)) == pytest.approx(float(alignment_loss(*about)), abs=1e-6)


def test_one_entity_with_nothing_to_tell_it_from_loses_nothing() -> None:
    first, second = (tensor(view).requires_grad_() for view in views(1))
    loss = alignment_loss(first, second, torch.tensor([3]), Queue(2, DIM), TEMPERATURE, hardness=1.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert first.grad is not None
    assert torch.equal(first.grad, torch.zeros(1, DIM))


def test_no_entities_no_loss() -> None:
    nothing = torch.zeros(0, DIM, requires_grad=True)
    assert float(alignment_loss(nothing, nothing, torch.zeros(0, dtype=torch.int64), Queue(2, DIM)).detach()) == 0.0


def test_harder_negatives_lose_more() -> None:
    first, second = (tensor(view) for view in views(20))
    losses = [float(alignment_loss(first, second, torch.arange(20), Queue(0, DIM), 0.2, hard)) for hard in (0, 0.5, 2)]
    assert losses[0] < losses[1] < losses[2]


def test_the_queue_keeps_the_newest_and_overwrites_the_oldest() -> None:
    queue = Queue(5, DIM)
    for ids in ([0, 1, 2], [3, 4, 5], [6]):
        queue.push(torch.full((len(ids), DIM), 2.0), torch.ones(len(ids), DIM), torch.tensor(ids))
    assert sorted(queue.ids.tolist()) == [2, 3, 4, 5, 6]
    assert torch.allclose(queue.first.norm(dim=1), torch.ones(5))
    queue.push(torch.ones(9, DIM), torch.ones(9, DIM), torch.arange(10, 19))  # more than fit
    assert sorted(queue.ids.tolist()) == [14, 15, 16, 17, 18]


def test_an_empty_queue_stays_empty() -> None:
    queue = Queue(0, DIM)
    queue.push(torch.ones(2, DIM), torch.ones(2, DIM), torch.arange(2))
    assert len(queue.ids) == 0


def test_the_queue_survives_its_state_bit_by_bit() -> None:
    queue, other = Queue(4, DIM), Queue(4, DIM)
    first, second = (tensor(view) for view in views(3))
    queue.push(first, second, torch.tensor([5, 6, 7]))
    other.load_state_dict(load(save(queue.state_dict())))
    for kept in (queue, other):
        kept.push(second, first, torch.tensor([8, 9, 5]))
    assert save(queue.state_dict()) == save(other.state_dict())
    assert queue.ids.tolist() == [9, 5, 7, 8]


def test_what_is_queued_gets_no_gradient() -> None:
    queue = Queue(4, DIM)
    vectors = torch.ones(2, DIM, requires_grad=True)
    queue.push(vectors, vectors, torch.arange(2))
    assert not queue.first.requires_grad
