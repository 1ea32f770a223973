"""Propagation over the user–item graph: sparse × dense products that differentiate without transposing anything.

The operator of all of it is the normalised adjacency of the whole graph, made of the two blocks of a `Bipartite`:

    M = [0  A; Aᵀ  0]       x^(l) = M^l x^(0)       z = Σ_l w_l x^(l)       (LightGCN, arXiv:2002.02126, eqs. 7 and 8)

M is symmetric, so the gradient of z by x^(0) is the same sum again, Σ_l w_l M^l g: the backward pass is a forward pass
and needs nothing kept for it. Both are summed in Horner's form, z = w_0 x + M (w_1 x + M (w_2 x + …)): every layer is
one product that adds to its result, and two tables are alive besides the embeddings, whatever the number of layers.
torch's own autograd for sparse @ dense builds the transpose in every backward pass.

`propagate` is that sum. `propagate_items` is the same for users who start from zero, at half the products.
`propagate_layers` gives the layers one by one, to models that change them on the way or compare them.

Products with a sparse matrix are in its own type, float32, also under autocast: they are limited by memory, not by
arithmetic, and torch has none in bfloat16 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.rng import torch_rng

Tables = tuple[Tensor, ...]
Weights = Sequence[float] | Tensor
Step = Callable[[Tables, Tables, float, float], Tables]  # (x, y, b, a) -> b x + a M y
Each = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # (layer, users, items) -> (users, items)


def propagate(
    graph: Bipartite, users: Tensor, items: Tensor, num_layers: int, weights: Weights | None = None
) -> tuple[Tensor, Tensor]:
    """LightGCN's light convolution and layer combination (arXiv:2002.02126, eqs. 3 and 4).

        u^(l+1) = A i^(l),   i^(l+1) = Aᵀ u^(l),   z = Σ_l w_l x^(l) over layers 0 … num_layers

    users (num_users, d), items (num_items, d): the layer-0 embeddings. `weights` are the num_layers + 1 numbers w_l, or
    a tensor (num_layers + 1,), which gets gradients if it wants them; default: the mean. Returns z of users and items,
    same shapes. Raises ValueError for another number of weights.
    """

    def step(x: Tables, y: Tables, beta: float, alpha: float) -> Tables:
        return (
            torch.addmm(x[0], graph.to_users, y[1], beta=beta, alpha=alpha),
            torch.addmm(x[1], graph.to_items, y[0], beta=beta, alpha=alpha),
        )

    kind = graph.to_users.dtype
    z_users, z_items = _series(step, _weights(weights, num_layers, users), (users.to(kind), items.to(kind)))
    return z_users, z_items


def propagate_items(graph: Bipartite, items: Tensor, num_layers: int, weights: Weights | None = None) -> Tensor:
    """The items' part of `propagate` where users have no embedding, u^(0) = 0: layers of odd number are zero there.

    items (num_items, d) -> Σ_l w_l (AᵀA)^(l/2) i over even l, same shape; `weights` as in `propagate`, of all layers.
    """

    def step(x: Tables, y: Tables, beta: float, alpha: float) -> Tables:
        return (torch.addmm(x[0], graph.to_items, graph.to_users @ y[0], beta=beta, alpha=alpha),)

    return _series(step, _weights(weights, num_layers, items)[::2], (items.to(graph.to_users.dtype),))[0]


def propagate_layers(
    graph: Bipartite, users: Tensor, items: Tensor, num_layers: int, each: Each | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Layers 0 … num_layers, each (users (num_users, d), items (num_items, d)).

    `each(layer, users, items)` may replace the vectors of every layer, 0 included, before they are listed and
    propagated further: a gate that lets text in (RecMind's fusion within layers), noise (XSimGCL), a projection, also
    to another d. Gradients flow through it. All layers are kept; `combine` adds them up.
    """
    layers: list[tuple[Tensor, Tensor]] = []
    for layer in range(num_layers + 1):
        if layer:
            users, items = (
                sparse_product(graph.to_users, graph.to_items, items),
                sparse_product(graph.to_items, graph.to_users, users),
            )
        if each is not None:
            users, items = each(layer, users, items)
        layers.append((users, items))
    return layers


def combine(layers: Sequence[tuple[Tensor, Tensor]], weights: Weights | None = None) -> tuple[Tensor, Tensor]:
    """Σ_l w_l x^(l) of users and of items; `weights` as in `propagate`, default the mean.

    XSimGCL and SimGCL leave layer 0 out: weights (0, 1/L, …, 1/L).
    """
    each = _weights(weights, len(layers) - 1, layers[0][0])
    users, items = (sum(w * x for w, x in zip(each, side, strict=True)) for side in zip(*layers, strict=True))
    assert isinstance(users, Tensor)
    assert isinstance(items, Tensor)
    return users, items


def perturbed(vectors: Tensor, size: float, seed: int, purpose: str, *steps: int) -> Tensor:
    """XSimGCL's noise (Yu et al. 2022, arXiv:2209.02544): v + size · sign(v) ∘ n / |n| with n uniform on [0, 1)^d.

    vectors (n, d) -> same shape. Every row moves by length `size` within its own orthant. The noise is a function of
    (seed, purpose, steps).
    """
    noise = torch.rand(vectors.shape, generator=torch_rng(seed, purpose, *steps), dtype=vectors.dtype)
    noise = torch.nn.functional.normalize(noise.to(vectors.device), dim=1)
    return vectors + size * vectors.detach().sign() * noise


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.transposed = transposed
        with torch.autocast(dense.device.type, enabled=False):
            return matrix @ dense

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grad


def sparse_product(matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
    """matrix (n, m) sparse CSR @ dense (m, d) -> (n, d); gradients reach `dense` only, through `transposed` (m, n)."""
    out: Tensor = _SparseProduct.apply(matrix, transposed, dense.to(matrix.dtype))  # type: ignore[no-untyped-call]
    return out


def _weights(weights: Weights | None, num_layers: int, like: Tensor) -> Tensor:
    """Layer weights as a tensor (num_layers + 1,) of the type of `like`."""
    if weights is None:
        weights = [1 / (num_layers + 1)] * (num_layers + 1)
    if len(weights) != num_layers + 1:
        raise ValueError(f"{len(weights)} layer weights for layers 0 … {num_layers}: {num_layers + 1} are needed")
    return weights.to(like.dtype) if isinstance(weights, Tensor) else torch.tensor(weights, dtype=like.dtype)


def _series(step: Step, weights: Tensor, tables: Tables) -> Tables:
    """Σ_l w_l M^l x for a symmetric M, differentiable by the tables x and by the weights."""
    out: Tables = _Series.apply(step, weights, *tables)  # type: ignore[no-untyped-call]
    return out


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, weights: Tensor, *tables: Tensor) -> Tables:
        ctx.step = step
        ctx.save_for_backward(weights, *(tables if ctx.needs_input_grad[1] else ()))
        with torch.autocast(tables[0].device.type, enabled=False):
            return _horner(step, weights.tolist(), tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tables = ctx.saved_tensors
        if not tables:
            return None, None, *_horner(ctx.step, weights.tolist(), grads)
        at, total, by_weight = grads, tuple(weights[0] * grad for grad in grads), []
        for layer, weight in enumerate(weights.tolist()):  # dz/dw_l · g = x · M^l g
            if layer:
                at = ctx.step(at, at, 0.0, 1.0)
                total = tuple(sum_.add_(grad, alpha=weight) for sum_, grad in zip(total, at, strict=True))
            by_weight.append(sum((x * grad).sum() for x, grad in zip(tables, at, strict=True)))
        return None, torch.stack(by_weight).to(weights.device), *total


def _horner(step: Step, weights: list[float], tables: Tables) -> Tables:
    """w_0 x + M (w_1 x + M (… + M w_L x)), without gradients."""
    if len(weights) == 1:
        return tuple(weights[0] * table for table in tables)
    out = step(tables, tables, weights[-2], weights[-1])
    for weight in weights[-3::-1]:
        out = step(tables, out, weight, 1.0)
    return out
