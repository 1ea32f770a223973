"""The neighbour sampler against exact enumeration, and LightGCN by sampled walks against full propagation."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import chi2

from dense import clicks_of, edges, layer_means, normalised
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.neighbours import Hop, Neighbourhoods, Neighbours, draws, propagate_sampled, sample, sample_tree
from graphllmrec.graph.propagate import propagate

USERS, ITEMS, DIM = 5, 6, 3
TRAIN = edges([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 2, 3, 2, 4, 0, 4])  # user 4 and item 5 are alone
CLICKS = clicks_of(TRAIN, USERS, ITEMS)
GRAPH = Neighbourhoods.of(TRAIN, USERS, ITEMS)
TRIALS = 30_000


def random(step: int = 0) -> torch.Generator:
    return draws(7, "test", 0, step)


def lists(hop: Hop) -> list[list[int]]:
    return [part.tolist() for part in hop.nodes.tensor_split(hop.offsets[1:-1])]


def embeddings(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    noise = np.random.default_rng(3)
    users, items = noise.normal(size=(USERS, DIM)), noise.normal(size=(ITEMS, DIM))
    return (
        torch.tensor(users, dtype=torch.float32, requires_grad=requires_grad),
        torch.tensor(items, dtype=torch.float32, requires_grad=requires_grad),
    )


def assert_uniform(counts: list[int], expected: float) -> None:
    """Pearson's test at a level of one in a thousand; the seed is fixed, so it passes always or never."""
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    assert statistic < chi2.ppf(0.999, len(counts) - 1)


def test_both_directions_hold_the_clicks_once() -> None:
    twice = edges([*TRAIN.user, 0, 3], [*TRAIN.item, 4, 4])
    for graph in (GRAPH, Neighbourhoods.of(twice, USERS, ITEMS)):
        for side, clicks in ((graph.of_users, CLICKS), (graph.of_items, CLICKS.T)):
            assert side.nodes.dtype == torch.int32
            assert side.degree.tolist() == clicks.sum(1).tolist()
            for node in range(len(side)):
                own = side.nodes[side.indptr[node] : side.indptr[node + 1]]
                assert sorted(own.tolist()) == np.flatnonzero(clicks[node]).tolist()


@pytest.mark.parametrize("fanout", [1, 2, 3, 4])
def test_every_subset_of_the_neighbours_is_as_likely(fanout: int) -> None:
    found = sample(GRAPH.of_users, torch.zeros(TRIALS, dtype=torch.int64), fanout, random())
    seen = dict.fromkeys(combinations(range(5), fanout), 0)  # user 0 has the items 0 … 4
    for drawn in lists(found):
        seen[tuple(sorted(drawn))] += 1
    assert_uniform(list(seen.values()), TRIALS / math.comb(5, fanout))


def test_walks_of_two_hops_come_as_often_as_enumeration_says() -> None:
    hops = sample_tree(GRAPH.towards("users", 2), torch.zeros(TRIALS, dtype=torch.int64), (2, 1), random())
    expected: dict[tuple[int, int], float] = {}  # 2 of 5 items, then 1 of the item's users
    for item in range(5):
        for user in np.flatnonzero(CLICKS[:, item]):
            expected[item, int(user)] = TRIALS * 2 / 5 / CLICKS[:, item].sum()
    assert hops[1].counts.tolist() == [1] * (2 * TRIALS)
    walks = list(zip(hops[0].nodes.tolist(), hops[1].nodes.tolist(), strict=True))
    statistic = sum((walks.count(walk) - wanted) ** 2 / wanted for walk, wanted in expected.items())
    assert set(walks) == set(expected)
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


def test_up_to_the_fanout_a_neighbourhood_is_complete() -> None:
    found = sample(GRAPH.of_users, torch.arange(USERS), 5, random())
    assert lists(found) == [[0, 1, 2, 3, 4], [2, 3], [0, 2, 4], [4], []]
    assert found.counts.tolist() == [5, 2, 3, 1, 0]


@pytest.mark.parametrize("seeds", [[4], [4, 4], []])
def test_nobody_to_draw(seeds: list[int]) -> None:
    start = torch.tensor(seeds, dtype=torch.int64)
    for hop in sample_tree(GRAPH.towards("users", 3), start, (2, 2, 2), random()):
        assert len(hop.nodes) == 0
        assert hop.counts.tolist() == [0] * (len(hop.offsets) - 1)


def test_no_neighbour_comes_twice_and_edges_name_their_place() -> None:
    noise = np.random.default_rng(1)
    clicks = noise.random((40, 300)) < np.linspace(0, 1, 40)[:, None]
    graph = Neighbours.of(sp.csr_array(clicks))
    seeds = torch.from_numpy(noise.integers(0, 40, 500))
    for fanout in (1, 7, 40):
        hop = sample(graph, seeds, fanout, random(fanout))
        for seed, drawn in zip(seeds.tolist(), lists(hop), strict=True):
            assert len(set(drawn)) == len(drawn) == min(fanout, clicks[seed].sum())
            assert clicks[seed, drawn].all()
        assert torch.equal(graph.nodes[hop.edges].long(), hop.nodes)


def test_draws_are_a_function_of_seed_purpose_epoch_and_step() -> None:
    seeds = torch.zeros(200, dtype=torch.int64)

    def drawn(*at: int, purpose: str = "test") -> list[int]:
        return sample(GRAPH.of_users, seeds, 2, draws(at[0], purpose, at[1], at[2])).nodes.tolist()

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = drawn(7, 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert drawn(7, 0, 0) == first
    for other in (drawn(8, 0, 0), drawn(7, 1, 0), drawn(7, 0, 1), drawn(7, 0, 0, purpose="other")):
        assert other != first


def test_an_edge_can_be_left_out() -> None:
    seeds, avoid = torch.tensor([0, 0, 1, 3, 4]), torch.tensor([2, -1, 3, 4, 1])
    found = sample(GRAPH.of_users, seeds, 5, random(), avoid)
    assert lists(found) == [[0, 1, 3, 4], [0, 1, 2, 3, 4], [2], [], []]
    assert found.counts.tolist() == [4, 5, 1, 0, 0]


def test_a_fanout_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="fanout must be at least 1, found 0"):
        sample(GRAPH.of_users, torch.zeros(1, dtype=torch.int64), 0, random())


def of_side(side: Literal["users", "items"]) -> int:
    return USERS if side == "users" else ITEMS


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_with_all_neighbours_sampled_propagation_is_the_exact_one(
    side: Literal["users", "items"], num_layers: int
) -> None:
    exact = layer_means(normalised(CLICKS), *(part.double().numpy() for part in embeddings()), num_layers)
    users, items = embeddings(requires_grad=True)
    found = propagate_sampled(GRAPH, users, items, torch.arange(of_side(side)), side, [6] * num_layers, random())
    np.testing.assert_allclose(found.detach().numpy(), exact[0 if side == "users" else 1], atol=1e-6)

    found.square().sum().backward()
    others = embeddings(requires_grad=True)
    means = propagate(Bipartite.of(TRAIN, USERS, ITEMS), *others, num_layers)
    means[0 if side == "users" else 1].square().sum().backward()
    for mine, theirs in zip((users, items), others, strict=True):
        if theirs.grad is not None and mine.grad is not None:
            np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), atol=1e-6)


def test_one_draw_equals_its_loops() -> None:
    users, items = embeddings()
    seeds, fanouts = torch.tensor([0, 2, 0, 4]), (3, 2)
    found = propagate_sampled(GRAPH, users, items, seeds, "users", fanouts, random())
    first, second = (lists(hop) for hop in sample_tree(GRAPH.towards("users", 2), seeds, fanouts, random()))
    degree, popularity = CLICKS.sum(1), CLICKS.sum(0)
    place = 0
    for row, seed in enumerate(seeds.tolist()):
        total = users[seed].double().numpy().copy()
        for item in first[row]:
            weight = degree[seed] / len(first[row]) / math.sqrt(degree[seed] * popularity[item])
            total += weight * items[item].double().numpy()
            for user in second[place]:
                again = popularity[item] / len(second[place]) / math.sqrt(popularity[item] * degree[user])
                total += weight * again * users[user].double().numpy()
            place += 1
        np.testing.assert_allclose(found[row].numpy(), total / 3, atol=1e-6)


@pytest.mark.parametrize("side", ["users", "items"])
def test_sampled_propagation_is_the_exact_one_on_average(side: Literal["users", "items"]) -> None:
    users, items = embeddings(requires_grad=True)
    exact = propagate(Bipartite.of(TRAIN, USERS, ITEMS), users, items, 3)[0 if side == "users" else 1]
    exact.sum().backward()
    wanted = [users.grad, items.grad]
    users.grad = items.grad = None
    seeds = torch.arange(of_side(side)).repeat_interleave(TRIALS)
    found = propagate_sampled(GRAPH, users, items, seeds, side, (2, 1, 2), random())
    (found.sum() / TRIALS).backward()
    trials = found.detach().view(-1, TRIALS, DIM).double()
    error = trials.std(1) / TRIALS**0.5
    assert float((error / exact.detach().abs()).max()) < 0.1  # the estimate says something
    assert ((trials.mean(1) - exact.detach()).abs() < 4 * error + 1e-6).all()
    for mine, theirs in zip((users.grad, items.grad), wanted, strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)
