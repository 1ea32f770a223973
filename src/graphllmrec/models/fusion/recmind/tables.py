"""What RecMind serves: tables of vectors, made from the trained network, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from graphllmrec.graph.propagate import combine, propagate_layers
from graphllmrec.models.fusion.recmind.network import Fused, Network, Pair
from graphllmrec.nn.fold_in import fold_in_table


@torch.no_grad()
def build_tables(net: Network) -> dict[str, Tensor]:
    """The served tables by name; those of user queries only with query = "user"."""
    config = net.config
    text, graph = net.text_branch(), net.graph_branch()
    fused = net.fuse(text)
    gates = torch.stack([items[:, 0] for _, items in fused.gates]) if fused.gates else None  # (layers, num_items)
    alone = {"text": 1.0, "graph": 0.0}.get(config.fusion, 1.0)
    tables = {
        "fused": fused.items,  # (num_items, embedding_dim) h
        "text": text[1],  # (num_items, embedding_dim) z_L
        "graph": graph[1],  # (num_items, embedding_dim) z_G
        "clicks": _click_part(net, fused, graph[1]),  # (num_items, embedding_dim) what of h comes from embeddings
        "item_bias": net.item_bias.detach().clone(),  # (num_items,)
        "gate": torch.full((len(fused.items),), alone) if gates is None else gates.mean(0),  # (num_items,) γ
    }
    if config.query == "history":
        return tables
    layer_weights = [1 / (config.num_layers + 1)] * (config.num_layers + 1)
    has_layers = config.num_layers > 0
    tables |= {
        "users": net.users.detach().clone(),  # (num_users, embedding_dim) E^(0)
        "graph_fold_in": fold_in_table(net.graph, net.users, net.items, layer_weights) if has_layers else graph[1] * 0,
        "largest_degree": net.graph.user_degree.float().log1p().max(),  # ()
    }
    if fused.layers:  # (num_items, L · embedding_dim) what a click adds to layers 1 … L of a user
        reach = net.graph.item_degree.clamp_min(1).sqrt()[:, None]  # (num_items, 1) √|N_i|
        tables["fold_in"] = torch.cat([items / reach for _, items in fused.layers[:-1]], dim=1)
    if net.features.users is not None and net.features.user_has_text is not None:
        tables["user_text"], tables["user_has_text"] = text[0], net.features.user_has_text
    return tables


def _click_part(net: Network, fused: Fused, graph: Tensor) -> Tensor:
    """h of the items with z_L = 0 and the gates as they are: h is linear in E and z_L once the gates are known."""
    if not fused.gates:
        return graph if net.config.fusion == "graph" else torch.zeros_like(graph)
    if net.config.fusion == "late":
        return (1 - fused.gates[0][1]) * graph

    def without_text(layer: int, users: Tensor, items: Tensor) -> Pair:
        if layer == len(fused.gates):
            return users, items
        return (1 - fused.gates[layer][0]) * users, (1 - fused.gates[layer][1]) * items

    return combine(propagate_layers(net.graph, net.users, net.items, len(fused.gates), without_text))[1]
