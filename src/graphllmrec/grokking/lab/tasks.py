"""Small problems, some of which generalise late: modular arithmetic, matrix completion, a small recommender, …

Each task is a function (seed, training, settings) -> Trajectory and takes seconds on one processor core. Sources:
modular arithmetic, Power et al. 2022 (arXiv:2201.02177), here with embeddings and one hidden layer; matrix completion
with small weight decay, Lyu et al. 2024 (arXiv:2311.18817); sparse parity, Barak et al. 2022 (arXiv:2207.08799). The
recommender ("tastes") is ours: matrix factorisation of clicks; each user likes all items of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.evaluation.metrics import gains, ideal_gains
from graphllmrec.grokking.lab.engine import Problem, Training, train_problem
from graphllmrec.grokking.lab.trajectory import Trajectory
from graphllmrec.rng import torch_rng

Task = Callable[..., Trajectory]


def modular(
    seed: int, training: Training, *, p: int = 41, share: float = 0.6, operation: str = "add", seen: int = 0
) -> Trajectory:
    """a ∘ b mod p, trained on a share of all pairs: an embedding per operand, one hidden layer, full batches.

    `seen`: size of the random validation sample, drawn anew at every point (0: all validation pairs).
    """
    random = torch_rng(seed, "lab/modular")
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    table = {"add": a + b, "subtract": a - b, "multiply": a * b, "noise": torch.randint(p, (p * p,), generator=random)}
    targets = table[operation] % p
    order = torch.randperm(p * p, generator=random)
    train, valid = order[: int(share * p * p)], order[int(share * p * p) :]
    width, hidden = 64, 192
    left, right = (torch.randn(p, width, generator=random) for _ in range(2))
    inner = torch.randn(2 * width, hidden, generator=random) / (2 * width) ** 0.5
    outer = torch.randn(hidden, p, generator=random) / hidden**0.5
    weights = [each.requires_grad_() for each in (left, right, inner, outer)]
    draws = torch_rng(seed, "lab/modular/seen")

    def logits(rows: Tensor) -> Tensor:
        # first layer before the lookup: p rows instead of p²
        from_left, from_right = left @ inner[:width], right @ inner[width:]
        found: Tensor = torch.relu(from_left.index_select(0, a[rows]) + from_right.index_select(0, b[rows])) @ outer
        return found

    def measure(validation: bool) -> tuple[float, float]:
        rows = valid if validation else train
        if validation and seen:
            rows = valid[torch.randint(len(valid), (seen,), generator=draws)]
        found = logits(rows)
        accuracy = (found.argmax(1) == targets[rows]).float().mean()
        return float(F.cross_entropy(found, targets[rows])), float(accuracy)

    problem = Problem(
        weights,
        lambda _: F.cross_entropy(logits(train), targets[train]),
        measure,
        float(np.log(p)),
        1 / p,
        lambda: left,
    )
    about = {"p": p, "share": share, "operation": operation, **({"seen": seen} if seen else {})}
    return train_problem("modular", seed, about | describe(training), problem, training)


def completion(
    seed: int, training: Training, *, n: int = 40, rank: int = 2, share: float = 0.4, start: float = 3.0
) -> Trajectory:
    """Completion of a matrix of rank `rank` from a share of its entries, as a product of two square matrices.

    Loss: mean squared error, divided by that of a matrix of zeros. Metric: max(1 - loss, 0). `start`: scale of the
    initial weights.
    """
    random = torch_rng(seed, "lab/completion")
    target = torch.randn(n, rank, generator=random) @ torch.randn(rank, n, generator=random) / rank**0.5
    observed = torch.rand(n, n, generator=random) < share
    u, v = (torch.randn(n, n, generator=random) * (start / n**0.5) for _ in range(2))
    weights = [u.requires_grad_(), v.requires_grad_()]
    scale = {part: float(target[mask].square().mean()) for part, mask in ((False, observed), (True, ~observed))}

    def error(mask: Tensor) -> Tensor:
        found: Tensor = (u @ v.T - target)[mask].square().mean()
        return found

    def measure(validation: bool) -> tuple[float, float]:
        found = float(error(~observed if validation else observed)) / scale[validation]
        return found, max(1 - found, 0.0)

    def loss(_: int) -> Tensor:  # a sum, not a mean: the effective step size is the same for every n
        found: Tensor = (u @ v.T - target).mul(observed).square().sum() / 2
        return found

    problem = Problem(weights, loss, measure, 1.0, 0.0, lambda: u @ v.T)
    about = {"n": n, "rank": rank, "share": share, "start": start}
    return train_problem("completion", seed, about | describe(training), problem, training)


def tastes(
    seed: int,
    training: Training,
    *,
    users: int = 60,
    items: int = 60,
    blocks: int = 4,
    share: float = 0.4,
    start: float = 1.0,
    dims: int = 60,
    noise: float = 0.0,
    batch: int = 0,
) -> Trajectory:
    """Logistic matrix factorisation of clicks, from a share of all pairs; each user likes all items of one block.

    Metric: NDCG over the pairs of a part. `noise`: share of flipped labels. `batch`: pairs per step (0: all).
    """
    random = torch_rng(seed, "lab/tastes")
    of_user, of_item = torch.arange(users) % blocks, torch.randint(blocks, (items,), generator=random)
    liked = (of_user[:, None] == of_item[None, :]).float()
    liked = torch.where(torch.rand(users, items, generator=random) < noise, 1 - liked, liked)
    observed = torch.rand(users, items, generator=random) < share
    x, y = (torch.randn(count, dims, generator=random) * (start / dims**0.25) for count in (users, items))
    bias = torch.zeros(())
    weights = [x.requires_grad_(), y.requires_grad_(), bias.requires_grad_()]
    draws = torch_rng(seed, "lab/tastes/batch")
    pairs = observed.nonzero()  # (n, 2)
    mean = float(liked.mean())
    guess = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    by_chance = float(np.mean([ndcg(torch.rand(users, items, generator=draws), liked, ~observed) for _ in range(20)]))

    def loss(_: int) -> Tensor:
        if not batch:
            return F.binary_cross_entropy_with_logits((x @ y.T + bias)[observed], liked[observed])
        rows = pairs[torch.randint(len(pairs), (batch,), generator=draws)]
        scores = (x.index_select(0, rows[:, 0]) * y.index_select(0, rows[:, 1])).sum(1) + bias
        return F.binary_cross_entropy_with_logits(scores, liked[rows[:, 0], rows[:, 1]])

    def measure(validation: bool) -> tuple[float, float]:
        mask, scores = ~observed if validation else observed, x @ y.T + bias
        return float(F.binary_cross_entropy_with_logits(scores[mask], liked[mask])), ndcg(scores, liked, mask)

    problem = Problem(weights, loss, measure, float(guess), by_chance, lambda: x @ y.T)
    about = {"blocks": blocks, "share": share, "start": start, "dims": dims}
    about |= {name: value for name, value in (("noise", noise), ("batch", batch)) if value}
    return train_problem("tastes", seed, about | describe(training), problem, training)


def ndcg(scores: Tensor, liked: Tensor, mask: Tensor) -> float:
    """Mean NDCG over users who like an item, ranking the pairs in `mask` (users, items) only."""
    k = scores.shape[1]
    hits = (liked * mask).gather(1, scores.masked_fill(~mask, -torch.inf).argsort(1, descending=True))
    count = (liked * mask).sum(1).long()
    gain = (hits * gains(torch.arange(1, k + 1), k)).sum(1)
    return float((gain[count > 0] / ideal_gains(count[count > 0], k)).mean())


def parity(
    seed: int, training: Training, *, bits: int = 30, of: int = 3, examples: int = 700, hidden: int = 128
) -> Trajectory:
    """Parity of the first `of` of `bits` bits, from a fixed set of examples: one hidden layer, full batches."""
    random = torch_rng(seed, "lab/parity")
    signs = torch.randint(0, 2, (examples + 1500, bits), generator=random).float() * 2 - 1
    targets = (signs[:, :of].prod(1) > 0).float()
    inner = torch.randn(bits, hidden, generator=random) / bits**0.5
    shift = torch.zeros(hidden)
    outer = torch.randn(hidden, generator=random) / hidden**0.5
    weights = [inner.requires_grad_(), shift.requires_grad_(), outer.requires_grad_()]

    def logits(rows: slice) -> Tensor:
        found: Tensor = torch.relu(signs[rows] @ inner + shift) @ outer
        return found

    def measure(validation: bool) -> tuple[float, float]:
        rows = slice(examples, None) if validation else slice(0, examples)
        found = logits(rows)
        right = ((found > 0).float() == targets[rows]).float().mean()
        return float(F.binary_cross_entropy_with_logits(found, targets[rows])), float(right)

    def loss(_: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits(slice(0, examples)), targets[:examples])

    problem = Problem(weights, loss, measure, float(np.log(2)), 0.5, lambda: inner)
    about = {"bits": bits, "examples": examples}
    return train_problem("parity", seed, about | describe(training), problem, training)


def sparse(
    seed: int,
    training: Training,
    *,
    dims: int = 120,
    examples: int = 60,
    nonzero: int = 4,
    start: float = 2.0,
    noise: float = 0.0,
) -> Trajectory:
    """Linear regression with weights u² - v² and fewer examples than weights; only `nonzero` true weights are not 0.

    Loss and metric as in `completion`. `noise`: standard deviation of the noise on the targets.
    """
    random = torch_rng(seed, "lab/sparse")
    truth = torch.zeros(dims)
    truth[torch.randperm(dims, generator=random)[:nonzero]] = torch.randn(nonzero, generator=random).sign()
    inputs = torch.randn(examples + 1000, dims, generator=random)
    targets = inputs @ truth + noise * torch.randn(len(inputs), generator=random)
    u, v = (torch.full((dims,), start).requires_grad_() for _ in range(2))
    scale = {part: float(targets[rows].square().mean()) for part, rows in _halves(examples).items()}

    def error(rows: slice) -> Tensor:
        found: Tensor = (inputs[rows] @ (u.square() - v.square()) - targets[rows]).square().mean()
        return found

    def measure(validation: bool) -> tuple[float, float]:
        found = float(error(_halves(examples)[validation])) / scale[validation]
        return found, max(1 - found, 0.0)

    problem = Problem(
        [u, v], lambda _: error(slice(0, examples)) / 2, measure, 1.0, 0.0, lambda: (u.square() - v.square())[None, :]
    )
    about: dict[str, Any] = {"dims": dims, "examples": examples, "nonzero": nonzero, "start": start}
    about |= {"noise": noise} if noise else {}
    return train_problem("sparse", seed, about | describe(training), problem, training)


def _halves(examples: int) -> dict[bool, slice]:
    """Rows of the training part (False) and of the validation part (True)."""
    return {False: slice(0, examples), True: slice(examples, None)}


def teacher(
    seed: int,
    training: Training,
    *,
    examples: int = 2000,
    noise: float = 0.0,
    batch: int = 64,
    hidden: int = 128,
    start: float = 1.0,
) -> Trajectory:
    """A network learns the labels of a fixed random network. With noise and few examples it overfits.

    `start`: factor on the initial weights (Liu et al. 2022, arXiv:2210.01117). `noise`: share of random labels.
    """
    random, draws = torch_rng(seed, "lab/teacher"), torch_rng(seed, "lab/teacher/batch")
    inputs = torch.randn(examples + 1500, 20, generator=random)
    first, second = torch.randn(20, 8, generator=random) / 20**0.5, torch.randn(8, 4, generator=random)
    targets = (torch.tanh(2 * inputs @ first) @ second).argmax(1)
    wrong = torch.rand(examples, generator=random) < noise
    targets[:examples] = torch.where(wrong, torch.randint(4, (examples,), generator=random), targets[:examples])
    inner = torch.randn(20, hidden, generator=random) * (2 / 20) ** 0.5 * start
    shift = torch.zeros(hidden)
    outer = torch.randn(hidden, 4, generator=random) / hidden**0.5 * start
    weights = [inner.requires_grad_(), shift.requires_grad_(), outer.requires_grad_()]

    def logits(rows: Tensor) -> Tensor:
        found: Tensor = torch.relu(inputs[rows] @ inner + shift) @ outer
        return found

    def measure(validation: bool) -> tuple[float, float]:
        rows = torch.arange(examples, len(inputs)) if validation else torch.arange(examples)
        found = logits(rows)
        return float(F.cross_entropy(found, targets[rows])), float((found.argmax(1) == targets[rows]).float().mean())

    def loss(_: int) -> Tensor:
        rows = torch.randint(examples, (batch,), generator=draws)
        return F.cross_entropy(logits(rows), targets[rows])

    problem = Problem(weights, loss, measure, float(np.log(4)), 0.25, lambda: inner)
    about = {"examples": examples, "noise": noise, "batch": batch, **({"start": start} if start != 1 else {})}
    return train_problem("teacher", seed, about | describe(training), problem, training)


def describe(training: Training) -> dict[str, Any]:
    """The training settings that are part of a run's name."""
    about: dict[str, Any] = {"lr": training.learning_rate, "decay": training.weight_decay}
    if training.optimizer != "adamw":
        about["optimizer"] = training.optimizer
    if training.orthograd:
        about["orthograd"] = True
    if training.drops:
        about["drops"] = list(training.drops)
    return about


TASKS: dict[str, Task] = {
    "modular": modular,
    "completion": completion,
    "tastes": tastes,
    "parity": parity,
    "teacher": teacher,
    "sparse": sparse,
}
