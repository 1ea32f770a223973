"""Ranking losses. Each is a mean over the batch, and each has a golden test against NumPy.

    one pair per example         bpr_loss
    all items as negatives       softmax_loss; for all clicks of a user at once grouped_softmax_loss and slk_loss
    some items as negatives      drawn_softmax_loss (uniform draws), in_batch_softmax_loss (the batch)
    vectors instead of scores    direct_au_loss, contrast_loss

The two for all clicks of a user take what `click_scores` computes once per user.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = {"cpu": 5_000_000}  # scores that log_partition holds at a time: 20 MB stay near the cores
BLOCK_ELSEWHERE = 500_000_000  # on accelerators, which want large products
SLK_CUTOFF = 20  # K of SL@K
SLK_REFRESH = 20  # epochs between two computations of its thresholds β_b
SLK_TEMPERATURE = 2.25  # its τ_w, on the scale of scores; of cosines / τ: 2.25 / τ
_ROWS = 256  # queries whose scores slk_thresholds holds at a time


def mean_loss(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Mean () of the losses (B,) of a batch, each times the weight (B,) of its click (with a mean of 1 over all)."""
    return losses.mean() if weight is None else (losses * weight).mean()


def bpr_loss(positive: Tensor, negative: Tensor, weight: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv:1205.2618): mean of -log σ(s_ui - s_uj).

    positive (B,): scores of clicked items; negative (B,): scores of items the same users did not click; `weight` (B,)
    of the clicks.
    """
    return mean_loss(F.softplus(negative - positive), weight)


def softmax_loss(scores: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of the clicked item among all items: mean of log Σ_j exp(s_uj) - s_ui.

    scores (B, num_items), targets (B,) item rows, `weight` (B,) of the clicks.
    """
    if weight is None:
        return F.cross_entropy(scores, targets)
    return mean_loss(F.cross_entropy(scores, targets, reduction="none"), weight)


def sampled_softmax_loss(
    positive: Tensor, negative: Tensor, num_items: int, click_weight: Tensor | None = None
) -> Tensor:
    """Softmax over the clicked item and N items drawn uniformly from all, corrected for those that were not drawn.

    positive (B,), negative (B, N): scores of the drawn items, -inf where the clicked item itself was drawn. Every draw
    stands for num_items / N items, and that is its weight in the partition function (Jean et al. 2015,
    arXiv:1412.2007, eq. 9), which so is that of `softmax_loss` in expectation. `click_weight` (B,): of the clicks.
    """
    weight = math.log(num_items / negative.shape[1])
    scores = torch.cat([positive[:, None], negative + weight], dim=1)  # (B, 1 + N)
    return softmax_loss(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device), click_weight)


def drawn_softmax_loss(
    queries: Tensor, items: Tensor, bias: Tensor, nodes: Tensor, num_items: int, click_weight: Tensor | None = None
) -> Tensor:
    """`sampled_softmax_loss` of vectors: B queries, their B targets and N drawn items, with scores q · v + bias.

    queries (B, d); nodes (B + N,): item rows, the targets first; items (B + N, d), bias (B + N,) of `nodes`. Where the
    target of a query was drawn, that draw is left out for this query.
    """
    size = len(queries)
    positive = (queries * items[:size]).sum(1) + bias[:size]  # (B,)
    negative = queries @ items[size:].T + bias[size:]  # (B, N)
    negative = negative.masked_fill(nodes[None, size:] == nodes[:size, None], -torch.inf)
    return sampled_softmax_loss(positive, negative, num_items, click_weight)


def in_batch_softmax_loss(
    scores: Tensor, targets: Tensor, popularity: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """InfoNCE with the batch's other targets as negatives: mean of log Σ_b exp(s_ab) - s_aa.

    scores (B, B): query a against the target of query b; targets (B,) item rows. A negative that is the same item as
    the positive is left out. Negatives come in proportion to their popularity. Without a correction, what is learned
    is affinity and not popularity: items that are rarely clicked are not pushed down. `popularity` (B,), the logarithm
    of the targets' clicks, takes that back (the logQ correction; Yi et al. 2019, "Sampling-bias-corrected neural
    modeling for large corpus item recommendations", RecSys, eq. 3): a share c of it leaves a factor popularity^(1-c).
    `weight` (B,): of the clicks.
    """
    same = targets[:, None] == targets[None, :]
    same.fill_diagonal_(False)
    if popularity is not None:
        others = ~torch.eye(len(targets), dtype=torch.bool, device=scores.device)
        scores = scores - popularity[None, :] * others  # (B, B); the positive was not drawn, so it is not corrected
    own = torch.arange(len(targets), device=scores.device)
    return softmax_loss(scores.masked_fill(same, -torch.inf), own, weight)


def log_partition(queries: Tensor, items: Tensor) -> Tensor:
    """log Σ_j exp(q_b · v_j) (B,) of the softmax over all items, without holding (B, num_items) numbers at any time.

    queries (B, d), items (num_items, d); differentiable by both. A few rows of scores at a time are made, summed and
    forgotten; the backward pass makes them again, already normalised. On two cores that is three to four times as fast
    as autograd through `logsumexp`, which writes and reads the whole score matrix several times. Sums of that many
    numbers need float32: vectors that autocast has made bfloat16 are converted.
    """
    queries, items = (part.float() if part.dtype is torch.bfloat16 else part for part in (queries, items))
    out: Tensor = _LogPartition.apply(queries, items)  # type: ignore[no-untyped-call]
    return out


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor) -> Tensor:
        found = []
        for rows, buffer in _score_blocks(queries, items):
            scores = torch.mm(queries[rows], items.T, out=buffer)  # (rows, num_items)
            top = scores.amax(1, keepdim=True)
            found.append(scores.sub_(top).exp_().sum(1).log_() + top[:, 0])
        partition = torch.cat(found) if found else queries.new_empty(0)
        ctx.save_for_backward(queries, items, partition)
        return partition

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        queries, items, partition = ctx.saved_tensors
        left = torch.cat([queries, -partition[:, None]], dim=1)  # so that a product gives log-probabilities
        right = torch.cat([items, items.new_ones(len(items), 1)], dim=1)
        by_query, by_item = torch.empty_like(queries), torch.zeros_like(items)
        for rows, buffer in _score_blocks(queries, items):
            shares = torch.mm(left[rows], right.T, out=buffer).exp_()  # (rows, num_items), rows add up to 1
            by_query[rows] = (shares @ items) * grad[rows, None]
            by_item.addmm_(shares.T, queries[rows] * grad[rows, None])
        return by_query, by_item


def _score_blocks(queries: Tensor, items: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of (B, num_items) scores and a buffer that is used for one after the other."""
    held = BLOCK.get(queries.device.type, BLOCK_ELSEWHERE)
    size = max(held // max(len(items), 1), 16)
    buffer = queries.new_empty(min(size, len(queries)), len(items))
    for start in range(0, len(queries), size):
        stop = min(start + size, len(queries))
        yield slice(start, stop), buffer[: stop - start]


def click_scores(queries: Tensor, items: Tensor, bias: Tensor, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """`log_partition` (B,) over all items, and the scores (n,) of n clicks, with scores s_bj = q_b · v_j + bias_j.

    queries (B, d), items (num_items, d), bias (num_items,); click c is query row[c] (n,) on item[c] (n,). What
    `grouped_softmax_loss` and `slk_loss` take.
    """
    queries = torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1)  # (B, d + 1)
    items = torch.cat([items, bias[:, None]], dim=1)  # (num_items, d + 1)
    return log_partition(queries, items), (queries.index_select(0, row) * items.index_select(0, item)).sum(1)


def grouped_softmax_loss(partition: Tensor, positive: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of many clicks of the same queries: Σ_c w_c (log Σ_j exp(s_bj) - s_c) / Σ_c w_c, b = row_c.

    partition (B,): `log_partition` of the queries; positive (n,): scores of the clicked items; row (n,): whose click;
    weight (n,). With weights of 1 this is the mean of `softmax_loss` over all n clicks, at the cost of B of them.
    """
    return ((partition.index_select(0, row) - positive) * weight).sum() / weight.sum()


def slk_loss(
    partition: Tensor, positive: Tensor, row: Tensor, weight: Tensor, threshold: Tensor, temperature: float
) -> Tensor:
    """SL@K (Yang et al. 2025, "Breaking the top-K barrier", KDD, arXiv:2508.05673): softmax that aims at NDCG@K.

        Σ_c w_c σ((s_c - β_b) / τ_w) (log Σ_j exp(s_bj) - s_c) / Σ_c w_c

    As `grouped_softmax_loss`, each click weighted by how surely it is among the best K: threshold (B,) holds β_b, the
    K-th largest score of query b, a constant; τ_w = `temperature`, in units of the scores. Models compute β anew every
    SLK_REFRESH epochs (`slk_thresholds`, `slk_refresh_due`).
    """
    within = torch.sigmoid((positive - threshold.index_select(0, row)) / temperature)
    return ((partition.index_select(0, row) - positive) * within * weight).sum() / weight.sum()


@torch.no_grad()
def slk_thresholds(queries: Tensor, items: Tensor, bias: Tensor) -> Tensor:
    """β (B,) of `slk_loss`: the SLK_CUTOFF-th largest of the scores q_b · v_j + bias_j, or the least of fewer items.

    queries (B, d), items (num_items, d), bias (num_items,).
    """
    k = min(SLK_CUTOFF, len(items))
    thresholds = queries.new_empty(len(queries))
    for start in range(0, len(queries), _ROWS):
        scores = queries[start : start + _ROWS] @ items.T + bias  # (_ROWS, num_items)
        thresholds[start : start + _ROWS] = scores.topk(k, dim=1).values[:, -1]
    return thresholds


def slk_refresh_due(epoch: int, step: int) -> bool:
    """Is this step (both from 0) one before which `slk_loss` needs new thresholds?"""
    return epoch % SLK_REFRESH == 0 and step == 0


def direct_au_loss(queries: Tensor, targets: Tensor, uniformity: float = 1.0) -> Tensor:
    """Alignment and uniformity (Wang et al. 2022, DirectAU, arXiv:2206.12811, eqs. 7 and 8).

        mean |q_b - v_b|² + γ/2 [ log mean exp(-2 |q_a - q_b|²) + log mean exp(-2 |v_a - v_b|²) ]   over pairs a < b

    queries, targets (B, d): unit vectors of users and of the items they clicked; γ = `uniformity`. B of 1 has no pairs
    and is aligned only.
    """
    aligned = (queries - targets).square().sum(1).mean()
    if len(queries) < 2:
        return aligned
    return aligned + uniformity * (_spread(queries) + _spread(targets)) / 2


def _spread(vectors: Tensor) -> Tensor:
    """log of the mean of exp(-2 |a - b|²) over all pairs of unit vectors (B, d)."""
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1, device=vectors.device)
    return (-4 * (1 - (vectors @ vectors.T)[first, second])).exp().mean().log()  # |a - b|² = 2 - 2 a · b


def contrast_loss(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE between two views of the same nodes (XSimGCL, Yu et al. 2022, arXiv:2209.02544, eq. 6).

    first, second (n, d): row a of one and row a of the other belong together. Mean of log Σ_b exp(cos_ab / τ) -
    cos_aa / τ.
    """
    scores = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature  # (n, n)
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
