"""The user–item graph and its propagation against loops and dense autograd."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from dense import clicks_of, edges, layer_means, normalised
from graphllmrec.graph.bipartite import Bipartite, clicked_matrix, sparse_tensor
from graphllmrec.graph.propagate import propagate, sparse_product

USERS, ITEMS, DIM = 5, 6, 3
TRAIN = edges([0, 0, 0, 1, 1, 2, 2, 2, 3], [1, 2, 4, 2, 3, 2, 4, 0, 4])  # user 4 and item 5 are alone
NORM = normalised(clicks_of(TRAIN, USERS, ITEMS))
RANDOM = np.random.default_rng(0)


@pytest.fixture
def graph() -> Bipartite:
    return Bipartite.of(TRAIN, USERS, ITEMS)


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    users, items = RANDOM.normal(size=(USERS, DIM)), RANDOM.normal(size=(ITEMS, DIM))
    return (
        torch.tensor(users, dtype=torch.float32, requires_grad=True),
        torch.tensor(items, dtype=torch.float32, requires_grad=True),
    )


def test_every_edge_weighs_one_over_the_root_of_both_degrees(graph: Bipartite) -> None:
    np.testing.assert_allclose(graph.to_users.to_dense().numpy(), NORM, atol=1e-7)
    np.testing.assert_allclose(graph.to_items.to_dense().numpy(), NORM.T, atol=1e-7)
    assert graph.user_degree.tolist() == [3, 2, 3, 1, 0]
    assert graph.item_degree.tolist() == [1, 1, 3, 1, 3, 0]


def test_blocks_are_csr_float32_that_torch_finds_valid(graph: Bipartite) -> None:
    for matrix in (graph.to_users, graph.to_items):
        assert matrix.layout == torch.sparse_csr
        assert matrix.dtype == torch.float32
        assert matrix.col_indices().dtype == matrix.crow_indices().dtype == torch.int32
        assert matrix.values().count_nonzero() == len(TRAIN)
        torch.sparse_csr_tensor(
            matrix.crow_indices(), matrix.col_indices(), matrix.values(), matrix.shape, check_invariants=True
        )


def test_a_repeated_pair_is_one_edge(graph: Bipartite) -> None:
    twice = edges([*TRAIN.user, 0, 0, 3], [*TRAIN.item, 1, 1, 4])
    again = Bipartite.of(twice, USERS, ITEMS)
    assert torch.equal(again.to_users.to_dense(), graph.to_users.to_dense())
    assert torch.equal(again.to_items.to_dense(), graph.to_items.to_dense())
    assert torch.equal(again.item_degree, graph.item_degree)


def test_the_matrix_of_clicks_holds_ones_in_sorted_rows_however_often_a_pair_is_there() -> None:
    matrix = clicked_matrix(edges([3, *TRAIN.user, 0, 0], [4, *TRAIN.item, 2, 1]), USERS, ITEMS)
    assert np.array_equal(matrix.toarray(), clicks_of(TRAIN, USERS, ITEMS))
    assert matrix.data.tolist() == [1.0] * len(TRAIN)
    assert matrix.dtype == np.float32
    assert matrix.has_sorted_indices
    assert clicked_matrix(edges([], []), USERS, ITEMS).toarray().tolist() == [[0.0] * ITEMS] * USERS


def test_a_graph_without_edges_keeps_layer_0_only() -> None:
    graph = Bipartite.of(edges([], []), USERS, ITEMS)
    users, items = embeddings()
    means = propagate(graph, users, items, 2)
    torch.testing.assert_close(means, (users / 3, items / 3))
    assert graph.user_degree.tolist() == [0] * USERS


def test_a_graph_that_is_on_the_device_is_not_copied(graph: Bipartite) -> None:
    assert graph.to("cpu") is graph
    there = graph.to("meta")
    assert {tensor.device.type for tensor in vars(there).values()} == {"meta"}


def test_unsorted_columns_are_sorted_and_building_a_matrix_is_silent() -> None:
    matrix = sp.csr_array((np.array([3.0, 1.0]), np.array([2, 0]), np.array([0, 2, 2])), shape=(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = sparse_tensor(matrix)
    assert tensor.col_indices().tolist() == [0, 2]
    assert tensor.to_dense().tolist() == [[1, 0, 3], [0, 0, 0]]


# edge dropout


def test_dropped_edges_are_gone_in_both_directions_and_the_others_weigh_more(graph: Bipartite) -> None:
    dropped = graph.drop_edges(0.4, 7, "test", 1, 2)
    to_users = dropped.to_users.to_dense().numpy()
    np.testing.assert_array_equal(dropped.to_items.to_dense().numpy(), to_users.T)
    kept = to_users != 0
    assert 0 < kept.sum() < len(TRAIN)
    np.testing.assert_allclose(to_users, NORM / (1 - 0.4) * kept, atol=1e-6)
    assert dropped.user_degree is graph.user_degree
    np.testing.assert_allclose(graph.to_users.to_dense().numpy(), NORM, atol=1e-7)  # the whole graph stays as it was


def test_the_mask_depends_on_seed_purpose_epoch_and_step_only(graph: Bipartite) -> None:
    def mask(*at: Any) -> list[bool]:
        return (Bipartite.of(TRAIN, USERS, ITEMS).drop_edges(0.5, *at).to_users.values() != 0).tolist()

    masks = [mask(7, "a", 1, 2), mask(8, "a", 1, 2), mask(7, "b", 1, 2), mask(7, "a", 2, 2), mask(7, "a", 1, 3)]
    assert len(set(map(tuple, masks))) == len(masks)
    assert mask(7, "a", 1, 2) == masks[0]


def test_on_average_nothing_is_lost(graph: Bipartite) -> None:
    draws = 4000
    total = sum(graph.drop_edges(0.3, 0, "test", epoch).to_users.values() for epoch in range(draws))
    mean = total / draws / graph.to_users.values()
    deviation = (0.3 / 0.7 / draws) ** 0.5  # of the mean of 0 or 1 / .7
    assert float((mean - 1).abs().max()) < 5 * deviation


def test_a_share_of_zero_drops_nothing(graph: Bipartite) -> None:
    assert torch.equal(graph.drop_edges(0.0, 0, "test", 0).to_items.to_dense(), graph.to_items.to_dense())


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_refused(graph: Bipartite, share: float) -> None:
    with pytest.raises(ValueError, match=f"share of dropped edges .*{share}"):
        graph.drop_edges(share, 0, "test", 0)


def test_gradients_through_a_thinned_graph_equal_those_of_dense_autograd(graph: Bipartite) -> None:
    thin = graph.drop_edges(0.4, 3, "test", 0)
    users, items = embeddings()
    propagate(thin, users, items, 3)[0].square().sum().backward()
    u, i = (tensor.detach().double().requires_grad_() for tensor in (users, items))
    norm = thin.to_users.to_dense().double()
    mean_users = (u + norm @ i + norm @ (norm.T @ u) + norm @ (norm.T @ (norm @ i))) / 4
    mean_users.square().sum().backward()
    assert users.grad is not None
    assert items.grad is not None
    np.testing.assert_allclose(users.grad.numpy(), u.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(items.grad.numpy(), i.grad.numpy(), atol=1e-6)


# propagation


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_layer_means_equal_the_loops(graph: Bipartite, num_layers: int) -> None:
    users, items = embeddings()
    expected = layer_means(NORM, users.detach().double().numpy(), items.detach().double().numpy(), num_layers)
    for found, wanted in zip(propagate(graph, users, items, num_layers), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_gradients_equal_those_of_dense_autograd(graph: Bipartite, num_layers: int) -> None:
    users, items = embeddings()
    weigh_users, weigh_items = (torch.from_numpy(RANDOM.normal(size=(rows, DIM))).float() for rows in (USERS, ITEMS))
    z_users, z_items = propagate(graph, users, items, num_layers)
    ((z_users * weigh_users).sum() + (z_items * weigh_items).square().sum()).backward()

    u, i = (tensor.detach().double().requires_grad_() for tensor in (users, items))
    whole = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    whole[:USERS, USERS:], whole[USERS:, :USERS] = torch.from_numpy(NORM), torch.from_numpy(NORM).T
    nodes = torch.cat([u, i])
    mean = sum(torch.linalg.matrix_power(whole, layer) @ nodes for layer in range(num_layers + 1)) / (num_layers + 1)
    ((mean[:USERS] * weigh_users).sum() + (mean[USERS:] * weigh_items).square().sum()).backward()
    for found, wanted in ((users, u), (items, i)):
        assert found.grad is not None
        np.testing.assert_allclose(found.grad.numpy(), wanted.grad.numpy(), atol=1e-6)


def test_sparse_product_differentiates_the_dense_factor_only(graph: Bipartite) -> None:
    matrix, transposed = graph.to_users.double(), graph.to_items.double()
    dense = torch.from_numpy(RANDOM.normal(size=(ITEMS, DIM))).requires_grad_()
    assert torch.autograd.gradcheck(lambda factor: sparse_product(matrix, transposed, factor), (dense,))
    assert not matrix.requires_grad
    torch.testing.assert_close(sparse_product(matrix, transposed, dense), matrix.to_dense() @ dense)


def test_frozen_users_take_no_gradient(graph: Bipartite) -> None:
    _, items = embeddings()
    users = torch.zeros(USERS, DIM)
    propagate(graph, users, items, 2)[1].sum().backward()
    assert users.grad is None
    assert items.grad is not None
