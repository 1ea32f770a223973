"""Truncated SVD and GF-CF against dense NumPy, and what they do with degenerate graphs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from dense import normalised
from graphllmrec.graph.bipartite import sparse_tensor
from graphllmrec.graph.svd import Spectrum, truncated_svd
from graphllmrec.models.baselines.graph_filter import ItemGraph
from graphllmrec.protocol import Queries
from tiny import CLICKS, DECAY, ITEMS, QUERIES, QUERY, assert_scores, faded, fitted


def svd(dense: np.ndarray, rank: int, seed: int = 0, **settings: float) -> Spectrum:
    matrix = sp.csr_array(dense.astype(np.float32))
    return truncated_svd(sparse_tensor(matrix), sparse_tensor(sp.csr_array(matrix.T)), rank, seed, **settings)


def clustered(rows: int, columns: int) -> np.ndarray:
    """A sparse matrix with slowly falling singular values, an empty row and an empty column."""
    random = np.random.default_rng(3)
    dense = (random.random((rows, columns)) < 0.05) * random.random((rows, columns))
    dense[7], dense[:, 11] = 0, 0
    return dense


def scale_of(item: int) -> float:
    return float(max(CLICKS[:, item].sum(), 1) ** 0.5)


def linear_filter() -> np.ndarray:
    norm, out = normalised(CLICKS), np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            out[i, j] = sum(row[i] * row[j] for row in norm)
    return out


def ideal_filter(rank: int) -> np.ndarray:
    vectors = np.linalg.svd(normalised(CLICKS))[2][:rank]
    out = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            out[i, j] = sum(v[i] * v[j] for v in vectors) / scale_of(i) * scale_of(j)
    return out


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (150, 260)])
def test_svd_finds_the_leading_singular_triplets(rows: int, columns: int) -> None:
    dense = clustered(rows, columns)
    found = svd(dense, 20, tolerance=1e-6, max_rounds=40)
    u, s, vt = np.linalg.svd(dense)
    np.testing.assert_allclose(found.s.numpy(), s[:20], rtol=1e-5)
    np.testing.assert_allclose(np.abs((vt[:20] @ found.v.numpy()).diagonal()), 1, atol=1e-3)
    np.testing.assert_allclose(np.abs((u[:, :20].T @ found.u.numpy()).diagonal()), 1, atol=1e-3)
    low_rank = (found.u * found.s) @ found.v.T
    np.testing.assert_allclose(low_rank.numpy(), (u[:, :20] * s[:20]) @ vt[:20], atol=2e-3)


def test_svd_vectors_are_orthonormal_and_zero_where_nothing_is_clicked() -> None:
    found = svd(clustered(300, 200), 20)
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(20), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.v.T @ found.v, torch.eye(20), rtol=0, atol=1e-5)
    assert not found.u[7].any()
    assert not found.v[11].any()


def test_svd_is_a_function_of_its_seed() -> None:
    dense = clustered(120, 80)
    first, again, other = svd(dense, 5), svd(dense, 5), svd(dense, 5, seed=1)
    assert torch.equal(first.v, again.v)
    assert torch.equal(first.u, again.u)
    torch.testing.assert_close(first.s, other.s, rtol=1e-3, atol=0)


def test_svd_leaves_out_what_vanishes() -> None:
    dense = np.zeros((40, 30))
    dense[:10, :5], dense[10:30, 5:8] = 1, 1  # rank 2
    found = svd(dense, 10)
    np.testing.assert_allclose(found.s.numpy(), [60**0.5, 50**0.5], rtol=1e-5)
    assert found.v.shape == (30, 2)
    assert svd(np.zeros((4, 3)), 2).s.shape == (0,)
    assert svd(dense, 10).first(1).u.shape == (40, 1)


def test_svd_refuses_no_rank() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        svd(np.eye(3), 0)


@pytest.mark.parametrize("ideal", [0.0, 0.3])
def test_gf_cf_is_linear_plus_ideal_filter(ideal: float) -> None:
    expected = faded(linear_filter() + ideal * ideal_filter(3))
    settings = {"rank": 3, "ideal": ideal} if ideal else {"ideal": ideal}
    assert_scores(fitted("graph-filter", **settings, decay=DECAY), expected, 3e-6)


def test_a_rank_beyond_the_catalogue_keeps_every_click() -> None:
    model = fitted("graph-filter", rank=1000, ideal=1.0, decay=1.0)
    scores = model.scores(QUERIES).numpy() - fitted("graph-filter", ideal=0.0, decay=1.0).scores(QUERIES).numpy()
    for row, history in zip(scores, QUERY, strict=True):  # V Vᵀ is the identity
        np.testing.assert_allclose(row[history], 1, atol=1e-5)
        np.testing.assert_allclose(np.delete(row, history), 0, atol=1e-5)


@pytest.mark.parametrize(("user_power", "item_power"), [(0.5, 0.5), (0.2, 0.7)])
def test_the_item_graph_blurs_with_any_powers(user_power: float, item_power: float) -> None:
    graph = ItemGraph.of(sp.csr_array(CLICKS.astype(np.float32)), user_power, item_power)
    norm = np.zeros_like(CLICKS)
    for user, row in enumerate(CLICKS):
        for item, click in enumerate(row):
            norm[user, item] = click * sum(row) ** -user_power * max(sum(CLICKS[:, item]), 1) ** -item_power
    signals = np.random.default_rng(0).normal(size=(ITEMS, 70)).astype(np.float32)  # more than one block of columns
    np.testing.assert_allclose(graph.blur(torch.from_numpy(signals)).numpy(), norm.T @ norm @ signals, atol=2e-6)
    blurred = graph.blur_histories(sp.csr_array(signals.T))
    np.testing.assert_allclose(blurred.numpy(), norm.T @ norm @ signals, atol=2e-6)


def test_added_items_score_zero_and_say_nothing() -> None:
    model = fitted("graph-filter", rank=3, decay=1.0)
    before = model.scores(QUERIES)
    model = model.with_items(torch.empty(2))
    after = model.scores(QUERIES)
    assert torch.equal(after[:, :ITEMS], before)
    assert not after[:, ITEMS:].any()
    clicked = Queries.anonymous(type(QUERIES.histories).from_lists([[ITEMS]]))
    assert not model.scores(clicked).any()
