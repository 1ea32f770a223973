"""The neighbour sampler inside PyTorch Geometric's NodeLoader and LinkLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dense import edges
from graphllmrec.graph.neighbours import Neighbourhoods
from graphllmrec.rng import rng

pytest.importorskip("torch_geometric")
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import NegativeSampling, NodeSamplerInput

from graphllmrec.graph import pyg
from graphllmrec.graph.pyg import CLICKED_BY, CLICKS, PygSampler, to_pyg

USERS, ITEMS = 30, 20
RANDOM = rng(0, "test-pyg")
TRAIN = edges(RANDOM.integers(0, USERS - 1, 200).tolist(), RANDOM.integers(0, ITEMS - 1, 200).tolist())
GRAPH = Neighbourhoods.of(TRAIN, USERS, ITEMS)  # the last user and the last item are alone
PAIRS = set(zip(TRAIN.user.tolist(), TRAIN.item.tolist(), strict=True))


def data() -> HeteroData:
    return to_pyg(GRAPH, item_x=torch.arange(ITEMS).float()[:, None])


def node_loader(sampler: PygSampler, data: HeteroData, **settings: Any) -> NodeLoader:
    return NodeLoader(data, sampler, input_nodes="item", **{"batch_size": 7, **settings})


def link_loader(sampler: PygSampler, data: HeteroData, **settings: Any) -> LinkLoader:
    label = (CLICKS, data[CLICKS].edge_index)
    return LinkLoader(data, sampler, edge_label_index=label, **{"batch_size": 16, **settings})


def pairs_of(batch: HeteroData) -> dict[Any, list[tuple[int, int]]]:
    """Global (user, item) of every sampled edge."""
    found = {}
    for edge_type in (CLICKS, CLICKED_BY):
        source, target = batch[edge_type].edge_index
        ends = (batch[edge_type[0]].n_id[source].tolist(), batch[edge_type[-1]].n_id[target].tolist())
        users, items = ends if edge_type == CLICKS else ends[::-1]
        found[edge_type] = list(zip(users, items, strict=True))
    return found


def same(first: HeteroData, second: HeteroData) -> bool:
    return all(torch.equal(first[kind].n_id, second[kind].n_id) for kind in ("user", "item")) and all(
        torch.equal(first[kind].edge_index, second[kind].edge_index) for kind in (CLICKS, CLICKED_BY)
    )


def test_the_graph_has_every_click_in_both_directions() -> None:
    whole = data()
    assert whole.validate()
    forth, back = whole[CLICKS].edge_index, whole[CLICKED_BY].edge_index
    assert set(zip(*forth.tolist(), strict=True)) == PAIRS
    assert set(zip(*back.flip(0).tolist(), strict=True)) == PAIRS


def test_batches_of_nodes_hold_real_edges_distinct_nodes_and_their_features() -> None:
    whole = data()
    seen = []
    for batch in node_loader(PygSampler(whole, (3, 2)), whole):
        size = batch["item"].batch_size
        seen += batch["item"].n_id[:size].tolist()
        assert torch.equal(batch["item"].x[:, 0].long(), batch["item"].n_id)
        for kind in ("user", "item"):
            assert len(batch[kind].n_id.unique()) == len(batch[kind].n_id) == sum(batch[kind].num_sampled_nodes)
        for edge_type, pairs in pairs_of(batch).items():
            assert set(pairs) <= PAIRS
            assert len(pairs) == len(set(pairs)) == sum(batch[edge_type].num_sampled_edges)
            source, target = whole[edge_type].edge_index[:, batch[edge_type].e_id]  # e_id is the place in the data
            assert torch.equal(source, batch[edge_type[0]].n_id[batch[edge_type].edge_index[0]])
            assert torch.equal(target, batch[edge_type[-1]].n_id[batch[edge_type].edge_index[1]])
        into = batch[CLICKS].edge_index[1]
        degree = GRAPH.of_items.degree_of(batch["item"].n_id[:size])
        assert torch.equal(into.bincount(minlength=size)[:size], degree.clamp_max(3))
    assert seen == list(range(ITEMS))


def test_a_sample_of_everything_is_the_whole_graph() -> None:
    whole = data()
    (batch,) = node_loader(PygSampler(whole, (USERS, ITEMS)), whole, batch_size=ITEMS)
    assert all(set(pairs) == PAIRS for pairs in pairs_of(batch).values())


def test_edges_in_any_order_keep_their_attributes() -> None:
    whole = data()
    for kind in (CLICKS, CLICKED_BY):
        order = torch.from_numpy(rng(0, "test-shuffle").permutation(len(PAIRS)))
        whole[kind].edge_index = whole[kind].edge_index[:, order]
        source, target = whole[kind].edge_index
        whole[kind].edge_attr = source * 1000 + target
    for batch in node_loader(PygSampler(whole, (3, 2)), whole):
        for kind in (CLICKS, CLICKED_BY):
            source, target = batch[kind].edge_index
            names = batch[kind[0]].n_id[source] * 1000 + batch[kind[-1]].n_id[target]
            assert torch.equal(batch[kind].edge_attr, names)


@pytest.mark.parametrize("negatives", [None, "binary", NegativeSampling("triplet", 2)])
def test_batches_of_links_name_their_ends(negatives: Any) -> None:
    whole = data()
    seen = []
    for batch in link_loader(PygSampler(whole, (3, 2)), whole, neg_sampling=negatives):
        users, items = batch["user"].n_id, batch["item"].n_id
        if isinstance(negatives, NegativeSampling):
            source, target = batch["user"].src_index, batch["item"].dst_pos_index
            assert batch["item"].dst_neg_index.shape == (len(source), 2)
        else:
            source, target = batch[CLICKS].edge_label_index
            if negatives:
                label = batch[CLICKS].edge_label
                assert label.mean() == 0.5
                source, target = source[label == 1], target[label == 1]
        seen += list(zip(users[source].tolist(), items[target].tolist(), strict=True))
        assert all(set(pairs) <= PAIRS for pairs in pairs_of(batch).values())
    assert sorted(seen) == sorted(PAIRS)


@pytest.mark.parametrize("make", [node_loader, link_loader])
def test_batches_are_a_function_of_seed_and_epoch(make: Any) -> None:
    whole = data()
    settings = {"neg_sampling": "binary"} if make is link_loader else {}

    def batches(seed: int, epoch: int, **more: Any) -> list[HeteroData]:
        sampler = PygSampler(whole, (2, 2), seed)
        sampler.set_epoch(epoch)
        return list(make(sampler, whole, **settings, **more))

    torch.manual_seed(1)
    first = batches(0, 0)
    before = torch.random.get_rng_state()
    torch.manual_seed(2)
    again = batches(0, 0)
    assert all(same(*both) for both in zip(first, again, strict=True))
    torch.manual_seed(1)
    list(make(PygSampler(whole, (2, 2), 5), whole, **settings))
    assert torch.equal(torch.random.get_rng_state(), before)  # the loader draws a base seed, the sampler nothing
    for seed, epoch in ((0, 1), (1, 0)):
        assert not all(same(*both) for both in zip(first, batches(seed, epoch), strict=True))


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    whole = data()
    alone = list(node_loader(PygSampler(whole, (2, 2)), whole))
    together = list(node_loader(PygSampler(whole, (2, 2)), whole, num_workers=2))
    assert all(same(*both) for both in zip(alone, together, strict=True))


def test_a_node_that_comes_twice_in_a_batch_is_refused() -> None:
    whole = data()
    loader = NodeLoader(whole, PygSampler(whole, (2,)), input_nodes=("item", torch.tensor([3, 3])), batch_size=2)
    with pytest.raises(ValueError, match="distinct input_nodes"):
        next(iter(loader))


def test_pyg_lib_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyg.pyg_typing, "WITH_PYG_LIB", False)
    with pytest.raises(ImportError, match="needs pyg-lib"):
        PygSampler(data(), (2, 2), kernel="pyg-lib")


def test_pyg_lib_draws_from_the_stream_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        edge_permutation = None

        def __init__(self, data: HeteroData, num_neighbors: list[int]) -> None:
            self.fanouts = num_neighbors

        def sample_from_nodes(self, index: Any) -> tuple[list[int], list[float]]:
            return self.fanouts, torch.rand(3).tolist()

    monkeypatch.setattr(pyg.pyg_typing, "WITH_PYG_LIB", True)
    monkeypatch.setattr(pyg, "NeighborSampler", Kernel)
    sampler = PygSampler(data(), (2, 3), kernel="pyg-lib")
    batch = NodeSamplerInput(torch.arange(4), torch.arange(4), input_type="item")
    first, again = (sampler.sample_from_nodes(batch) for _ in range(2))
    assert first == again
    assert first[0] == [2, 3]
    sampler.set_epoch(1)
    assert sampler.sample_from_nodes(batch) != first


def test_messages_reach_the_seeds() -> None:
    """Mean of a sampled neighbourhood that is complete, against the dense mean."""
    whole = to_pyg(GRAPH, user_x=torch.arange(USERS).float()[:, None])
    clicks = np.zeros((USERS, ITEMS))
    clicks[tuple(np.array(sorted(PAIRS)).T)] = 1
    for batch in node_loader(PygSampler(whole, (USERS,)), whole):
        source, target = batch[CLICKS].edge_index
        sums = torch.zeros(batch["item"].num_nodes).index_add_(0, target, batch["user"].x[source, 0])
        items = batch["item"].n_id[: batch["item"].batch_size]
        np.testing.assert_allclose(sums[: len(items)].numpy(), (np.arange(USERS) @ clicks)[items.numpy()], atol=1e-4)
