"""RecMind's trainable tensors; the equations are in models/fusion/recmind/model.py.

A pair (users, items) of tensors stands for all nodes of the graph: (num_users, dim) and (num_items, dim).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.errors import TextError
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import combine, propagate, propagate_layers, sparse_product
from graphllmrec.grokking.gate_schedule import gate_shift, shifted
from graphllmrec.models.fusion.recmind.config import RecMindConfig
from graphllmrec.nn.align import Queue
from graphllmrec.nn.histories import Averages
from graphllmrec.nn.scoring import Scale
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Task
from graphllmrec.rng import torch_rng
from graphllmrec.text.whiten import Whitening

GATE_OPEN, GATE_FALL = 2.0, 4.0  # γ = σ(2 - 4 d̃) at the start: .88 for one click, .12 for the most clicked node

Pair = tuple[Tensor, Tensor]  # of all users, of all items


@dataclass(frozen=True)
class TextFeatures:
    """Whitened text vectors of unit length, zero without text: x, which W_proj projects."""

    items: Tensor  # (num_items, text_dim)
    has_text: Tensor  # (num_items,) bool
    users: Tensor | None = None  # (num_users, text_dim) of the users' own texts; None: there are none
    user_has_text: Tensor | None = None  # (num_users,) bool

    def to(self, device: torch.device) -> TextFeatures:
        """The same on another device."""
        items, has_text = self.items.to(device), self.has_text.to(device)
        if self.users is None or self.user_has_text is None:
            return TextFeatures(items, has_text)
        return TextFeatures(items, has_text, self.users.to(device), self.user_has_text.to(device))

    @staticmethod
    def from_task(task: Task, text_dim: int) -> tuple[TextFeatures, Whitening]:
        """The features, and the whitening that made them. Raises TextError without item text."""
        text, by_users, split = task.text, task.user_text, task.split
        if text is None or not bool(text.present.any()):
            raise TextError("recmind needs item text, and this data has none; without text, use lightgcn-fast")
        for found, wanted, what in ((text, split.num_items, "items"), (by_users, split.num_users, "users")):
            if found is not None and len(found) != wanted:
                raise TextError(f"{len(found):,} text vectors for {wanted:,} {what}")
        whitening = Whitening.fit(text, text_dim)
        items = unit(whitening.apply(text))
        if by_users is None or not bool(by_users.present.any()):
            return TextFeatures(items, text.present), whitening
        return TextFeatures(items, text.present, unit(whitening.apply(by_users)), by_users.present), whitening


class Gate(nn.Module):
    """γ = σ(wᵀ[E ‖ z_L ‖ d̃] + b) of a node; 1 for a node without clicks, whose E carries no information.

    A share m of γ may be given to one branch (grokking/gate_schedule.py); m is 0 unless the training's curves set it.
    """

    shift: Tensor  # () m

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.by_graph = nn.Parameter(torch.zeros(embedding_dim))
        self.by_text = nn.Parameter(torch.zeros(embedding_dim))
        self.by_degree = nn.Parameter(torch.tensor(-GATE_FALL))
        self.bias = nn.Parameter(torch.tensor(GATE_OPEN))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, graph: Tensor, text: Tensor, degree: Tensor) -> Tensor:
        """γ (n, 1) from E (n, embedding_dim), z_L (n, embedding_dim) and d̃ (n,)."""
        raw = graph @ self.by_graph + text @ self.by_text + self.by_degree * degree + self.bias  # (n,)
        return torch.where(degree > 0, shifted(torch.sigmoid(raw), self.shift), 1.0)[:, None]


class Projection(nn.Module):
    """z_L = W_proj x, with a residual network before it where it has hidden units; without text z_L is 0."""

    def __init__(self, text_dim: int, embedding_dim: int, hidden: int, seed: int) -> None:
        super().__init__()
        random = torch_rng(seed, "recmind/projection")
        self.matrix = nn.Parameter(torch.eye(embedding_dim, text_dim))  # leading axes: untrained, z_L is whitened text
        self.inner = nn.Parameter(torch.randn(hidden, text_dim, generator=random) / text_dim**0.5 * 2)
        self.outer = nn.Parameter(torch.zeros(text_dim, hidden))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """z_L (n, embedding_dim) of unit rows (n, text_dim); mask (n, hidden): dropout of the hidden units."""
        if len(self.inner):
            hidden = F.gelu(features @ self.inner.T)  # (n, hidden)
            features = unit(features + (hidden if mask is None else hidden * mask) @ self.outer.T)
        return features @ self.matrix.T


@dataclass(frozen=True)
class Fused:
    """h of all nodes, and the layers and gates it was made of."""

    users: Tensor  # (num_users, embedding_dim)
    items: Tensor  # (num_items, embedding_dim)
    layers: list[Pair]  # Ê^(0) … Ê^(L-1), E^(L); empty where nothing is propagated
    gates: list[Pair]  # γ of users and items, (n, 1) each, one per gated layer


class Network(nn.Module):
    """The trainable tensors of both branches and of the gates."""

    users: Tensor  # (num_users, embedding_dim) E^(0); zero, and not trained, with query = "history"
    user_degree: Tensor  # (num_users,) d̃
    item_degree: Tensor  # (num_items,) d̃
    log_clicks: Tensor  # (num_items,) log(1 + clicks)
    threshold: Tensor  # (num_users,) β_u of SL@K

    def __init__(
        self, config: RecMindConfig, graph: Bipartite, features: TextFeatures, averages: Averages, seed: int
    ) -> None:
        super().__init__()
        self.config, self.graph, self.features, self.averages = config, graph, features, averages
        self.scale = Scale(config.cosine, config.temperature)
        (num_users, num_items), dim = graph.to_users.shape, config.embedding_dim
        random, size = torch_rng(seed, "recmind/start"), config.init_scale / dim**0.5
        self.items = nn.Parameter(torch.randn(num_items, dim, generator=random) * size)
        if config.query == "user":
            self.users = nn.Parameter(torch.randn(num_users, dim, generator=random) * size)
        else:
            self.register_buffer("users", torch.zeros(num_users, dim), persistent=False)
            self.query_map = nn.Parameter(torch.eye(dim))
        self.projection = Projection(features.items.shape[1], dim, config.hidden, seed)
        self.stand_in = nn.Parameter(torch.zeros(dim))  # z_L of an item without text: W_f e + this
        self.stand_in_map = nn.Parameter(torch.zeros(dim, dim))  # W_f
        self.user_gate, self.item_gate = Gate(dim), Gate(dim)
        self.popularity = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(num_items), requires_grad=config.item_bias)
        self.user_queue, self.item_queue = Queue(config.queue, dim), Queue(config.queue, dim)
        for name, degree in (("user_degree", graph.user_degree), ("item_degree", graph.item_degree)):
            logs = degree.float().log1p()
            self.register_buffer(name, logs / logs.max().clamp_min(1e-9), persistent=False)
        self.register_buffer("log_clicks", graph.item_degree.float().log1p(), persistent=False)
        if config.loss == "slk":
            self.register_buffer("threshold", torch.zeros(num_users))

    @property
    def device(self) -> torch.device:
        """Where the tensors are: what the losses compute with has to be there."""
        return self.items.device

    @property
    def item_bias(self) -> Tensor:
        """All that is added to the scores of an item (num_items,)."""
        return self.popularity * self.log_clicks + self.bias

    def text_branch(self, mask: Tensor | None = None) -> Pair:
        """z_L of all nodes; a user's is the mean of z_L of the clicked items. mask (num_items, hidden): dropout."""
        features = self.features
        items = self.projection(features.items, mask)
        if not bool(features.has_text.all()):
            known = self.items * (self.item_degree > 0)[:, None]  # an item without clicks has no trained e
            items = torch.where(features.has_text[:, None], items, known @ self.stand_in_map.T + self.stand_in)
        users = sparse_product(self.averages.matrix, self.averages.transposed, items)
        if features.users is not None and features.user_has_text is not None:
            users = torch.where(features.user_has_text[:, None], self.projection(features.users), users)
        return users, items

    def graph_branch(self) -> Pair:
        """z_G of all nodes: LightGCN of the embeddings alone."""
        return propagate(self.graph, self.users, self.items, self.config.num_layers)

    def fuse(self, text: Pair) -> Fused:
        """h of all nodes from their z_L."""
        config = self.config
        if config.fusion == "text":
            return Fused(*text, [], [])
        if config.fusion == "graph":
            return Fused(*self.graph_branch(), [], [])
        if config.fusion == "late":
            graph = self.graph_branch()
            gates = self._gates(graph, text)
            users, items = _mix(graph, text, gates)
            return Fused(users, items, [], [gates])
        gates_of_layers: list[Pair] = []

        def gated(layer: int, users: Tensor, items: Tensor) -> Pair:
            if layer == config.num_layers:  # the gate stands before each propagation; none follows
                return users, items
            gates_of_layers.append(self._gates((users, items), text))
            return _mix((users, items), text, gates_of_layers[-1])

        layers = propagate_layers(self.graph, self.users, self.items, config.num_layers, gated)
        return Fused(*combine(layers), layers, gates_of_layers)

    def _gates(self, graph: Pair, text: Pair) -> Pair:
        return (
            self.user_gate(graph[0], text[0], self.user_degree),
            self.item_gate(graph[1], text[1], self.item_degree),
        )

    @torch.no_grad()
    def shift_gates(self, shares: Mapping[str, float]) -> None:
        """Set m of both gates from the shares of the branches "graph" and "text" (grokking/gate_schedule.py)."""
        for gate in (self.user_gate, self.item_gate):
            gate.shift.fill_(gate_shift(shares, "text", "graph"))

    def query_vectors(self, vectors: Tensor) -> Tensor:
        """Queries (B, embedding_dim) scaled so that their product with `item_vectors`, plus the bias, is the score."""
        return scaled_queries(vectors, self.scale, self.query_map if self.config.query == "history" else None)

    def item_vectors(self, vectors: Tensor) -> Tensor:
        """Item vectors (n, embedding_dim), of length 1 under the cosine."""
        return self.scale.items(vectors)


def scaled_queries(vectors: Tensor, scale: Scale, query_map: Tensor | None) -> Tensor:
    """Queries (B, embedding_dim), mapped by W (embedding_dim, embedding_dim), over τ under the cosine."""
    if query_map is None:
        return scale.queries(vectors)
    mapped = scale.items(vectors) @ query_map
    return mapped / scale.temperature if scale.cosine else mapped


def unclicked_items(text: Tensor, config: RecMindConfig) -> Tensor:
    """h (n, embedding_dim) of items without clicks from their z_L (n, embedding_dim): γ = 1 in every gated layer."""
    return text * {"graph": 0.0, "intra": config.num_layers / (config.num_layers + 1)}.get(config.fusion, 1.0)


def _mix(graph: Pair, text: Pair, gates: Pair) -> Pair:
    """(1 - γ) E + γ z_L of users and items."""
    users, items = ((1 - gate) * g + gate * t for g, t, gate in zip(graph, text, gates, strict=True))
    return users, items
