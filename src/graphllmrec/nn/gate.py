"""The context gate: the weights of click experts and text experts in an item's score, readable per item.

Soft routing: an item without clicks is "new"; any other belongs to four contexts to some degree, by its training
clicks d,

    p_cold = σ(3 (log(1 + c) - log(1 + d)))      p_head = σ(3 (log(1 + d) - log(1 + h)))
    π = [0, p_cold (1 - p_head), p_cold p_head, (1 - p_cold)(1 - p_head), (1 - p_cold) p_head]

with c = `cold_degree` and h the degree from which items are "head" (the most clicked items, with half of all clicks).
Every context has its own weight of every expert and its own bias; features of item and query change the weights:

    w_e(q, i) = exp( Σ_c π_ic a_ce + x_i · s_e + y_q · t_e )          β_i = Σ_c π_ic b_c + p log(1 + d_i)
    score(q, i) = Σ_e w_e(q, i) z_e(q, i) + β_i
    γ_i = share of the text experts in Σ_e w_e(i) at y = 0

z_e: z-scores of expert e. x_i, y_q: features, centred. A static gate is the same formula with a_ce = log of one tuned
weight per expert and all else 0. p: a prior of the clicks d, 0 in all gates but that of "static+prior".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graphllmrec.data.tables import Ints

ROUTED = ("cold/tail", "cold/head", "warm/tail", "warm/head")
CONTEXTS = ("new", *ROUTED)
_SHARPNESS = 3.0  # of the routing: an item at twice a threshold's degree belongs 8 : 1 to the upper side
LEARNABLE = 0.01  # smallest initial weight: an expert without static weight can still gain some
NOTHING = 1e-30  # weight of such an expert in a static gate: there is no logarithm of 0


@dataclass(frozen=True)
class GateInputs:
    """Contexts and features of all items."""

    contexts: Tensor  # (num_items, 5) soft membership π, rows add up to 1
    features: Tensor  # (num_items, num_features) x
    prior: Tensor  # (num_items,) p log(1 + d): not learned, 0 unless it is set

    def to(self, device: torch.device) -> GateInputs:
        """The same on another device."""
        return GateInputs(self.contexts.to(device), self.features.to(device), self.prior.to(device))


class ContextGate(nn.Module):
    """Weights of the experts and a bias, both per context; `set_static` makes it a static gate."""

    def __init__(self, num_experts: int, item_features: int, query_features: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(len(CONTEXTS), num_experts))  # a
        self.item_slope = nn.Parameter(torch.zeros(item_features, num_experts))  # s
        self.query_slope = nn.Parameter(torch.zeros(query_features, num_experts))  # t
        self.context_bias = nn.Parameter(torch.zeros(len(CONTEXTS)))  # b

    @torch.no_grad()
    def set_static(self, weights: Tensor, least: float = NOTHING) -> None:
        """Same expert weights (E,) in every context (clamped to `least`); slopes and biases zero."""
        for parameter in self.parameters():
            parameter.zero_()
        self.log_weight.copy_((weights / weights.sum()).clamp_min(least).log())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `state_dict`. Those of versions 0.1 and 0.2 have a `shift` of zeros besides."""
        self.load_state_dict({name: tensor for name, tensor in state.items() if name != "shift"})

    def weigh_items(self, inputs: GateInputs) -> tuple[Tensor, Tensor]:
        """Weights (num_items, E) for the average query, and β (num_items,)."""
        logs = inputs.contexts @ self.log_weight + inputs.features @ self.item_slope
        return logs.exp(), inputs.contexts @ self.context_bias + inputs.prior

    def query_factors(self, features: Tensor) -> Tensor:
        """Factors (B, E) of the weights for queries with features y (B, G)."""
        return (features @ self.query_slope).exp()


def routed(degree: Tensor, cold_degree: float, head_degree: float) -> Tensor:
    """Soft membership (num_items, 4) in ROUTED from training clicks per item (num_items,); 0 clicks count as cold."""
    logs = torch.log1p(degree.float())
    cold = torch.sigmoid(_SHARPNESS * (float(np.log1p(cold_degree)) - logs))
    head = torch.sigmoid(_SHARPNESS * (logs - float(np.log1p(head_degree))))
    return torch.stack([cold * (1 - head), cold * head, (1 - cold) * (1 - head), (1 - cold) * head], dim=1)


def memberships(degree: Tensor, cold_degree: float, head_degree: float) -> Tensor:
    """Membership π (num_items, 5) in CONTEXTS: `routed`, but for new items."""
    new = (degree == 0).float()[:, None]
    return torch.cat([new, (1 - new) * routed(degree, cold_degree, head_degree)], dim=1)


def head_degree(degree: Ints) -> float:
    """The degree of the least clicked head item: the most clicked items that together hold half of all clicks."""
    falling = np.sort(degree)[::-1]
    held = np.cumsum(falling)
    if not len(held) or not held[-1]:
        return 1.0
    return float(falling[int(np.searchsorted(held, held[-1] / 2))])
