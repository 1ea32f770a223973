"""BSPM: a user's clicks are blurred over the item graph, then sharpened. Both are ODEs; nothing is trained.

Choi, Hong, Park & Cho 2023, "Blurring-Sharpening Process Models for Collaborative Filtering" (SIGIR,
arXiv:2211.09324), on R~ = D_u^-1/2 R D_i^-1/2 and P = R~ᵀ R~:

    blurring     dx/dt = x P − x,  one Euler step of T = 1:  b = r P           r (num_items,): the user's clicks
    ideal        m = r D_i^-1/2 V_k V_kᵀ D_i^1/2                               V_k: leading right singular vectors of R~
    sharpening   dx/dt = −x P,  `sharpen_steps` steps of Euler or RK4 up to t = `sharpen_time`
    merge        "early": s = sharpened(b + ideal · m)      "late": s = sharpened(b) + ideal · m
                 "mean": the mean of b and of every step of sharpened(b + ideal · m)

A step of RK4 on a linear ODE is the polynomial 1 − hP + (hP)²/2 − (hP)³/6 + (hP)⁴/24, of Euler 1 − hP: sparse
products with R~ and R~ᵀ, for a block of users at a time, and never a num_items × num_items matrix.

What goes beyond the paper, all of it off by default:

    R~ = D_u^-user_power R D_i^-item_power, divided by its largest singular value where a power is not 1/2, so that the
    eigenvalues of P lie in [0, 1] as the paper's do; the scores are multiplied by D_i^popularity, because the two
    divisions by D_i^item_power lower popular items; `sharpen_time` and `popularity` can be tuned, on the validation
    part or, where there is none, on a random tenth of every user's training clicks, held out for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.graph.bipartite import clicked_matrix
from graphllmrec.graph.svd import truncated_svd
from graphllmrec.models.baselines.graph_filter import ItemGraph, clicks_restore, clicks_state
from graphllmrec.models.scoring import Decay, empty_csr, history_state, load_history_state, settle_decay
from graphllmrec.nn.histories import history_matrix
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.rng import rng
from graphllmrec.settings import Condition, Config
from graphllmrec.train.validation import Trials, settle, tuning_users

_HELD_OUT = 0.1  # of every user's training clicks, to tune on where there is no validation part
_TUNE_USERS = 2_000  # ranked per candidate
_TIMES = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 2.5, 3.0)
_POPULARITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

SharpenTime: TypeAlias = Annotated[float, Field(ge=0, le=10)] | Literal["tune"]
Popularity: TypeAlias = Annotated[float, Field(ge=-1, le=2)] | Literal["tune"]


class BSPMConfig(Config):
    """Settings of the blurring–sharpening process; the defaults are the paper's for gowalla."""

    rank: int = Field(448, ge=1, le=100_000, description="singular vectors of the ideal low-pass filter")
    ideal: float = Field(0.2, ge=0, le=1e6, description="weight of the ideal low-pass filter; 0 needs no vectors")
    solver: Literal["rk4", "euler"] = Field("rk4", description="of the sharpening ODE")
    sharpen_time: SharpenTime = Field(2.5, description='how long to sharpen; 0 does not; or "tune"')
    sharpen_steps: int = Field(1, ge=1, le=100, description="solver steps within that time")
    merge: Literal["early", "late", "mean"] = Field("early", description="where the ideal filter comes in")
    user_power: float = Field(0.5, ge=0, le=1, description="clicks are divided by the user's degree to this power")
    item_power: float = Field(0.5, ge=0, le=1, description="clicks are divided by the item's degree to this power")
    popularity: Popularity = Field(0.0, description='scores times item degree to this power; or "tune"')
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("rank", self.ideal > 0, "ideal above 0")
        yield Condition("solver sharpen_steps", self.sharpen_time != 0, "sharpen_time above 0")
        if self.merge == "late":  # where the ideal filter or the sharpening is missing, this is "early"
            yield Condition("merge", self.ideal > 0, 'ideal above 0, to be "late"')
            yield Condition("merge", self.sharpen_time != 0, 'sharpen_time above 0, to be "late"')


class BSPM:
    """Blurring–sharpening process on the item graph."""

    name: ClassVar[str] = "bspm"
    config_class: ClassVar[type[Config]] = BSPMConfig
    abilities = Abilities()

    def __init__(self, config: BSPMConfig) -> None:
        self.config = config
        self.clicks = empty_csr()
        self.graph = ItemGraph.of(self.clicks)
        self.degree = torch.empty(0)  # (num_items at fit,) training clicks, at least 1
        self.top = 1.0  # largest eigenvalue of P before the division by it
        self.vectors = torch.empty(0, 0)  # V (num_items at fit, rank); no columns when ideal = 0
        self.num_items = 0
        self.sharpen_time = self.popularity = 0.0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Singular vectors of the training clicks; tuned settings from validation or held-out clicks."""
        config = self.config
        self.sharpen_time = 1.0 if config.sharpen_time == "tune" else config.sharpen_time
        self.popularity = 0.0 if config.popularity == "tune" else config.popularity
        if "tune" in (config.sharpen_time, config.popularity):
            found = settle(task, "bspm/settings", lambda: self._tuned(task, task.split), None)
            if found is None:
                found = self._tuned(task, hold_out(task.split, task.seed, _HELD_OUT))
            self._apply(**found)
        self._prepare(task.split, task)
        settle_decay(self, task)

    def _prepare(self, split: Split, task: Task) -> None:
        """Graph and singular vectors of the training part of `split`."""
        config = self.config
        self.clicks, self.num_items = clicked_matrix(split.train, split.num_users, split.num_items), split.num_items
        self._set_graph()
        self.top = 1.0
        if (config.user_power, config.item_power) != (0.5, 0.5):
            largest = truncated_svd(self.graph.to_users, self.graph.to_items, 1, task.seed).s
            self.top = float(largest[0]) ** 2 if len(largest) else 1.0
        self.vectors = torch.zeros(self.num_items, 0)
        if config.ideal:
            spectrum = truncated_svd(self.graph.to_users, self.graph.to_items, config.rank, task.seed)
            task.logger.log("svd", rank=len(spectrum.s), residual=spectrum.residual, rounds=spectrum.rounds)
            self.vectors = spectrum.v

    def _set_graph(self) -> None:
        self.graph = ItemGraph.of(self.clicks, self.config.user_power, self.config.item_power)
        degree = np.bincount(self.clicks.indices, minlength=self.clicks.shape[1])
        self.degree = torch.from_numpy(np.maximum(degree, 1)).float()

    def _tuned(self, task: Task, split: Split) -> dict[str, float]:
        """The best `popularity` and `sharpen_time`, one after the other, twice, by NDCG@20 on the validation part."""
        self._prepare(split, task)
        users = tuning_users(split, task.seed, _TUNE_USERS)
        if not len(users):
            return {"time": self.sharpen_time, "popularity": self.popularity}
        trials = Trials(self, split, users, self._apply)
        time, popularity = self.sharpen_time, self.popularity
        for _ in range(2):
            if self.config.popularity == "tune":
                popularity = max(_POPULARITIES, key=lambda each: trials(time, each))
            if self.config.sharpen_time == "tune":
                time = max(_TIMES, key=lambda each: trials(each, popularity))
        best = trials(time, popularity)
        task.logger.log("bspm-tuned", sharpen_time=time, popularity=popularity, ndcg=best, tried=len(trials.found))
        return {"time": time, "popularity": popularity}

    def _apply(self, time: float, popularity: float) -> None:
        self.sharpen_time, self.popularity = time, popularity

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items); items added since the fit, like items without clicks, score 0."""
        config, known = self.config, self.graph.num_items
        histories = history_matrix(queries.histories, self.num_items, self.decay)[:, :known]
        blurred = self.graph.blur_histories(histories) / self.top  # (known, B)
        ideal = torch.zeros(())
        if self.vectors.shape[1]:
            ideal = self.graph.low_pass(histories, self.vectors, config.ideal)  # (known, B)
        states = self._sharpened(blurred if config.merge == "late" else blurred + ideal)
        if config.merge == "mean":
            scores = (blurred + sum(states)) / (1 + len(states))
        else:
            scores = states[-1] + ideal if config.merge == "late" else states[-1]
        if self.popularity:
            scores = scores * self.degree[:, None] ** self.popularity
        return torch.nn.functional.pad(scores.T, (0, self.num_items - known))  # (B, num_items)

    def _sharpened(self, signals: Tensor) -> list[Tensor]:
        """The state after every solver step of dx/dt = −P x from the columns of `signals` (known, B)."""
        if not self.sharpen_time:
            return [signals]
        step = self.sharpen_time / self.config.sharpen_steps
        states = []
        for _ in range(self.config.sharpen_steps):
            term, factor = signals, 1.0
            for order in range(1, 5 if self.config.solver == "rk4" else 2):  # RK4: exp(−hP) up to its fourth power
                term, factor = self.graph.blur(term) / self.top, -factor * step / order
                signals = signals + factor * term
            states.append(signals)
        return states

    def state(self) -> dict[str, Tensor]:
        """Clicks, singular vectors, tuned settings, size of the catalogue."""
        numbers = {"top": self.top, "sharpen_time": self.sharpen_time, "popularity": self.popularity}
        tuned = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return clicks_state(self.clicks) | {"vectors": self.vectors} | tuned | history_state(self)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.vectors = state["vectors"]
        self.clicks = clicks_restore(state, len(self.vectors))
        self._set_graph()
        load_history_state(self, state)
        self.top, self.sharpen_time = float(state["top"]), float(state["sharpen_time"])
        self.popularity = float(state["popularity"])

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items without clicks: score 0."""
        more = copy(self)
        more.num_items += len(text)
        return more


def hold_out(split: Split, seed: int, share: float) -> Split:
    """`split` with a random `share` of every user's training clicks as validation part; at least one click stays."""
    train = split.train
    lengths = np.bincount(train.user, minlength=split.num_users)
    draw = rng(seed, "bspm/holdout").random(len(train))
    shuffled = np.argsort(train.user + draw)  # rows are sorted by user already: this shuffles within each user
    place = np.empty(len(train), dtype=np.int64)
    place[shuffled] = np.arange(len(train)) - (np.cumsum(lengths) - lengths)[train.user]
    held = place < np.minimum(np.floor(lengths * share + 0.5), lengths - 1)[train.user]
    return replace(split, train=train.where(~held), valid=train.where(held), valid_in_history=False)
