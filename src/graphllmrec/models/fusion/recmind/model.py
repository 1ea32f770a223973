"""RecMind (arXiv:2509.06286): a language model as a prior, aligned with LightGCN and gated into its layers.

    z_L(v) = W_proj x_v                     x_v: whitened text vector of the item; of a user, the mean of z_L(i) over
                                            the train items, or W_proj of the user's own text where there is one
    z_G(v) = mean_l of LightGCN's layers of the embeddings E alone
    γ_v^l  = σ(wᵀ [E_v^l ‖ z_L(v) ‖ d̃_v] + b)       Ê^l = (1 - γ) E^l + γ z_L       E^(l+1) = D^-½ A D^-½ Ê^l   (l < L)
    h_v    = mean of Ê^0 … Ê^(L-1), E^L                                   d̃_v = log(1 + clicks) / its largest value
    phase 1, T_w epochs: alignment of z_G and z_L alone (nn/align.py)       phase 2: ranking loss + λ alignment

All vectors are (·, embedding_dim); x is (num_items, text_dim). `query="user"`, `loss="bpr"` is the paper: score(u, i)
= h_u · h_i. A user's vector is made from the history known at serving time, so it is never out of date; an unknown user
is a node with E_u = 0. `query="history"` suits next-click prediction: as in models/graph/lightgcn_history.py users have
no embedding, a query is the recency-weighted mean of its history's h_i, mapped by a learned W, and every item has a
popularity term.

Ablations are settings: `align = 0` and `warmup_epochs = 0` (no alignment), `fusion = "late"` (one gate after the layers
instead of one before each propagation), `warmup_epochs = 0` (no warm-up), `fusion = "text"`, `fusion = "graph"`.

Left open by the paper, and chosen here: γ multiplies the language side; users and items have gates of their own; γ
starts large for nodes with few clicks, and is 1 for a node without clicks. z_G, which is aligned, does not contain z_L:
otherwise the alignment loss is trivially low. An item without text gets a learned vector and a learned map of its
embedding in place of z_L. W_proj starts as the leading whitened axes, so that untrained the text branch is text-kNN. In
every step a share of the items is treated as items without clicks (`cold_dropout`, item dropout).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from graphllmrec.data.tables import Ints
from graphllmrec.errors import TextError
from graphllmrec.evaluation.strata import gate_summary
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.grokking.gate_schedule import build_gate_schedule
from graphllmrec.models.fusion.recmind.adapters import AdaptedNetwork
from graphllmrec.models.fusion.recmind.config import RecMindConfig
from graphllmrec.models.fusion.recmind.losses import Examples, Losses, build_examples
from graphllmrec.models.fusion.recmind.network import (
    Gate,
    Network,
    Projection,
    TextFeatures,
    scaled_queries,
    unclicked_items,
)
from graphllmrec.models.fusion.recmind.tables import build_tables
from graphllmrec.nn.histories import Averages, aggregate, recency_shares
from graphllmrec.nn.scoring import Scale, with_bias, with_one
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, RowExplanation, Task, TextVectors
from graphllmrec.rng import At
from graphllmrec.settings import Config
from graphllmrec.text.config import TextConfig
from graphllmrec.text.lora import AdaptedEncoder
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.device import on_cpu, resolve_device
from graphllmrec.train.loop import TrainingStage, train
from graphllmrec.train.validation import train_model, validator


class RecMind:
    """Language and graph, aligned and gated layer by layer; a vector model whose branches can be scored alone."""

    name: ClassVar[str] = "recmind"
    config_class: ClassVar[type[Config]] = RecMindConfig
    abilities = Abilities(needs_text=True, uses_user_text=True, ranks_cold_items=True)
    branches: ClassVar[tuple[str, ...]] = ("graph", "text")

    def __init__(self, config: RecMindConfig) -> None:
        self.config, self.scale = config, Scale(config.cosine, config.temperature)
        self.whitening: Whitening | None = None
        self.projection = Projection(0, config.embedding_dim, config.hidden, seed=0)
        self.stand_in = torch.empty(0)  # (embedding_dim,) z_L of a new item without text
        self.query_map: Tensor | None = None  # (embedding_dim, embedding_dim) W, with query = "history"
        self.user_gate = Gate(config.embedding_dim)
        self.tables: dict[str, Tensor] = {}  # what queries and items are made of, see tables.py
        self.adapters: dict[str, Tensor] = {}  # of the language model, where they were trained
        self.language_model: TextConfig | None = None  # which one that is, and what it is exactly
        self.identity = ""
        self.adapted: AdaptedEncoder | None = None  # both together; loaded when a new item needs it
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Align, then train both branches together, early stopping on validation. Raises TextError, Interrupted."""
        split, config, device = task.split, self.config, resolve_device(self.config.device)
        self.tables, self.decay = {}, config.decay if split.ordered else 1.0
        graph = Bipartite.of(split.train, split.num_users, split.num_items)
        features, self.whitening = TextFeatures.from_task(task, config.text_dim)
        means = Averages.of(split.train.histories(split.num_users), split.num_items, 1.0)
        net = Network(config, graph.to(device), features.to(device), means.to(device), task.seed)
        examples = build_examples(net, split, self.decay)
        losses = Losses(net, examples)
        inputs = tuple(table for table in (features.items, features.users) if table is not None)

        if config.warmup_epochs and config.gated:
            first = config.model_copy(update={"epochs": config.warmup_epochs, "min_steps": 0})
            train(TrainingStage("recmind-align", net, len(examples), losses.warm_up, None, first, inputs=inputs), task)

        def figures() -> dict[str, Any]:
            return {"gate": gate_summary(self.tables["gate"], graph.item_degree, {})} if self.tables else {}

        schedule = build_gate_schedule(
            config.gate_schedule, config.gate_schedule_strength, config.gate_schedule_half_life
        )
        train_model(
            self, task, net, len(examples), losses.joint, lambda: self._export_vectors(net),
            inputs=inputs, figures=figures, gate_schedule=schedule, move=net.shift_gates,
        )  # fmt: skip
        if config.lora.epochs:
            self._train_adapters(net, losses, examples, task)

    def _train_adapters(self, net: Network, losses: Losses, examples: Examples, task: Task) -> None:
        """Train on with the language model's adapters. Raises TextError when texts or model are not at hand."""
        config = self.config.lora
        assert task.text is not None
        assert self.whitening is not None
        if task.encoder is None:
            raise TextError(
                "adapting the language model (model.lora.epochs) needs to know which one: task.encoder is None"
            )
        self.language_model = task.encoder
        self.adapted = AdaptedEncoder(task.encoder, config, task.seed, net.device)
        self.identity = self.adapted.identity
        both = AdaptedNetwork(net, self.adapted, self.whitening, task.text)

        def loss(rows: Ints, at: At) -> Tensor:
            both.encode(examples.nodes(rows)[1], at)
            return losses.joint(rows, at)

        settings = {"epochs": config.epochs, "learning_rate": config.learning_rate, "min_steps": 0}
        stage_config = self.config.model_copy(update=settings)
        check = validator(self, task, lambda: (both.refresh(), self._export_vectors(net)))
        train(TrainingStage("recmind-lora", both, len(examples), loss, check, stage_config), task)
        both.refresh()
        self.adapters = {name: value.detach().cpu() for name, value in self.adapted.state_dict().items()}
        self._export_vectors(net)

    @torch.no_grad()
    def _export_vectors(self, net: Network) -> None:
        """What is served, on the CPU, from the trained network."""
        self.projection, self.user_gate = on_cpu(net.projection), on_cpu(net.user_gate)
        self.stand_in = net.stand_in.detach().cpu()
        self.query_map = net.query_map.detach().cpu() if self.config.query == "history" else None
        self.tables = {name: table.cpu() for name, table in build_tables(net).items()}

    def item_vectors(self) -> Tensor:
        """h, of length 1 under the cosine, and the bias as last dimension (num_items, embedding_dim + 1)."""
        return self._item_vectors("fused")

    def _item_vectors(self, branch: str) -> Tensor:
        return with_bias(self.scale.items(self.tables[branch]), self.tables["item_bias"])

    def query_vectors(self, queries: Queries) -> Tensor:
        """One vector per query with a last dimension of 1 (B, embedding_dim + 1)."""
        return self._query_vectors(queries, "fused")

    @torch.no_grad()
    def _query_vectors(self, queries: Queries, branch: str) -> Tensor:
        if self.config.query == "history":
            shares = recency_shares(queries.histories, self.decay)
            vectors = aggregate(queries.histories, self.tables[branch], shares)  # (B, embedding_dim)
        else:
            vectors = self._user_vectors(queries, branch)
        return with_one(scaled_queries(vectors, self.scale, self.query_map))

    def _user_vectors(self, queries: Queries, branch: str) -> Tensor:
        """h, z_G or z_L (B, embedding_dim) of users, from their embedding, if known, and the history of the query."""
        tables, histories, num_layers = self.tables, queries.histories, self.config.num_layers
        clicks = np.maximum(histories.lengths, 1)
        fusion = self.config.fusion if branch == "fused" else branch
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
            graph = layer / (num_layers + 1) + aggregate(histories, tables["graph_fold_in"], share)
            if fusion == "graph":
                return graph
            gate: Tensor = self.user_gate(graph, text, degree)
            return (1 - gate) * graph + gate * text
        total = torch.zeros_like(layer)
        for fold_in in torch.split(tables["fold_in"], self.config.embedding_dim, dim=1):
            gate = self.user_gate(layer, text, degree)
            total = total + (1 - gate) * layer + gate * text
            layer = aggregate(histories, fold_in, share)
        return (total + layer) / (num_layers + 1)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.item_vectors().T

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) of z_G ("graph") or z_L ("text") alone, on both sides; the item bias is in both.

        Raises ValueError for another branch.
        """
        if branch not in self.branches:
            raise ValueError(f"unknown branch {branch!r}; known: {', '.join(self.branches)}")
        return self._query_vectors(queries, branch) @ self._item_vectors(branch).T

    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,), the mean of the gated layers, and no contexts: RecMind's gate has none."""
        return self.tables["gate"], {}

    @torch.no_grad()
    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """Exact shares of one query's score: embeddings, text and popularity of the item add up to it."""
        query, tables = self.query_vectors(queries)[0, :-1], self.tables
        h, clicks = tables["fused"][item], tables["clicks"][item]
        length = float(h.norm().clamp_min(1e-12)) if self.config.cosine else 1.0
        parts = {
            "clicks": float(query @ clicks) / length,
            "text": float(query @ (h - clicks)) / length,
            "popularity": float(tables["item_bias"][item]),
        }
        return RowExplanation(sum(parts.values()), parts, float(tables["gate"][item]))

    def similar_scores(self, item: int) -> Tensor:
        """Cosine (num_items,) of h."""
        items = unit(self.tables["fused"])
        return items @ items[item]

    @torch.no_grad()
    def project_text(self, text: TextVectors) -> Tensor:
        """z_L (n, embedding_dim) of new items from their text; the learned `stand_in` without text."""
        assert self.whitening is not None, "project_text() before fit()"
        if not bool(text.present.any()):
            return self.stand_in.expand(len(text), -1).clone()
        if self.adapters:
            text = self._adapted_encoder().encode_all(text)
        found = self.projection(unit(self.whitening.apply(text)))
        return torch.where(text.present[:, None], found, self.stand_in)

    def _adapted_encoder(self) -> AdaptedEncoder:
        """The language model with the trained adapters. Raises TextError when it is not the one they belong to."""
        if self.adapted is None:
            assert self.language_model is not None
            self.adapted = AdaptedEncoder(self.language_model, self.config.lora, seed=0)
            if self.adapted.identity != self.identity:
                raise TextError(
                    f"the adapters belong to the language model {self.identity}, but {self.language_model.encoder!r} "
                    f"is now {self.adapted.identity}: fit again"
                )
            self.adapted.load_state_dict(self.adapters)
        return self.adapted

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no clicks, so γ = 1."""
        z, config = self.project_text(text), self.config
        nothing = torch.zeros_like(z)
        gate = torch.full((len(z),), 0.0 if config.fusion == "graph" else 1.0)
        new = {
            "fused": unclicked_items(z, config), "text": z, "graph": nothing, "clicks": nothing,
            "item_bias": torch.zeros(len(z)), "gate": gate,
        }  # fmt: skip
        if "graph_fold_in" in self.tables:
            new["graph_fold_in"] = nothing
        if "fold_in" in self.tables:
            new["fold_in"] = z.repeat(1, config.num_layers)
        more = copy(self)
        more.tables = self.tables | {name: torch.cat([self.tables[name], rows]) for name, rows in new.items()}
        return more

    def state(self) -> dict[str, Tensor]:
        """Served tables, and what new items and new users need: whitening, projection, gate, adapters."""
        assert self.whitening is not None, "state() before fit()"
        own = {"stand_in": self.stand_in, "decay": torch.tensor(self.decay, dtype=torch.float64)}
        if self.query_map is not None:
            own["query_map"] = self.query_map
        parts: dict[str, Mapping[str, Tensor]] = {
            "tables": self.tables,
            "whitening": self.whitening.state(),
            "projection": self.projection.state_dict(),
            "user_gate": self.user_gate.state_dict(),
        }
        if self.adapters:
            assert self.language_model is not None
            described = {"reader": self.language_model.model_dump(mode="json"), "identity": self.identity}
            own["reader"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
            parts["adapters"] = self.adapters
        return own | {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.stand_in, self.decay = state["stand_in"], float(state["decay"])
        self.query_map = state["query_map"] if self.config.query == "history" else None
        self.tables, self.whitening = under("tables", state), Whitening.restore(under("whitening", state))
        projection, config = under("projection", state), self.config
        self.projection = Projection(projection["matrix"].shape[1], config.embedding_dim, config.hidden, seed=0)
        self.projection.load_state_dict(projection)
        self.user_gate.load_state_dict(under("user_gate", state))
        self.adapters, self.adapted = under("adapters", state), None
        if self.adapters:
            described = json.loads(bytes(state["reader"].tolist()))
            self.language_model, self.identity = TextConfig.model_validate(described["reader"]), described["identity"]
