"""Contrastive alignment of two vectors per entity, with hard negatives and a queue of past vectors.

RecMind (arXiv:2509.06286, eqs. 5 and 6): the graph vector g_v and the language vector l_v of an entity v are a pair,

    L = -1/(2B) Σ_v [ log e^{s(g_v, l_v)/τ} / (e^{s(g_v, l_v)/τ} + Σ_{v' in N(v)} w_v' e^{s(g_v, l_v')/τ})
                      + the same with g and l exchanged ]

s is the cosine; N(v) holds the other entities of the batch, and what the queue keeps of entities other than v.

Hard negatives (Robinson et al. 2021, "Contrastive Learning with Hard Negative Samples", arXiv:2010.04592, eq. 4): a
negative weighs more the closer it is, w_v' = e^{β s(v, v')/τ} / mean of that over N(v), with β = `hardness`; β = 0 is
plain InfoNCE.

Differences from the papers: RecMind's paper does not define its hard negatives or its queue. The weights are constants
to the gradient, so that a step moves vectors, not weights. The queue (He et al. 2020, MoCo, arXiv:1911.05722) holds
past outputs as they were; there is no second, slowly moving encoder, because the graph vectors would need a second
propagation in every step. MoCo has no labels; here an entity in the queue is no negative of itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.nn.vectors import unit

_FAR = -1e9  # a score that no pair has: marks entries that are no negative


class Queue(nn.Module):
    """The last `size` entities with both vectors, oldest overwritten first. Its buffers are part of checkpoints."""

    first: Tensor  # (size, dim) unit vectors
    second: Tensor  # (size, dim) unit vectors
    ids: Tensor  # (size,) int64 entity of each row; -1 for a row that is still empty
    place: Tensor  # () int64 row that is written next

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(size, dim))
        self.register_buffer("second", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, first: Tensor, second: Tensor, ids: Tensor) -> None:
        """Add the two vectors (B, dim) of the entities `ids` (B,); of more than `size`, only the last ones are kept."""
        size = len(self.ids)
        if not size:
            return
        first, second = (unit(vectors[-size:].detach().to(self.first.dtype)) for vectors in (first, second))
        ids = ids[-size:]
        rows = (int(self.place) + torch.arange(len(ids), device=ids.device)) % size
        self.first[rows], self.second[rows], self.ids[rows] = first, second, ids
        self.place.copy_((self.place + len(ids)) % size)


def alignment_loss(
    first: Tensor, second: Tensor, ids: Tensor, queue: Queue, temperature: float = 0.1, hardness: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE of the equation above: a scalar, 0 for no entities. The queue is read, not changed.

    first, second (B, dim): the two vectors of the entities `ids` (B,) int64, which are distinct; any length.
    temperature τ; hardness β, 0 weighs all negatives alike.
    """
    if not len(ids):
        return (first.sum() + second.sum()) * 0.0
    first, second = unit(first), unit(second)
    own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    absent = torch.cat([own, (queue.ids == ids[:, None]) | (queue.ids < 0)], dim=1)  # (B, B + size)
    forward = _info_nce(first, second, queue.second, absent, temperature, hardness)
    backward = _info_nce(second, first, queue.first, absent, temperature, hardness)
    return (forward + backward) / 2


def _info_nce(
    queries: Tensor, keys: Tensor, queued: Tensor, absent: Tensor, temperature: float, hardness: float
) -> Tensor:
    """InfoNCE from `queries` (B, dim) to `keys` (B, dim), row by row; negatives are the other keys and the queue.

    queued (size, dim); absent (B, B + size): entries that are no negative.
    """
    scores = queries @ torch.cat([keys, queued]).T / temperature  # (B, B + size)
    positive = scores.diagonal()[:, None]  # (B, 1)
    if hardness:
        with torch.no_grad():
            closeness = (hardness * scores).masked_fill(absent, _FAR)
            count = (~absent).sum(1, keepdim=True).clamp_min(1)
            log_weight = closeness - closeness.logsumexp(1, keepdim=True) + count.log()  # (B, B + size)
        scores = scores + log_weight
    scores = torch.cat([positive, scores.masked_fill(absent, -torch.inf)], dim=1)  # (B, 1 + B + size)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
