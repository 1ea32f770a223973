"""Neighbour sampling: a few neighbours per node instead of all, so that a training step costs the same on any graph.

GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216, algorithm 2) draws, for every node of a batch, a fixed number of
neighbours, for each of these again, and so on. Here

- a draw is uniform over the subsets of min(fanout, degree) neighbours, without replacement: up to the fanout a
  neighbourhood is complete and its mean exact, above it the mean is unbiased and varies less than with replacement. The
  subsets come from Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance"), all nodes of a hop at once; its
  cost grows with fanout², which is nothing for tens of neighbours and too much for hundreds;
- a hop is a ragged list, not a set: a node that is reached twice stands there twice, each time with neighbours of its
  own. Making nodes unique costs a sort of the hop, saves nothing where features are gathered anyway, and ties the
  draws of different seeds together. No slot is padding, so nodes of few neighbours cost little;
- random numbers come from the generator of `draws(seed, purpose, epoch, step)`, drawn on the CPU: the same neighbours
  on every device, whatever ran before.

`propagate_sampled` is LightGCN's layer mean on such a tree, weighted so that its expectation is the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.tables import Interactions
from graphllmrec.rng import torch_rng

_BITS = 31  # of a random number; a neighbour's probability is off by at most degree / 2**31 of itself


@dataclass(frozen=True)
class Neighbours:
    """Who is next to whom, one direction of a graph: node v's neighbours are nodes[indptr[v]:indptr[v + 1]]."""

    indptr: Tensor  # (n + 1,) int64
    nodes: Tensor  # (num_edges,) int32 or int64

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def degree(self) -> Tensor:
        """Number of neighbours (n,) int64."""
        return self.indptr.diff()

    def degree_of(self, nodes: Tensor) -> Tensor:
        """Number of neighbours of these nodes (m,) int64."""
        return self.indptr.index_select(0, nodes + 1) - self.indptr.index_select(0, nodes)

    @staticmethod
    def of(matrix: sp.csr_array) -> Neighbours:
        """The rows of a SciPy CSR matrix; columns as int32 where they fit. Values are not looked at."""
        dtype = np.int32 if matrix.shape[1] < 2**31 else np.int64
        return Neighbours(
            torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(dtype))
        )

    def to(self, device: torch.device | str) -> Neighbours:
        """The same on another device."""
        return Neighbours(self.indptr.to(device), self.nodes.to(device))


@dataclass(frozen=True)
class Neighbourhoods:
    """Both directions of the user–item graph."""

    of_users: Neighbours  # items of every user
    of_items: Neighbours  # users of every item

    @staticmethod
    def of(train: Interactions, num_users: int, num_items: int) -> Neighbourhoods:
        """The graph of the training interactions; a repeated pair is one edge."""
        ones = np.ones(len(train), dtype=np.int8)
        clicks = sp.csr_array(sp.coo_array((ones, (train.user, train.item)), shape=(num_users, num_items)))
        clicks.sum_duplicates()
        return Neighbourhoods(Neighbours.of(clicks), Neighbours.of(sp.csr_array(clicks.T)))

    def towards(self, side: Literal["users", "items"], num_hops: int) -> list[Neighbours]:
        """The directions that a walk of `num_hops` from users or items takes: alternating."""
        both = (self.of_users, self.of_items) if side == "users" else (self.of_items, self.of_users)
        return [both[hop % 2] for hop in range(num_hops)]

    def to(self, device: torch.device | str) -> Neighbourhoods:
        """The same on another device."""
        return Neighbourhoods(self.of_users.to(device), self.of_items.to(device))


@dataclass(frozen=True)
class Hop:
    """Sampled neighbours of n nodes: those of node v are nodes[offsets[v]:offsets[v + 1]], at nnz places `edges`."""

    nodes: Tensor  # (m,) int64
    offsets: Tensor  # (n + 1,) int64
    edges: Tensor  # (m,) int64: place in Neighbours.nodes

    @property
    def counts(self) -> Tensor:
        """Sampled neighbours per node (n,) int64."""
        return self.offsets.diff()


def draws(seed: int, purpose: str, epoch: int, step: int) -> torch.Generator:
    """The stream that a step samples its neighbours from: a function of these four alone."""
    return torch_rng(seed, f"{purpose}/neighbours", epoch, step)


def sample(graph: Neighbours, seeds: Tensor, fanout: int, random: torch.Generator, avoid: Tensor | None = None) -> Hop:
    """min(fanout, degree) different neighbours of every seed, every subset of that size as likely as any other.

    seeds (n,) int64, repeats allowed: each is drawn for anew. `avoid` (n,) int64 is one neighbour per seed that is left
    out after the draw (-1: none): the edge that a training example is about. `random` is a CPU generator. Neighbours of
    a seed come in no particular order. Raises ValueError for a fanout below 1.
    """
    if fanout < 1:
        raise ValueError(f"fanout must be at least 1, found {fanout}")
    degree = graph.degree_of(seeds)  # (n,)
    edges = (graph.indptr.index_select(0, seeds) + _subsets(degree, fanout, random)).T  # (n, fanout)
    counts = degree.clamp_max(fanout)
    wanted = torch.arange(fanout, device=degree.device) < degree[:, None]
    edges = edges.reshape(-1) if bool((degree >= fanout).all()) else edges[wanted]
    nodes = graph.nodes.index_select(0, edges).long()
    if avoid is not None:
        other = nodes != avoid.repeat_interleave(counts)
        left_out = torch.zeros_like(counts).index_add_(0, _owners(counts), (~other).long())
        nodes, edges, counts = nodes[other], edges[other], counts - left_out
    return Hop(nodes, _offsets(counts), edges)


def sample_tree(
    graphs: Sequence[Neighbours], seeds: Tensor, fanouts: Sequence[int], random: torch.Generator
) -> list[Hop]:
    """One hop after the other: hop l holds the neighbours of hop l - 1's nodes, in their order."""
    hops: list[Hop] = []
    for graph, fanout in zip(graphs, fanouts, strict=True):
        hops.append(sample(graph, hops[-1].nodes if hops else seeds, fanout, random))
    return hops


def propagate_sampled(
    graph: Neighbourhoods,
    users: Tensor,
    items: Tensor,
    seeds: Tensor,
    side: Literal["users", "items"],
    fanouts: Sequence[int],
    random: torch.Generator,
) -> Tensor:
    """Unbiased estimate of LightGCN's layer mean at a few nodes, for graphs too large to propagate over in every step.

    users (num_users, d), items (num_items, d): the layer-0 embeddings; seeds (B,) rows of one `side`; one fanout per
    layer. Returns (B, d) whose expectation over draws is `propagate`'s result at these rows, and so are the gradients'.

    Layer l at v is a sum over the walks v, w_1 … w_l of the product of 1 / sqrt(|N_a| |N_b|) over their edges (He et
    al. 2020, arXiv:2002.02126, eq. 3). Of |N_a| edges at a, m are drawn, each stands for |N_a| / m of them:

        weight of a drawn walk = Π_edges (|N_a| / m) / sqrt(|N_a| |N_b|) = Π_edges sqrt(|N_a| / |N_b|) / m

    Its expectation is exact because the draws at a node do not depend on how it was reached.
    """
    tables = (users, items) if side == "users" else (items, users)
    graphs = graph.towards(side, len(fanouts) + 1)
    total = tables[0].index_select(0, seeds)  # (B, d)
    walks = torch.arange(len(seeds) + 1, device=seeds.device)  # (B + 1,): where each seed's walks begin
    weight = torch.ones(len(seeds), dtype=total.dtype, device=total.device)
    degree = graphs[0].degree_of(seeds)
    for layer, hop in enumerate(sample_tree(graphs[:-1], seeds, fanouts, random), start=1):
        owner = _owners(hop.counts)
        scale = weight * degree.to(weight.dtype).sqrt() / hop.counts.clamp_min(1)
        degree = graphs[layer].degree_of(hop.nodes)  # of the nodes reached; at least 1
        weight = scale.index_select(0, owner) / degree.to(weight.dtype).sqrt()
        walks = hop.offsets.index_select(0, walks)
        total = total + F.embedding_bag(
            hop.nodes, tables[layer % 2], walks, mode="sum", per_sample_weights=weight, include_last_offset=True
        )  # (B, d)
    return total / (len(fanouts) + 1)


def _subsets(degree: Tensor, fanout: int, random: torch.Generator) -> Tensor:
    """Floyd: columns (fanout, n) of different places below degree (n,), or 0 … fanout - 1 where there are not more."""
    drawn = torch.randint(0, 2**_BITS, (fanout, len(degree)), generator=random).to(degree.device)
    chosen = torch.empty_like(drawn)
    for step in range(fanout):
        last = degree - fanout + step  # the newest place that may be chosen; taken when the drawn one is there already
        place = (drawn[step] * (last + 1)) >> _BITS
        if step:
            place = torch.where((chosen[:step] == place).any(0), last, place)
        chosen[step] = place
    return torch.where(degree <= fanout, torch.arange(fanout, device=degree.device)[:, None], chosen)


def _offsets(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


def _owners(counts: Tensor) -> Tensor:
    """Row number of every entry of a ragged list."""
    return torch.repeat_interleave(counts)
