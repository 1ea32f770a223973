"""GraphLLMRec: what a stack of graph and text experts knows, in one vector per item and one per query.

First a stack is fitted (models/fusion/hybrid.py): experts of clicks, of the click graph and of text, fused by a context
gate. Then vectors learn to rank as it does:

    v_i = (g_i + W x_i) / τ             x_i: whitened text of length 1; g_i: embedding of a clicked item, else 0
    s_i = e_i + U x_i                   the same of item i within a history
    q   = unit( Σ_k a_k s_k )           over the history; a_k: a learned weight per step back, first decay^(steps back)
    score(q, i) = q · v_i + b_i         b_i: bias; one for all items without clicks

    loss = mean KL( softmax(T(q, ·) / t) ‖ softmax(score(q, ·)) )        over all items that the history does not hold

T: scores of the stack; t: the temperature at which they are the most likely for the validation targets. Queries are
histories as they were at some time, the first clicks of a training user, 1 to all of them; and how they might have gone
on: `drawn` times, one more item drawn from softmax(T / t), because what is asked later are histories with an item that
the user had not clicked in training. The stack has seen the training clicks; but what is taught is its whole ranking,
not which click came next. So exact item-to-item counts, which vectors trained on next clicks either miss or memorise,
become vectors as well (docs/log.md).

New items: at every step the stack also ranks `twins`, items with the texts of others and without clicks
(`with_items`), and W, U and the bias of unclicked items learn from these. So a new item is placed as the stack places
it, from its text alone.

Source: the GraphLLMRec design (one vector per item from both branches, a gate per context); teaching by KL: Hinton et
al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, eq. 2. Equations are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.data.tables import Histories, Ints
from graphllmrec.models.fusion.hybrid import Stack, StackConfig
from graphllmrec.nn.examples import Beginnings
from graphllmrec.nn.gate import CONTEXTS
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, RowExplanation, Task, TextVectors
from graphllmrec.rng import At, rng, torch_rng
from graphllmrec.settings import Condition, Config
from graphllmrec.text.whiten import Whitening, require_text
from graphllmrec.train.device import on_cpu, resolve_device, to_device
from graphllmrec.train.loop import MonitoredConfig
from graphllmrec.train.validation import settle, train_model, tuning_users

TEMPERATURES = tuple(2.0 ** (step / 2) for step in range(-4, 5))  # 1/4 to 4: a sharper one teaches the top alone
UNTUNED_TEMPERATURE = 0.25  # for data without a validation part to tune on
_HIDDEN = -1e9  # score of items that the history holds: they are not recommended, so they are not taught
_BLOCK = 256  # queries whose scores the stack computes at a time


class GraphLLMRecConfig(MonitoredConfig, StackConfig):
    """Settings of GraphLLMRec: those of the stack (fusion, graph, text, settings, gate), and of the vectors."""

    epochs: int = Field(1, ge=0, le=100_000, description="passes over the users at most")
    min_steps: int = Field(400, ge=0, le=1_000_000_000, description="more epochs where `epochs` have fewer steps")
    patience: int = Field(100, ge=1, le=100_000, description="stop after so many validations without a better one")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="users per step, each with 1 + `drawn` histories")
    drawn: int = Field(3, ge=0, le=1_000, description="items that a history goes on with, drawn by the stack's scores")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="course of the step size")
    embedding_dim: int = Field(128, ge=1, le=8_192, description="size of item and query vectors")
    text_dim: int = Field(200, ge=1, le=8_192, description="principal axes of the text vectors that are kept")
    temperature: float = Field(0.1, gt=0, le=100, description="what the cosine is divided by, τ")
    decay: float = Field(
        0.6, gt=0, le=1, description="weight per step back that training starts from; ignored without an order"
    )
    max_history: int = Field(50, ge=1, le=100_000, description="newest clicks of a history that are read")
    twins: int = Field(1000, ge=0, le=1_000_000, description="unclicked items with the texts of others in training")

    def as_stack(self) -> StackConfig:
        """Settings of the stack that is taught from."""
        return StackConfig(
            fusion=self.fusion, graph=self.graph, text=self.text, settings=self.settings, gate=self.gate,
            dense_items=self.dense_items,
        )  # fmt: skip

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield from StackConfig.conditions(self)
        yield from MonitoredConfig.conditions(self)


class GraphLLMRec:
    """One vector per item from graph and text; the stack that taught them is not needed to serve them."""

    name: ClassVar[str] = "graphllmrec"
    config_class: ClassVar[type[Config]] = GraphLLMRecConfig
    abilities = Abilities(needs_text=True, ranks_cold_items=True)
    branches: ClassVar[tuple[str, ...]] = ("graph", "text")

    def __init__(self, config: GraphLLMRecConfig) -> None:
        self.config = config
        self.abilities = replace(GraphLLMRec.abilities, uses_weights=Stack(config.as_stack()).abilities.uses_weights)
        self.whitening: Whitening | None = None
        self.net = _Net(config, 1, 0, seed=0)
        self.graph = torch.empty(0, 0)  # (num_items, embedding_dim) g / τ
        self.text = torch.empty(0, 0)  # (num_items, embedding_dim) W x / τ
        self.sources = torch.empty(0, 0)  # (num_items, embedding_dim) s
        self.bias = torch.empty(0)  # (num_items,) b
        self.vectors = torch.empty(0, 0)  # (num_items, embedding_dim + 1) v and b side by side
        self.gate = torch.empty(0)  # (num_items,) γ of the stack: the weight of its text experts
        self.contexts = torch.empty(0, len(CONTEXTS))  # (num_items, 5) memberships
        self.new_gate = torch.tensor(1.0)  # γ of an item that is added: the mean of what the stack gives such items

    def fit(self, task: Task) -> None:
        """Fit the stack, then vectors that rank as it does. Raises TextError without text, Interrupted."""
        text, config, device = require_text(task, self.name), self.config, resolve_device(self.config.device)
        stack = Stack(config.as_stack())
        stack.fit(task)
        gate, contexts = stack.gate_values()
        self.gate, self.contexts = gate, torch.stack([contexts[name] for name in CONTEXTS], dim=1)
        self.new_gate = stack.with_items(text).gate_values()[0][len(text) :].mean()
        self.whitening = Whitening.fit(text, config.text_dim)
        features, clicked = unit(self.whitening.apply(text)), torch.from_numpy(task.split.item_degree() > 0)
        temperature = settle(task, "graphllmrec/temperature", lambda: _calibrated(stack, task), UNTUNED_TEMPERATURE)
        net = _Net(config, features.shape[1], len(features), task.seed, ordered=task.split.ordered)
        inputs = (features.to(device), clicked.to(device))
        loss = _Loss(config, net, *inputs, _Teacher(stack, text, task, temperature, config.twins), task)
        export = partial(self._export_vectors, net, features, clicked)
        taught = (stack.sum.weights, *stack.gate.state_dict().values())
        train_model(self, task, net, len(loss), loss, export, inputs=(*inputs, *taught), latest=True)

    @torch.no_grad()
    def _export_vectors(self, net: _Net, features: Tensor, clicked: Tensor) -> None:
        """The vectors to serve, and the maps that new items need, on the CPU."""
        self.net = net = on_cpu(net)
        self.graph = net.items * clicked[:, None] / self.config.temperature
        self.text = features @ net.to_item.T / self.config.temperature
        self.sources = net.sources * clicked[:, None] + features @ net.to_source.T
        self.bias = torch.where(clicked, net.bias, net.new_bias)
        self._join()

    def _join(self) -> None:
        self.vectors = torch.cat([self.graph + self.text, self.bias[:, None]], dim=1)

    def item_vectors(self) -> Tensor:
        """Vector and bias of every item (num_items, embedding_dim + 1)."""
        return self.vectors

    @torch.no_grad()
    def query_vectors(self, queries: Queries) -> Tensor:
        """q and a one for the bias (B, embedding_dim + 1); zeros for a history of which nothing is known."""
        query = self.net.query(queries.histories, self.sources)
        return torch.cat([query, query.any(1, keepdim=True).float()], dim=1)

    def scores(self, queries: Queries) -> Tensor:
        """Dot products (B, num_items)."""
        return self.query_vectors(queries) @ self.vectors.T

    @torch.no_grad()
    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """Scores (B, num_items) by embeddings and bias ("graph"), or by the texts of the items ("text")."""
        if branch not in self.branches:
            raise ValueError(f"unknown branch {branch!r}; known: {', '.join(self.branches)}")
        query = self.query_vectors(queries)
        if branch == "text":
            return query[:, :-1] @ self.text.T
        return query @ torch.cat([self.graph, self.bias[:, None]], dim=1).T

    def gate_values(self) -> tuple[Tensor, dict[str, Tensor]]:
        """γ (num_items,) of the stack, and the membership (num_items,) in every context."""
        return self.gate, {name: self.contexts[:, place] for place, name in enumerate(CONTEXTS)}

    @torch.no_grad()
    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """Exact shares of the first query's score: embedding, text, bias; what each click of the history adds."""
        history = queries.histories.take(np.zeros(1, dtype=np.int64))
        query = self.net.query(history, self.sources)[0]
        parts = {"clicks": self.graph[item], "text": self.text[item]}
        shares = {name: float(query @ part) for name, part in parts.items()} | {"prior": float(self.bias[item])}
        names = {name: float(values[item]) for name, values in self.gate_values()[1].items()}
        items, added = self.net.attribute(history, self.sources, self.graph[item] + self.text[item])
        order = torch.argsort(-added, stable=True).tolist()
        clicks = [(int(items[place]), float(added[place])) for place in order]
        return RowExplanation(sum(shares.values()), shares, float(self.gate[item]), names, clicks)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text: no clicks, no embedding."""
        assert self.whitening is not None, "with_items() before fit()"
        features, more, new = unit(self.whitening.apply(text)), copy(self), len(text)
        contexts = torch.zeros(new, len(CONTEXTS))
        contexts[:, CONTEXTS.index("new")] = 1.0
        with torch.no_grad():
            more.graph = torch.cat([self.graph, torch.zeros(new, self.graph.shape[1])])
            more.text = torch.cat([self.text, features @ self.net.to_item.T / self.config.temperature])
            more.sources = torch.cat([self.sources, features @ self.net.to_source.T])
            more.bias = torch.cat([self.bias, self.net.new_bias.expand(new)])
        more.gate = torch.cat([self.gate, self.new_gate.expand(new)])
        more.contexts = torch.cat([self.contexts, contexts])
        more._join()
        return more

    def state(self) -> dict[str, Tensor]:
        """Served vectors, gate, and the maps and whitening that new items need; without embeddings."""
        assert self.whitening is not None, "state() before fit()"
        own = {"graph": self.graph, "text": self.text, "sources": self.sources, "bias": self.bias}
        own |= {"gate": self.gate, "contexts": self.contexts, "new_gate": self.new_gate}
        kept = {name: value for name, value in self.net.state_dict().items() if name not in _TABLES}
        return own | prefixed("net", kept) | prefixed("whitening", self.whitening.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.graph, self.text, self.sources = state["graph"], state["text"], state["sources"]
        self.bias, self.new_gate = state["bias"], state["new_gate"]
        self.gate, self.contexts = state["gate"], state["contexts"]
        self.whitening = Whitening.restore(under("whitening", state))
        self.net = _Net(self.config, self.whitening.matrix.shape[1], 0, seed=0)
        self.net.load_state_dict(under("net", state), strict=False)  # tables: the vectors contain them
        self.net.eval()
        self._join()


_TABLES = ("items", "sources", "bias")


class _Net(nn.Module):
    """The trainable tensors."""

    def __init__(
        self, config: GraphLLMRecConfig, text_dim: int, num_items: int, seed: int, *, ordered: bool = True
    ) -> None:
        super().__init__()
        random, dim = torch_rng(seed, "graphllmrec/start"), config.embedding_dim
        self.max_history = config.max_history
        noise = torch.randn(2, num_items, dim, generator=random) * 0.3 / dim**0.5
        self.items, self.sources = nn.Parameter(noise[0]), nn.Parameter(noise[1])  # g, e
        self.to_item, self.to_source = nn.Parameter(torch.eye(dim, text_dim)), nn.Parameter(torch.eye(dim, text_dim))
        self.bias, self.new_bias = nn.Parameter(torch.zeros(num_items)), nn.Parameter(torch.zeros(()))
        back = torch.arange(config.max_history, dtype=torch.float32)
        fading = math.log(config.decay) if ordered else 0.0
        self.log_recency = nn.Parameter(back * fading, requires_grad=ordered)  # log a

    def query(self, histories: Histories, sources: Tensor) -> Tensor:
        """q (B, dim) from the vectors s (num_items, dim) of the histories; zero for an empty one."""
        newest = histories.newest(self.max_history)
        return unit(self._sums(newest, sources))

    def attribute(self, history: Histories, sources: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Items (n,) of one history, and what each adds (n,) to the product of its query with `vector` (dim,)."""
        newest = history.newest(self.max_history)
        items = torch.from_numpy(newest.items)
        added = self._weights(newest, sources.device)[:, None] * sources.index_select(0, items)
        length = added.sum(0).norm().clamp_min(1e-12)
        return items, added @ vector / length

    def _weights(self, histories: Histories, device: torch.device) -> Tensor:
        return self.log_recency.index_select(0, to_device(histories.steps_back, device)).exp()  # (nnz,)

    def _sums(self, histories: Histories, sources: Tensor) -> Tensor:
        items, row = (to_device(array, sources.device) for array in (histories.items, histories.row_of_entry))
        gathered = sources.index_select(0, items) * self._weights(histories, sources.device)[:, None]
        return sources.new_zeros(len(histories), sources.shape[1]).index_add(0, row, gathered)


class _Teacher:
    """The stack, with twins in its catalogue: items without clicks that have the texts of others."""

    def __init__(self, stack: Stack, text: TextVectors, task: Task, temperature: float, twins: int) -> None:
        rows = np.sort(rng(task.seed, "graphllmrec/twins").permutation(len(text))[:twins])
        self.twins = torch.from_numpy(rows)  # whose texts they have
        self.stack = stack.with_items(_rows(text, self.twins)) if len(rows) else stack
        self.temperature = temperature

    @torch.no_grad()
    def scores(self, histories: Histories) -> Tensor:
        """T / t (B, num_items + twins)."""
        return self.stack.scores(Queries.anonymous(histories)) / self.temperature


class _Loss:
    """How far the vectors' ranking of a batch of histories is from the stack's."""

    def __init__(
        self, config: GraphLLMRecConfig, net: _Net, features: Tensor, clicked: Tensor, teacher: _Teacher, task: Task
    ) -> None:
        self.net, self.features, self.clicked, self.teacher = net, features, clicked, teacher
        self.temperature = config.temperature
        self.num_items, self.drawn = task.split.num_items, config.drawn
        known = task.split.train.histories(task.split.num_users)
        self.histories = Beginnings(known, task.split.ordered, config.max_history)
        self.twin_features = features.index_select(0, teacher.twins.to(features.device))

    def __len__(self) -> int:
        return len(self.histories)

    def __call__(self, rows: Ints, at: At) -> Tensor:
        """Mean KL divergence of the histories drawn for the users `rows`."""
        net, device = self.net, self.features.device
        histories, taught = self._lesson(self.histories.draw(rows, at.rng("history")), at.torch_rng("drawn"))
        sources = net.sources * self.clicked[:, None] + self.features @ net.to_source.T
        items = net.items * self.clicked[:, None] + self.features @ net.to_item.T
        everything = torch.cat([items, self.twin_features @ net.to_item.T])
        bias = torch.cat(
            [torch.where(self.clicked, net.bias, net.new_bias), net.new_bias.expand(len(self.twin_features))]
        )
        scores = net.query(histories, sources) / self.temperature @ everything.T + bias
        return _divergence(to_device(taught, device), _without_history(scores, histories))

    def _lesson(self, histories: Histories, random: torch.Generator) -> tuple[Histories, Tensor]:
        """The histories and how they go on, (1 + drawn) times as many, and what is taught (n, num_items + twins)."""
        seen, taught = [histories], [_without_history(self.teacher.scores(histories), histories)]
        for _ in range(self.drawn):
            chances = taught[-1][:, : self.num_items].softmax(1)
            following = torch.multinomial(chances, 1, generator=random)[:, 0].numpy()
            seen.append(seen[-1].followed_by(following))
            taught.append(_without_history(self.teacher.scores(seen[-1]), seen[-1]))
        return Histories.joined(seen), torch.cat(taught)


def _without_history(scores: Tensor, histories: Histories) -> Tensor:
    """Scores (B, n) of items that their history does not hold; the others are not recommended, so not taught."""
    held = (to_device(histories.row_of_entry, scores.device), to_device(histories.items, scores.device))
    return scores.index_put(held, scores.new_tensor(_HIDDEN))


def _divergence(taught: Tensor, scores: Tensor) -> Tensor:
    """Mean KL( softmax(taught) ‖ softmax(scores) ) over the rows (B, n)."""
    return F.kl_div(scores.log_softmax(1), taught.log_softmax(1), log_target=True, reduction="batchmean")


def _rows(text: TextVectors, rows: Tensor) -> TextVectors:
    texts = None if text.texts is None else tuple(text.texts[row] for row in rows.tolist())
    return TextVectors(text.vectors.index_select(0, rows), text.present.index_select(0, rows), texts)


@torch.no_grad()
def _calibrated(stack: Stack, task: Task) -> float:
    """The temperature of TEMPERATURES at which the validation targets are the most likely by the stack's scores."""
    split, total = task.split, np.zeros(len(TEMPERATURES))
    users = tuning_users(split, task.seed)
    for start in range(0, len(users), _BLOCK):
        queries = Queries.of(split.known("valid"), users[start : start + _BLOCK])
        wanted = split.targets("valid").take(queries.users)
        scores = _without_history(stack.scores(queries), queries.histories)
        row, item = torch.from_numpy(wanted.row_of_entry), torch.from_numpy(wanted.items)
        for place, temperature in enumerate(TEMPERATURES):
            total[place] += float((scores / temperature).log_softmax(1)[row, item].sum())
    found: float = TEMPERATURES[int(total.argmax())]
    task.logger.log("temperature-tuned", model="graphllmrec", temperature=found)
    return found
