"""Tasks that were added after the detector: real images, a group of permutations, a transformer, linear regression.

The same kind of functions as in tasks.py. Sources: a network with large initial weights on images, Liu et al. 2022
(arXiv:2210.01117), here the 1,797 digits of scikit-learn; composition of permutations, Chughtai et al. 2023
(arXiv:2302.03025); a transformer of one layer on modular addition, Nanda et al. 2023 (arXiv:2301.05217); linear
regression with fewer examples than weights, Levi et al. 2024 (arXiv:2310.16441).
"""

from __future__ import annotations

from itertools import permutations as all_permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.grokking.lab.engine import Problem, Training, train_problem
from graphllmrec.grokking.lab.tasks import Task, describe
from graphllmrec.grokking.lab.trajectory import Trajectory
from graphllmrec.rng import torch_rng


def digits(
    seed: int,
    training: Training,
    *,
    examples: int = 200,
    start: float = 8.0,
    hidden: int = 100,
    noise: float = 0.0,
    seen: int = 0,
) -> Trajectory:
    """Handwritten digits, 8 x 8 pixels, from `examples` of 1,797 images: one hidden layer, full batches.

    `start`: factor on the initial weights. `noise`: share of random labels, in both parts. `seen`: size of the random
    validation sample, drawn anew at every point (0: all other images).
    """
    from sklearn.datasets import load_digits

    random, draws = torch_rng(seed, "lab/digits"), torch_rng(seed, "lab/digits/seen")
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(inputs), generator=random)
    inputs, targets = inputs[order], targets[order]
    wrong = torch.rand(len(targets), generator=random) < noise
    targets = torch.where(wrong, torch.randint(10, (len(targets),), generator=random), targets)
    inner = torch.randn(64, hidden, generator=random) / 8 * start
    shift = torch.zeros(hidden)
    outer = torch.randn(hidden, 10, generator=random) / hidden**0.5 * start
    weights = [inner.requires_grad_(), shift.requires_grad_(), outer.requires_grad_()]

    def logits(rows: Tensor) -> Tensor:
        found: Tensor = torch.relu(inputs.index_select(0, rows) @ inner + shift) @ outer
        return found

    known, new = torch.arange(examples), torch.arange(examples, len(inputs))

    def measure(validation: bool) -> tuple[float, float]:
        rows = new if validation else known
        if validation and seen:
            rows = new[torch.randint(len(new), (seen,), generator=draws)]
        return _classified(logits(rows), targets[rows])

    problem = Problem(
        weights,
        lambda _: F.cross_entropy(logits(known), targets[known]),
        measure,
        float(np.log(10)),
        0.1,
        lambda: inner,
    )
    about: dict[str, Any] = {"examples": examples, "start": start}
    about |= {name: value for name, value in (("noise", noise), ("seen", seen)) if value}
    return train_problem("digits", seed, about | describe(training), problem, training)


def permutations(
    seed: int,
    training: Training,
    *,
    of: int = 4,
    share: float = 0.7,
    width: int = 64,
    hidden: int = 192,
    start: float = 1.0,
    random_labels: bool = False,
) -> Trajectory:
    """σ ∘ τ for all permutations of `of` things, from a share of all pairs: embeddings and one hidden layer.

    `start`: factor on the initial weights.
    """
    random = torch_rng(seed, "lab/permutations")
    group = list(all_permutations(range(of)))
    number = {each: place for place, each in enumerate(group)}
    size = len(group)
    targets = torch.tensor([number[tuple(a[b[i]] for i in range(of))] for a in group for b in group])
    if random_labels:
        targets = torch.randint(size, targets.shape, generator=random)
    left_of, right_of = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    order = torch.randperm(size * size, generator=random)
    train, valid = order[: int(share * size * size)], order[int(share * size * size) :]
    left, right = (torch.randn(size, width, generator=random) * start for _ in range(2))
    inner = torch.randn(2 * width, hidden, generator=random) / (2 * width) ** 0.5 * start
    outer = torch.randn(hidden, size, generator=random) / hidden**0.5 * start
    weights = [each.requires_grad_() for each in (left, right, inner, outer)]

    def logits(rows: Tensor) -> Tensor:
        from_left, from_right = left @ inner[:width], right @ inner[width:]
        both = from_left.index_select(0, left_of[rows]) + from_right.index_select(0, right_of[rows])
        found: Tensor = torch.relu(both) @ outer
        return found

    def measure(validation: bool) -> tuple[float, float]:
        rows = valid if validation else train
        return _classified(logits(rows), targets[rows])

    problem = Problem(
        weights,
        lambda _: F.cross_entropy(logits(train), targets[train]),
        measure,
        float(np.log(size)),
        1 / size,
        lambda: left,
    )
    about: dict[str, Any] = {"of": of, "share": share, "start": start}
    about |= {"random_labels": True} if random_labels else {}
    return train_problem("permutations", seed, about | describe(training), problem, training)


def transformer(
    seed: int,
    training: Training,
    *,
    p: int = 31,
    share: float = 0.7,
    dim: int = 64,
    heads: int = 4,
    random_labels: bool = False,
) -> Trajectory:
    """a + b mod p, read at the last of the tokens a, b, "=": a transformer of one layer without layer norm.

    Attention is computed for the last token only: the loss reads no other.
    """
    random = torch_rng(seed, "lab/transformer")
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    targets = torch.randint(p, (p * p,), generator=random) if random_labels else (a + b) % p
    tokens = torch.stack([a, b, torch.full_like(a, p)], dim=1)  # (p², 3)
    order = torch.randperm(p * p, generator=random)
    train, valid = order[: int(share * p * p)], order[int(share * p * p) :]

    def draw(rows: int, columns: int) -> Tensor:
        found: Tensor = torch.randn(rows, columns, generator=random) / rows**0.5
        return found

    embedding, place = torch.randn(p + 1, dim, generator=random) * 0.5, torch.randn(3, dim, generator=random) * 0.5
    query, key, value, out = (draw(dim, dim) for _ in range(4))
    inner, outer, unembed = draw(dim, 4 * dim), draw(4 * dim, dim), draw(dim, p)
    weights = [embedding, place, query, key, value, out, inner, outer, unembed]
    for weight in weights:
        weight.requires_grad_()

    def logits(rows: Tensor) -> Tensor:
        x = embedding.index_select(0, tokens[rows].flatten()).view(len(rows), 3, dim) + place  # (n, 3, dim)
        last = x[:, 2]
        asked = (last @ query).view(-1, heads, 1, dim // heads)
        keys, values = ((x @ each).view(-1, 3, heads, dim // heads).transpose(1, 2) for each in (key, value))
        weight = torch.softmax(asked @ keys.transpose(2, 3) / (dim // heads) ** 0.5, -1)  # (n, heads, 1, 3)
        last = last + (weight @ values).reshape(-1, dim) @ out
        last = last + torch.relu(last @ inner) @ outer
        found: Tensor = last @ unembed
        return found

    def measure(validation: bool) -> tuple[float, float]:
        rows = valid if validation else train
        return _classified(logits(rows), targets[rows])

    problem = Problem(
        weights,
        lambda _: F.cross_entropy(logits(train), targets[train]),
        measure,
        float(np.log(p)),
        1 / p,
        lambda: embedding,
    )
    about: dict[str, Any] = {"p": p, "share": share} | ({"random_labels": True} if random_labels else {})
    return train_problem("transformer", seed, about | describe(training), problem, training)


def linear(
    seed: int,
    training: Training,
    *,
    dims: int = 100,
    examples: int = 80,
    start: float = 2.0,
    noise: float = 0.0,
    signal: float = 1.0,
) -> Trajectory:
    """Linear regression with fewer examples than weights: weight decay removes what the examples do not determine.

    Loss and metric as in `completion`. `start`: length of the initial weights; `signal`: of the true ones. `noise`:
    standard deviation of the noise on the targets of both parts.
    """
    random = torch_rng(seed, "lab/linear")

    def draw(length: float) -> Tensor:
        vector = torch.randn(dims, generator=random)
        found: Tensor = vector / vector.norm() * length
        return found

    truth, weight = draw(signal), draw(start).requires_grad_()
    inputs = torch.randn(examples + 1000, dims, generator=random)
    targets = inputs @ truth + noise * torch.randn(len(inputs), generator=random)
    rows = {False: slice(0, examples), True: slice(examples, None)}
    scale = {part: float(targets[rows[part]].square().mean()) for part in rows}

    def error(validation: bool) -> Tensor:
        found: Tensor = (inputs[rows[validation]] @ weight - targets[rows[validation]]).square().mean()
        return found

    def measure(validation: bool) -> tuple[float, float]:
        found = float(error(validation)) / scale[validation]
        return found, max(1 - found, 0.0)

    problem = Problem([weight], lambda _: error(False) / 2, measure, 1.0, 0.0, lambda: weight[None, :])
    about: dict[str, Any] = {"dims": dims, "examples": examples, "start": start}
    about |= {name: value for name, value in (("noise", noise), ("signal", signal)) if value != (name == "signal")}
    return train_problem("linear", seed, about | describe(training), problem, training)


def _classified(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    return float(F.cross_entropy(logits, targets)), float((logits.argmax(1) == targets).float().mean())


FAMILIES: dict[str, Task] = {
    "digits": digits,
    "permutations": permutations,
    "transformer": transformer,
    "linear": linear,
}
