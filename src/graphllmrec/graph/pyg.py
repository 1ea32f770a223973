"""The neighbour sampler inside PyTorch Geometric's loaders, whose own needs compiled add-ons that are not on PyPI.

    data = to_pyg(Neighbourhoods.of(split.train, split.num_users, split.num_items), item_x=features)
    sampler = PygSampler(data, fanouts=(10, 10), seed=0)
    loader = NodeLoader(data, sampler, input_nodes="item", batch_size=256, shuffle=True)
    loader = LinkLoader(data, sampler, edge_label_index=(CLICKS, data[CLICKS].edge_index), neg_sampling="binary")
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader: ...

As PyG's loaders want it, a batch is a subgraph of distinct nodes: a node that is found again is not sampled again, and
seeds come first. Importing this module needs torch-geometric; nothing else in the package does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric import typing as pyg_typing
from torch_geometric.data import HeteroData
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, NeighborSampler
from torch_geometric.sampler.neighbor_sampler import edge_sample

from graphllmrec.graph.neighbours import Hop, Neighbourhoods, Neighbours, sample
from graphllmrec.rng import stream_seed, torch_rng

EdgeType = tuple[str, str, str]
CLICKS: EdgeType = ("user", "clicks", "item")
CLICKED_BY: EdgeType = ("item", "clicked_by", "user")


def to_pyg(graph: Neighbourhoods, item_x: Tensor | None = None, user_x: Tensor | None = None) -> HeteroData:
    """The user–item graph as HeteroData with edge types CLICKS and CLICKED_BY; features (n, d) where given."""
    data = HeteroData()
    for name, side, features in (("user", graph.of_users, user_x), ("item", graph.of_items, item_x)):
        data[name].num_nodes = len(side)
        if features is not None:
            data[name].x = features
    for edge_type, side in ((CLICKS, graph.of_items), (CLICKED_BY, graph.of_users)):  # messages go to the last type
        data[edge_type].edge_index = torch.stack([side.nodes.long(), torch.repeat_interleave(side.degree)])
    return data


class PygSampler(BaseSampler):  # type: ignore[misc] # torch-geometric has no types
    """`graph.sample` as a BaseSampler for NodeLoader and LinkLoader over HeteroData; without time or edge weights.

    What a batch draws is a function of (seed, epoch, the examples in it). These examples are what a step is in a loader
    whose worker processes share no counter; so batches are the same with any number of workers. Call `set_epoch` before
    each epoch (and leave `persistent_workers` off), or every epoch samples alike.

    kernel="pyg-lib" samples with pyg-lib, which must then be installed; other draws, the same guarantees.
    """

    def __init__(
        self, data: HeteroData, fanouts: Sequence[int], seed: int = 0, kernel: Literal["torch", "pyg-lib"] = "torch"
    ) -> None:
        """One fanout per hop, for every edge type. Raises ImportError when pyg-lib is wanted and not there."""
        self.fanouts, self.seed, self.epoch = tuple(fanouts), seed, 0
        self.num_nodes: dict[str, int] = {name: data[name].num_nodes for name in data.node_types}
        self.graphs: dict[EdgeType, Neighbours] = {}
        self.order: dict[EdgeType, Tensor] = {}  # place in `graphs` -> place in the data's edge_index
        self.compiled: Any = None
        if kernel == "pyg-lib":
            if not pyg_typing.WITH_PYG_LIB:
                raise ImportError('kernel="pyg-lib" needs pyg-lib; install it, or use kernel="torch"')
            self.compiled = NeighborSampler(data, num_neighbors=list(fanouts))
            return
        for edge_type in data.edge_types:
            source, target = data[edge_type].edge_index
            self.order[edge_type] = target.argsort(stable=True)
            indptr = target.bincount(minlength=self.num_nodes[edge_type[-1]]).cumsum(0)
            nodes = source.index_select(0, self.order[edge_type])
            self.graphs[edge_type] = Neighbours(torch.nn.functional.pad(indptr, (1, 0)), nodes)

    def set_epoch(self, epoch: int) -> None:
        """Draw other neighbours than in other epochs."""
        self.epoch = epoch

    @property
    def edge_permutation(self) -> Any:
        """Where the edges of the samples stand in the data, per edge type."""
        return self.order if self.compiled is None else self.compiled.edge_permutation

    def sample_from_nodes(self, index: Any, **_: Any) -> HeteroSamplerOutput:
        """The neighbourhood of a batch of distinct nodes (NodeSamplerInput). Raises ValueError when one comes twice."""
        with self._stream(index.input_id) as random:
            if self.compiled is not None:
                return self.compiled.sample_from_nodes(index)
            if len(torch.unique(index.node)) != len(index.node):
                raise ValueError("a node comes twice in a batch; give the loader distinct input_nodes")
            out = self._walk({index.input_type: index.node}, random)
        out.metadata = (index.input_id, index.time)
        return out

    def sample_from_edges(self, index: Any, neg_sampling: Any = None) -> HeteroSamplerOutput:
        """The neighbourhood of both ends of a batch of edges (EdgeSamplerInput), and of negative ones if wanted."""
        with self._stream(index.input_id) as random:
            if self.compiled is not None:
                return self.compiled.sample_from_edges(index, neg_sampling)

            def walk(seeds: dict[str, Tensor], _: Any) -> HeteroSamplerOutput:
                return self._walk(seeds, random)

            return edge_sample(index, walk, self.num_nodes, False, None, neg_sampling)

    @contextmanager
    def _stream(self, input_id: Tensor) -> Iterator[torch.Generator]:
        """The stream of a batch. PyG draws negatives from torch's global one: set here too, and put back afterwards."""
        examples = hashlib.sha256(input_id.numpy().tobytes()).hexdigest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, f"pyg/{examples}/negatives", self.epoch))
            yield torch_rng(self.seed, f"pyg/{examples}/neighbours", self.epoch)

    def _walk(self, seeds: dict[str, Tensor], random: torch.Generator) -> HeteroSamplerOutput:
        """All hops from these distinct nodes per type; local ids in the order in which nodes are found."""
        found = _Found({name: seeds.get(name, torch.empty(0, dtype=torch.int64)) for name in self.num_nodes})
        edges: dict[EdgeType, list[tuple[Tensor, Tensor, Tensor]]] = {edge_type: [] for edge_type in self.graphs}
        for fanout in self.fanouts:
            hops: dict[EdgeType, tuple[Hop, Tensor]] = {}
            for edge_type, graph in self.graphs.items():
                newest, first = found.newest(edge_type[-1])
                hop = sample(graph, newest, fanout, random)
                hops[edge_type] = (hop, first + torch.repeat_interleave(hop.counts))
            rows = found.add([(edge_type[0], hop.nodes) for edge_type, (hop, _) in hops.items()])
            for (edge_type, (hop, column)), row in zip(hops.items(), rows, strict=True):
                edges[edge_type].append((row, column, hop.edges))
        parts = {edge_type: [torch.cat(part) for part in zip(*own, strict=True)] for edge_type, own in edges.items()}
        return HeteroSamplerOutput(
            node=found.nodes,
            row={edge_type: part[0] for edge_type, part in parts.items()},
            col={edge_type: part[1] for edge_type, part in parts.items()},
            edge={edge_type: part[2] for edge_type, part in parts.items()},
            num_sampled_nodes=found.sizes,
            num_sampled_edges={edge_type: [len(row) for row, _, _ in own] for edge_type, own in edges.items()},
        )


class _Found:
    """The distinct nodes of a sample per type, in the order in which they were found."""

    def __init__(self, seeds: dict[str, Tensor]) -> None:
        self.nodes = dict(seeds)
        self.sizes = {name: [len(nodes)] for name, nodes in seeds.items()}  # found per hop

    def newest(self, name: str) -> tuple[Tensor, int]:
        """Nodes of a type that the last hop has found, and the local id of the first of them."""
        first = len(self.nodes[name]) - self.sizes[name][-1]
        return self.nodes[name][first:], first

    def add(self, reached: list[tuple[str, Tensor]]) -> list[Tensor]:
        """Take in what a hop has reached, as (type, nodes); returns their local ids, same shapes."""
        local: list[Tensor] = [torch.empty(0)] * len(reached)
        for name, known in self.nodes.items():
            mine = [place for place, (kind, _) in enumerate(reached) if kind == name]
            everything = torch.cat([known, *(reached[place][1] for place in mine)])
            values, inverse = torch.unique(everything, return_inverse=True)
            place_of = torch.arange(len(everything))
            first = torch.full((len(values),), len(everything)).scatter_reduce_(0, inverse, place_of, "amin")
            order = first.argsort()
            self.nodes[name] = values.index_select(0, order)
            self.sizes[name].append(len(values) - len(known))
            ids = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).index_select(0, inverse)
            sizes = [len(known), *(len(reached[place][1]) for place in mine)]
            for place, part in zip(mine, torch.split(ids, sizes)[1:], strict=True):
                local[place] = part
        return local
