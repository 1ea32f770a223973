"""RecMind (arXiv:2509.06286): a language model as a prior, aligned with LightGCN and gated into its layers.

    z_L(v) = W_proj x_v                     x_v: whitened vector of the item's text; of a user, the mean of z_L(i) over
                                            the train items, or the user's own text where there is one
    z_G(v) = mean_l of LightGCN's layers of the embeddings E alone
    γ_v^l  = σ(wᵀ [E_v^l ‖ z_L(v) ‖ d̃_v] + b)       Ê^l = (1 - γ) E^l + γ z_L       E^(l+1) = D^-½ A D^-½ Ê^l   (l < L)
    h_v    = mean of Ê^0 … Ê^(L-1), E^L                                   d̃_v = log(1 + clicks) / its largest value
    phase 1, T_w epochs: alignment of z_G and z_L alone (nn/align.py)       phase 2: ranking loss + λ alignment

`query="user"`, `loss="bpr"` is the paper: score(u, i) = h_u · h_i. A user vector is made from the history that is known
when it is asked for, so it stays fresh, and anybody with a history can ask (E_u = 0 for somebody unknown).
`query="history"` suits next-click prediction: as in models/graph/lightgcn.py users have no embedding (E_u^0 = 0), a query is
the recency-weighted mean of its history's h_i, turned by a learned map; every item has a popularity term.

Ablations are settings: `align = 0` and `warmup_epochs = 0` (no alignment), `fusion = "late"` (one gate after the layers
instead of one before each propagation), `warmup_epochs = 0` (no warm-up), `fusion = "text"`, `fusion = "graph"`.

Left open by the paper, and chosen here: γ multiplies the language side; separate gates for users and items; a low
degree opens the gate at the start, and a node without clicks has γ = 1. z_G, which is aligned, does not contain z_L,
or both views would agree for nothing. An item without text gets a learned vector and a learned map of its embedding in
place of z_L. W_proj starts as the leading whitened axes, so that untrained the text part is text-kNN. In every step a
share of the items plays cold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.errors import TextError
from graphllmrec.evaluation.strata import gate_summary
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.graph.propagate import combine, propagate, propagate_layers
from graphllmrec.grokking.gate_schedule import GateScheduleName, build_gate_schedule
from graphllmrec.models.fusion.recmind_training import (
    Adapting,
    Examples,
    Fused,
    Gate,
    Losses,
    Net,
    Projection,
    Words,
    examples_of,
)
from graphllmrec.nn.histories import Averages, aggregate, recency_weights
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, RowExplanation, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.settings import Config
from graphllmrec.text.config import TextConfig
from graphllmrec.text.lora import AdaptedEncoder, LoRAConfig
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.loop import MonitoredConfig, TrainingStage, train
from graphllmrec.train.monitor import BranchMonitor
from graphllmrec.train.validation import branch_monitor, validator


class RecMindConfig(MonitoredConfig):
    """Settings of RecMind."""

    epochs: int = Field(30, ge=0, le=100_000, description="passes over the training data at most, after the warm-up")
    warmup_epochs: int = Field(2, ge=0, le=100_000, description="T_w: passes of alignment alone, first; 0 is none")
    batch_size: int = Field(512, ge=1, le=1_000_000, description="examples per step: clicks, or users (loss per user)")
    learning_rate: float = Field(2e-3, gt=0, le=10, description="AdamW step size")
    fusion: Literal["intra", "late", "text", "graph"] = Field(
        "intra", description="gate before each propagation, one gate after all of them, or one view alone"
    )
    query: Literal["user", "history"] = Field("history", description="who asks: a user's vector, or a history")
    loss: Literal["bpr", "softmax", "slk"] = Field("softmax", description="ranking loss")
    negatives: int = Field(
        0, ge=0, le=10_000_000, description="sampled negatives of the softmax of histories; 0 takes all items"
    )
    dim: int = Field(128, ge=1, le=8_192, description="size of the vectors of both views")
    num_layers: int = Field(2, ge=0, le=16, description="propagation layers L")
    dims: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors kept when whitening")
    hidden: int = Field(0, ge=0, le=65_536, description="width of a residual network before W_proj; 0: W_proj alone")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="share of its hidden units dropped in training")
    start: float = Field(0.1, ge=0, le=100, description="length of an embedding at the start")
    align: float = Field(0.1, ge=0, le=1_000, description="λ: weight of the alignment beside the ranking loss")
    align_temperature: float = Field(0.2, gt=0, le=100, description="τ of the alignment")
    align_size: int = Field(256, ge=1, le=1_000_000, description="users, and items, of a batch it compares, at most")
    hardness: float = Field(0.5, ge=0, le=100, description="how much more close negatives weigh in it; 0: all alike")
    queue: int = Field(1024, ge=0, le=10_000_000, description="past vectors kept as its further negatives")
    cosine: bool = Field(True, description="score by cosine / temperature instead of the dot product")
    temperature: float = Field(0.1, gt=0, le=100, description="τ of the cosine score")
    item_bias: bool = Field(False, description="clicked items have a bias beside the popularity term")
    decay: float = Field(0.7, ge=0, le=1, description="history weight per step back; ignored without an order")
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks a training history keeps")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of query dimensions dropped in training")
    cold_dropout: float = Field(0.2, ge=0, lt=1, description="items that play cold in a step")
    monitor_users: int = Field(
        250,
        ge=0,
        le=10_000_000,
        description="people by whom a detector of grokking follows each branch; 0: none does",
    )
    control: GateScheduleName = Field(
        "grokking",
        description="what may move the gates in training: events, overfitting, the late phase, nothing",
    )
    gate_schedule_strength: float = Field(2.0, ge=0, le=100, description="share of the gate per unit of lift")
    gate_schedule_half_life: float = Field(
        16.0, gt=0, le=1e6, description="of that share after an event, in distances from memorisation to the event"
    )
    lora: LoRAConfig = Field(default_factory=LoRAConfig, description="adapters of the language model")

    @model_validator(mode="after")
    def _fits_together(self) -> RecMindConfig:
        if self.loss == "slk" and self.query == "history":
            raise ValueError('loss "slk" keeps a threshold per user: it needs query = "user"')
        if self.fusion == "intra" and not self.num_layers:
            raise ValueError('fusion "intra" gates each propagation: it needs num_layers of at least 1')
        return self

    @property
    def aligned(self) -> bool:
        """Is the alignment part of the joint phase?"""
        return self.align > 0 and self.fusion in ("intra", "late")


class RecMind:
    """Language and graph, aligned and gated layer by layer; a vector model whose branches can be scored alone."""

    name: ClassVar[str] = "recmind"
    config_class: ClassVar[type[Config]] = RecMindConfig
    abilities = Abilities(needs_text=True, uses_user_text=True, ranks_cold_items=True)
    branches: ClassVar[tuple[str, ...]] = ("graph", "text")

    def __init__(self, config: RecMindConfig) -> None:
        self.config = config
        self.whitening: Whitening | None = None
        self.projection = Projection(0, config.dim, config.hidden, seed=0)
        self.stand_in = torch.empty(0)  # (dim,) z_L of a new item without text
        self.turn = torch.empty(0, 0)  # (dim, dim) where histories ask
        self.user_gate = Gate(config.dim)
        self.tables: dict[str, Tensor] = {}  # what a query is made of and meets, see _export_vectors
        self.adapters: dict[str, Tensor] = {}  # of the language model, where they were trained
        self.reader: TextConfig | None = None  # which language model that is, and below what exactly it is
        self.identity = ""
        self.adapted: AdaptedEncoder | None = None  # both together; loaded when a new item needs it
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Align, then train both views together, early stopping on validation. Raises TextError, Interrupted."""
        split, config = task.split, self.config
        self.decay = config.decay if split.ordered else 1.0
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        words = self._words(task)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, 1.0)
        net = Net(config, graph, words, means, task.seed)
        examples, inputs = (
            examples_of(net, split, self.decay),
            tuple(x for x in (words.items, words.users) if x is not None),
        )
        losses = Losses(net, examples)

        if config.warmup_epochs and config.fusion in ("intra", "late"):
            first = config.model_copy(update={"epochs": config.warmup_epochs, "min_steps": 0})
            train(TrainingStage("recmind-align", net, len(examples), losses.warm_up, None, first, inputs=inputs), task)
        check, branches = validator(self, task, lambda: self._export_vectors(net)), self._watch(net, task)
        watch = (lambda: {"gate": gate_summary(self.tables["gate"], graph.item_degree, {})}) if check else None
        about = ("recmind", net, len(examples), losses.joint, check, config)
        train(TrainingStage(*about, inputs=inputs, figures=watch, monitor=branches), task)
        if config.lora.epochs:
            self._adapt(net, losses, examples, task)
        self._export_vectors(net)

    def _adapt(self, net: Net, losses: Losses, examples: Examples, task: Task) -> None:
        """Train on with the language model's adapters. Raises TextError when texts or model are not at hand."""
        config, reader = self.config.lora, task.encoder
        assert task.text is not None
        assert self.whitening is not None
        if reader is None:
            raise TextError(
                "adapting the language model (model.lora.epochs) needs to know which one: task.encoder is None"
            )
        self.adapted, self.reader = AdaptedEncoder(reader, config, task.seed), reader
        self.identity = self.adapted.identity
        both = Adapting(net, self.adapted, self.whitening, task.text)

        def loss(rows: Ints, at: At) -> Tensor:
            both.read(examples.touched(rows)[1], at)
            return losses.joint(rows, at)

        settings = {"epochs": config.epochs, "learning_rate": config.learning_rate, "min_steps": 0}
        stage_config = self.config.model_copy(update=settings)
        check = validator(self, task, lambda: (both.refresh(), self._export_vectors(net)))
        train(TrainingStage("recmind-lora", both, len(examples), loss, check, stage_config), task)
        both.refresh()
        self.adapters = {name: value.detach() for name, value in self.adapted.state_dict().items()}

    def _watch(self, net: Net, task: Task) -> BranchMonitor | None:
        """Whoever follows both views and, where an event says so, moves the gates' prior towards one of them."""
        config = self.config
        control = build_gate_schedule(config.control, config.gate_schedule_strength, config.gate_schedule_half_life)
        return branch_monitor(self, task, config, control=control, move=net.move_gates)

    def _words(self, task: Task) -> Words:
        """Whitened texts of items and, where there are any, of users. Raises TextError without item text."""
        text, by_users, split = task.text, task.user_text, task.split
        if text is None or not bool(text.present.any()):
            raise TextError("recmind needs item text, and this data has none; without text, use lightgcn-fast")
        for found, wanted, what in ((text, split.num_items, "items"), (by_users, split.num_users, "users")):
            if found is not None and len(found) != wanted:
                raise TextError(f"{len(found):,} text vectors for {wanted:,} {what}")
        self.whitening = Whitening.fit(text, self.config.dims)
        items = unit(self.whitening.apply(text))
        if by_users is None or not bool(by_users.present.any()):
            return Words(items, text.present)
        return Words(items, text.present, unit(self.whitening.apply(by_users)), by_users.present)

    @torch.no_grad()
    def _export_vectors(self, net: Net) -> None:
        """What is served, from the trained network."""
        text, graph = net.language(), net.graph_view()
        fused = net.fused(text)
        self.projection, self.user_gate, self.stand_in = net.projection, net.user_gate, net.stand_in.detach()
        gates = torch.stack([items[:, 0] for _, items in fused.gates]) if fused.gates else None
        alone = {"text": 1.0, "graph": 0.0}.get(self.config.fusion, 1.0)
        self.tables = {
            "fused": fused.items,  # (num_items, dim) h
            "text": text[1],  # (num_items, dim) z_L
            "graph": graph[1],  # (num_items, dim) z_G
            "clicks": self._click_part(net, fused, graph[1]),  # (num_items, dim) what of h comes from embeddings
            "prior": net.prior.detach().clone(),  # (num_items,)
            "gate": torch.full((len(fused.items),), alone) if gates is None else gates.mean(0),  # (num_items,) γ
        }
        if self.config.query == "history":
            self.turn = net.turn.detach()
            return
        reach = net.graph.item_degree.clamp_min(1).sqrt()[:, None]  # √|N_i|
        weights = [1 / (self.config.num_layers + 1)] * self.config.num_layers
        below = propagate(net.graph, net.users, net.items, len(weights) - 1, weights)[1] if weights else graph[1] * 0
        self.tables |= {
            "users": net.users.detach().clone(),  # (num_users, dim) E^(0)
            "graph_fold": below / reach,  # (num_items, dim) what a click adds to z_G of a user
            "largest_degree": net.graph.user_degree.float().log1p().max(),
        }
        if fused.layers:
            self.tables["fold"] = torch.cat([items / reach for _, items in fused.layers[:-1]], dim=1)  # (·, L dim)
        if net.words.users is not None and net.words.user_has_text is not None:
            self.tables["user_text"], self.tables["user_has_text"] = text[0], net.words.user_has_text

    def _click_part(self, net: Net, fused: Fused, graph: Tensor) -> Tensor:
        """h of the items with z_L = 0 and the gates as they are: h is linear in E and z_L once the gates are known."""
        if not fused.gates:
            return graph if self.config.fusion == "graph" else torch.zeros_like(graph)
        if self.config.fusion == "late":
            return (1 - fused.gates[0][1]) * graph

        def each(layer: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
            if layer == len(fused.gates):
                return users, items
            return (1 - fused.gates[layer][0]) * users, (1 - fused.gates[layer][1]) * items

        return combine(propagate_layers(net.graph, net.users, net.items, len(fused.gates), each))[1]

    def _scored(self, items: Tensor) -> Tensor:
        return unit(items) if self.config.cosine else items

    def _asking(self, query: Tensor) -> Tensor:
        """As Net.asking."""
        query = self._scored(query)
        query = query @ self.turn if self.config.query == "history" else query
        return query / self.config.temperature if self.config.cosine else query

    def item_vectors(self) -> Tensor:
        """h, of length 1 under the cosine, and the prior as last dimension (num_items, dim + 1)."""
        return self._items_of("fused")

    def _items_of(self, view: str) -> Tensor:
        return torch.cat([self._scored(self.tables[view]), self.tables["prior"][:, None]], dim=1)

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, dim + 1)."""
        return self._queries_of(queries, "fused")

    @torch.no_grad()
    def _queries_of(self, queries: Queries, view: str) -> Tensor:
        if self.config.query == "history":
            query = aggregate(queries.histories, self.tables[view], self._history_weights(queries.histories))
        else:
            query = self._user_vectors(queries, view)
        query = self._asking(query)
        return torch.cat([query, torch.ones(len(query), 1)], dim=1)

    def _history_weights(self, histories: Histories) -> NDArray[np.float32]:
        """Recency weights (nnz,) that add up to 1 per query."""
        weights = recency_weights(histories, self.decay)
        total = np.bincount(histories.row_of_entry, weights, len(histories))
        return (weights / total[histories.row_of_entry]).astype(np.float32)

    def _user_vectors(self, queries: Queries, view: str) -> Tensor:
        """h, z_G or z_L (B, dim) of users from their embedding, where there is one, and the history they have now."""
        tables, histories, num_layers = self.tables, queries.histories, self.config.num_layers
        clicks = np.maximum(histories.lengths, 1)
        fusion = self.config.fusion if view == "fused" else view
        known = torch.from_numpy(queries.users >= 0)
        rows = torch.from_numpy(np.maximum(queries.users, 0))
        text = aggregate(histories, tables["text"], (1 / clicks)[histories.row_of_entry].astype(np.float32))
        if "user_text" in tables:
            own = known & tables["user_has_text"].index_select(0, rows)
            text = torch.where(own[:, None], tables["user_text"].index_select(0, rows), text)
        if fusion == "text":
            return text
        layer = tables["users"].index_select(0, rows) * known[:, None]  # E^(0)
        share = (1 / np.sqrt(clicks))[histories.row_of_entry].astype(np.float32)
        degree = torch.from_numpy(histories.lengths).float().log1p() / tables["largest_degree"]
        if fusion in ("graph", "late"):
            graph = layer / (num_layers + 1) + aggregate(histories, tables["graph_fold"], share)
            if fusion == "graph":
                return graph
            gate: Tensor = self.user_gate(graph, text, degree)
            return (1 - gate) * graph + gate * text
        total = torch.zeros_like(layer)
        for below in torch.split(tables["fold"], self.config.dim, dim=1):
            gate = self.user_gate(layer, text, degree)
            total = total + (1 - gate) * layer + gate * text
            layer = aggregate(histories, below, share)
        return (total + layer) / (num_layers + 1)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.item_vectors().T

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of z_G ("graph") or z_L ("text") alone, on both sides; the prior is part of both."""
        if branch not in self.branches:
            raise ValueError(f"unknown branch {branch!r}; known: {', '.join(self.branches)}")
        return self._queries_of(queries, branch) @ self._items_of(branch).T

    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,), the mean of the gated layers, and no contexts: RecMind's gate has none."""
        return self.tables["gate"], {}

    @torch.no_grad()
    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """Exact shares of one query's score: the item's embeddings, its words and its popularity add up."""
        query, tables = self.query_vectors(queries)[0, :-1], self.tables
        h, clicks = tables["fused"][item], tables["clicks"][item]
        length = float(h.norm().clamp_min(1e-12)) if self.config.cosine else 1.0
        parts = {
            "clicks": float(query @ clicks) / length,
            "text": float(query @ (h - clicks)) / length,
            "popularity": float(tables["prior"][item]),
        }
        return RowExplanation(sum(parts.values()), parts, float(tables["gate"][item]))

    def similar_scores(self, item: int) -> Tensor:
        """Cosine (num_items,) of h."""
        items = unit(self.tables["fused"])
        return items @ items[item]

    @torch.no_grad()
    def vectors_of(self, text: TextVectors) -> Tensor:
        """z_L (n, dim) of new items by their text; the learned stand-in without text."""
        assert self.whitening is not None, "vectors_of() before fit()"
        if not bool(text.present.any()):
            return self.stand_in.expand(len(text), -1).clone()
        if self.adapters:
            text = self._adapted_encoder().encode_all(text)
        found = self.projection(unit(self.whitening.apply(text)))
        return torch.where(text.present[:, None], found, self.stand_in)

    def _adapted_encoder(self) -> AdaptedEncoder:
        """The language model with the trained adapters. Raises TextError when it is not the one they belong to."""
        if self.adapted is None:
            assert self.reader is not None
            self.adapted = AdaptedEncoder(self.reader, self.config.lora, seed=0)
            if self.adapted.identity != self.identity:
                raise TextError(
                    f"the adapters belong to the language model {self.identity}, but {self.reader.encoder!r} is now "
                    f"{self.adapted.identity}: fit again"
                )
            self.adapted.load_state_dict(self.adapters)
        return self.adapted

    def add_items(self, text: TextVectors) -> None:
        """Append items by their text: no clicks, so γ = 1."""
        z, config = self.vectors_of(text), self.config
        h = z * {"graph": 0.0, "intra": config.num_layers / (config.num_layers + 1)}.get(config.fusion, 1.0)
        nothing = torch.zeros_like(z)
        alone = torch.full((len(z),), 0.0 if config.fusion == "graph" else 1.0)
        new = {"fused": h, "text": z, "graph": nothing, "clicks": nothing, "prior": torch.zeros(len(z)), "gate": alone}
        if "graph_fold" in self.tables:
            new["graph_fold"] = nothing
        if "fold" in self.tables:
            new["fold"] = z.repeat(1, config.num_layers)
        for name, rows in new.items():
            self.tables[name] = torch.cat([self.tables[name], rows])

    def state(self) -> dict[str, Tensor]:
        """Served tables, and what new items and new users need: whitening, projection, gate."""
        assert self.whitening is not None, "state() before fit()"
        own = {"stand_in": self.stand_in, "turn": self.turn, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        parts: dict[str, Mapping[str, Tensor]] = {
            "tables": self.tables,
            "whitening": self.whitening.state(),
            "projection": self.projection.state_dict(),
            "user_gate": self.user_gate.state_dict(),
        }
        if self.adapters:
            assert self.reader is not None
            said = json.dumps({"reader": self.reader.model_dump(mode="json"), "identity": self.identity})
            own["reader"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
            parts["adapters"] = self.adapters
        return own | {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.stand_in, self.turn, self.decay = state["stand_in"], state["turn"], float(state["decay"])
        self.tables, self.whitening = under("tables", state), Whitening.restore(under("whitening", state))
        projection = under("projection", state)
        self.projection = Projection(projection["matrix"].shape[1], self.config.dim, self.config.hidden, seed=0)
        self.projection.load_state_dict(projection)
        self.user_gate.load_state_dict(under("user_gate", state))
        self.adapters, self.adapted = under("adapters", state), None
        if self.adapters:
            said = json.loads(bytes(state["reader"].tolist()))
            self.reader, self.identity = TextConfig.model_validate(said["reader"]), said["identity"]
