"""Layer weights, layer lists, hooks and noise of the propagation against layers summed up in loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dense import Dense, clicks_of, edges, layers, normalised, slope
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import combine, perturbed, propagate, propagate_items, propagate_layers

USERS, ITEMS, DIM, DEPTH = 5, 6, 3, 3
TRAIN = edges([0, 0, 0, 1, 1, 2, 2, 2, 3], [1, 2, 4, 2, 3, 2, 4, 0, 4])  # user 4 and item 5 are alone
NORM = normalised(clicks_of(TRAIN, USERS, ITEMS))
GRAPH = Bipartite.of(TRAIN, USERS, ITEMS)
RANDOM = np.random.default_rng(2)
LAYER_0 = RANDOM.normal(size=(USERS, DIM)), RANDOM.normal(size=(ITEMS, DIM))
LOOKED_AT = RANDOM.normal(size=(USERS, DIM)), RANDOM.normal(size=(ITEMS, DIM))  # the loss is (z · these)² / 2
WEIGHTS = [0.4, -0.2, 0.7, 0.1]


def tables() -> tuple[Tensor, Tensor]:
    users, items = (torch.tensor(table, dtype=torch.float32, requires_grad=True) for table in LAYER_0)
    return users, items


def weighted(weights: list[float], users: Dense, items: Dense) -> tuple[Dense, Dense]:
    """Σ_l w_l x^(l), layer by layer."""
    sums = np.zeros_like(users), np.zeros_like(items)
    for total, side in zip(sums, layers(NORM, users, items, len(weights) - 1), strict=True):
        for weight, layer in zip(weights, side, strict=True):
            total += weight * layer
    return sums


def loss_of(vectors: tuple[Tensor, Tensor]) -> Tensor:
    seen = sum((z * torch.tensor(w, dtype=z.dtype)).sum() for z, w in zip(vectors, LOOKED_AT, strict=True))
    assert isinstance(seen, Tensor)
    return seen.square() / 2


def dense_loss(vectors: tuple[Dense, Dense]) -> float:
    return float(sum((z * w).sum() for z, w in zip(vectors, LOOKED_AT, strict=True)) ** 2 / 2)


def assert_gradients(loss: Tensor, expected: Callable[[], float], arrays: dict[str, tuple[Tensor, Dense]]) -> None:
    """Gradients of the tensors against the slopes of `expected` (which reads the arrays)."""
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected(), rel=1e-5)
    for name, (tensor, array) in arrays.items():
        assert tensor.grad is not None, name
        np.testing.assert_allclose(tensor.grad.numpy(), slope(expected, array), rtol=1e-5, atol=1e-6, err_msg=name)


# layer weights


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_layers_are_added_up_by_their_weights(num_layers: int, kind: Callable[[list[float]], list[float]]) -> None:
    weights = WEIGHTS[: num_layers + 1]
    found = propagate(GRAPH, *tables(), num_layers, kind(weights))
    for z, wanted in zip(found, weighted(weights, *LAYER_0), strict=True):
        np.testing.assert_allclose(z.detach().numpy(), wanted, atol=1e-6)


def test_gradients_of_fixed_weights() -> None:
    users, items = tables()
    u, i = LAYER_0[0].copy(), LAYER_0[1].copy()
    assert_gradients(
        loss_of(propagate(GRAPH, users, items, DEPTH, WEIGHTS)),
        lambda: dense_loss(weighted(WEIGHTS, u, i)),
        {"users": (users, u), "items": (items, i)},
    )


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_weights_can_be_learned(num_layers: int) -> None:
    users, items = tables()
    u, i, w = LAYER_0[0].copy(), LAYER_0[1].copy(), np.array(WEIGHTS[: num_layers + 1])
    weights = torch.tensor(w, dtype=torch.float32, requires_grad=True)
    assert_gradients(
        loss_of(propagate(GRAPH, users, items, num_layers, weights)),
        lambda: dense_loss(weighted(w.tolist(), u, i)),
        {"users": (users, u), "items": (items, i), "weights": (weights, w)},
    )


def test_weights_can_be_learned_for_frozen_embeddings() -> None:
    weights = torch.tensor(WEIGHTS, requires_grad=True)
    users, items = (table.detach() for table in tables())
    w = np.array(WEIGHTS)
    assert_gradients(
        loss_of(propagate(GRAPH, users, items, DEPTH, weights)),
        lambda: dense_loss(weighted(w.tolist(), *LAYER_0)),
        {"weights": (weights, w)},
    )


@pytest.mark.parametrize("weights", [[1.0], [0.25] * 5])
def test_another_number_of_weights_is_refused(weights: list[float]) -> None:
    message = rf"{len(weights)} layer weights for layers 0 … 3: 4 are needed"
    with pytest.raises(ValueError, match=message):
        propagate(GRAPH, *tables(), 3, weights)
    with pytest.raises(ValueError, match=message):
        propagate_items(GRAPH, tables()[1], 3, weights)
    with pytest.raises(ValueError, match=message):
        combine(propagate_layers(GRAPH, *tables(), 3), weights)


def test_nothing_but_the_weights_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        propagate(GRAPH, *tables(), DEPTH)
    assert kept == [DEPTH + 1]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    users, items = tables()
    (first,) = torch.autograd.grad(loss_of(propagate(GRAPH, users, items, 2)), users, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.square().sum().backward()


def test_float64_stays_float64() -> None:
    whole = Bipartite(GRAPH.to_users.double(), GRAPH.to_items.double(), GRAPH.user_degree, GRAPH.item_degree)
    users, items = (table.detach().double().requires_grad_() for table in tables())
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, i, w: propagate(whole, u, i, DEPTH, w), (users, items, weights))


# items alone


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3, 4, 5])
def test_items_alone_equal_users_that_start_from_zero(num_layers: int) -> None:
    weights = [*WEIGHTS, 0.3, -0.5][: num_layers + 1]
    for given in (None, weights):
        items = tables()[1]
        found = propagate_items(GRAPH, items, num_layers, given)
        used = given or [1 / (num_layers + 1)] * (num_layers + 1)
        nobody, i = np.zeros((USERS, DIM)), LAYER_0[1].copy()
        np.testing.assert_allclose(found.detach().numpy(), weighted(used, nobody, i)[1], atol=1e-6)
        looked_at = torch.tensor(LOOKED_AT[1], dtype=torch.float32)
        assert_gradients(
            (found * looked_at).sum().square() / 2,
            lambda used=used, i=i: float((weighted(used, np.zeros((USERS, DIM)), i)[1] * LOOKED_AT[1]).sum() ** 2 / 2),
            {"items": (items, i)},
        )


# layers one by one


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_listed_layers_equal_the_loops_and_add_up_to_propagate(weights: list[float] | None) -> None:
    users, items = tables()
    listed = propagate_layers(GRAPH, users, items, DEPTH)
    for side, wanted in zip(zip(*listed, strict=True), layers(NORM, *LAYER_0, DEPTH), strict=True):
        np.testing.assert_allclose(torch.stack(side).detach().numpy(), wanted, atol=1e-6)
    torch.testing.assert_close(combine(listed, weights), propagate(GRAPH, users, items, DEPTH, weights))


def test_a_gate_within_the_layers_fuses_before_it_propagates_and_learns() -> None:
    """x^(l) <- g_l x^(l) + (1 - g_l) t for l = 0 … L - 1, as a fusion within layers does it."""
    users, items = tables()
    text = RANDOM.normal(size=(USERS, DIM)), RANDOM.normal(size=(ITEMS, DIM))
    u, i, gate, words = LAYER_0[0].copy(), LAYER_0[1].copy(), np.array([0.9, 0.6, 0.3]), text[1].copy()
    gates = torch.tensor(gate, dtype=torch.float32, requires_grad=True)
    user_text = torch.tensor(text[0], dtype=torch.float32)
    item_text = torch.tensor(words, dtype=torch.float32, requires_grad=True)
    called: list[int] = []

    def fuse(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        called.append(layer)
        if layer == DEPTH:
            return users, items
        share = gates[layer]
        return share * users + (1 - share) * user_text, share * items + (1 - share) * item_text

    def expected() -> float:
        at_users, at_items = u, i
        sums = np.zeros_like(u), np.zeros_like(i)
        for layer in range(DEPTH + 1):
            if layer:
                at_users, at_items = (side[1] for side in layers(NORM, at_users, at_items, 1))
            if layer < DEPTH:
                at_users = gate[layer] * at_users + (1 - gate[layer]) * text[0]
                at_items = gate[layer] * at_items + (1 - gate[layer]) * words
            for total, at in zip(sums, (at_users, at_items), strict=True):
                total += at / (DEPTH + 1)
        return dense_loss(sums)

    assert_gradients(
        loss_of(combine(propagate_layers(GRAPH, users, items, DEPTH, fuse))),
        expected,
        {"users": (users, u), "items": (items, i), "gate": (gates, gate), "text": (item_text, words)},
    )
    assert called == [0, 1, 2, 3]


def test_a_hook_may_change_the_width() -> None:
    project = torch.from_numpy(RANDOM.normal(size=(DIM, 2))).float()

    def narrow(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return (users @ project, items @ project) if layer == 1 else (users, items)

    listed = propagate_layers(GRAPH, *tables(), 2, narrow)
    assert [tuple(users.shape) for users, _ in listed] == [(USERS, DIM), (USERS, 2), (USERS, 2)]


# noise


def test_noise_moves_every_row_by_its_size_within_the_orthant() -> None:
    vectors = torch.tensor(LAYER_0[0], dtype=torch.float32, requires_grad=True)
    moved = perturbed(vectors, 0.1, 5, "noise", 1, 2, 3)
    step = (moved - vectors).detach()
    np.testing.assert_allclose(step.norm(dim=1).numpy(), 0.1, rtol=1e-5)
    assert (step * vectors.detach() >= 0).all()
    moved.sum().backward()
    torch.testing.assert_close(vectors.grad, torch.ones_like(vectors))
    assert torch.equal(perturbed(vectors, 0.1, 5, "noise", 1, 2, 3), moved)
    assert not torch.equal(perturbed(vectors, 0.1, 5, "noise", 1, 2, 4), moved)


def test_noisy_layers_as_in_xsimgcl() -> None:
    """Noise after every propagation is propagated further; layer 0 has none and is left out of the mean."""

    def shake(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        if layer == 0:
            return users, items
        return perturbed(users, 0.2, 1, "users", layer), perturbed(items, 0.2, 1, "items", layer)

    users, items = (table.detach() for table in tables())
    listed = propagate_layers(GRAPH, users, items, 2, shake)
    at_users, at_items = LAYER_0
    wanted = []
    for layer in (1, 2):
        at_users, at_items = (side[1] for side in layers(NORM, at_users, at_items, 1))
        at_users, at_items = (
            perturbed(torch.tensor(at, dtype=torch.float32), 0.2, 1, name, layer).double().numpy()
            for at, name in ((at_users, "users"), (at_items, "items"))
        )
        wanted.append((at_users, at_items))
        for found, at in zip(listed[layer], wanted[-1], strict=True):
            np.testing.assert_allclose(found.numpy(), at, atol=1e-6)
    mean = combine(listed, [0.0, 0.5, 0.5])
    np.testing.assert_allclose(mean[0].numpy(), (wanted[0][0] + wanted[1][0]) / 2, atol=1e-6)
