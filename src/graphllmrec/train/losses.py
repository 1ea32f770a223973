"""Ranking losses. Each is a mean over the batch, and each has a golden test against NumPy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv:1205.2618): mean of -log σ(s_ui - s_uj).

    positive (B,): scores of clicked items; negative (B,): scores of items the same users did not click.
    """
    return F.softplus(negative - positive).mean()


def softmax_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the clicked item among all items: mean of log Σ_j exp(s_uj) - s_ui.

    scores (B, num_items), targets (B,) item rows.
    """
    return F.cross_entropy(scores, targets)


def sampled_softmax_loss(positive: Tensor, negative: Tensor, num_items: int) -> Tensor:
    """Softmax over the clicked item and N items drawn uniformly from all, corrected for those that were not drawn.

    positive (B,), negative (B, N): scores of the drawn items, -inf where the clicked item itself was drawn. Every draw
    stands for num_items / N items, and that is its weight in the partition function (Jean et al. 2015,
    arXiv:1412.2007, eq. 9), which so is that of `softmax_loss` in expectation.
    """
    weight = torch.log(torch.tensor(num_items / negative.shape[1]))
    scores = torch.cat([positive[:, None], negative + weight], dim=1)  # (B, 1 + N)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))


def in_batch_softmax_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """InfoNCE with the batch's other targets as negatives: mean of log Σ_b exp(s_ab) - s_aa.

    scores (B, B): query a against the target of query b; targets (B,) item rows. A negative that is the same item as
    the positive is left out. Negatives come in proportion to their popularity and no correction is made, so that what
    is learned is affinity and not popularity: items that are rarely clicked are not pushed down.
    """
    same = targets[:, None] == targets[None, :]
    same.fill_diagonal_(False)
    return F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(targets)))
