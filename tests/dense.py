"""Graph and loss equations once more, entry by entry in float64: what the fast code is held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from graphllmrec.data.tables import Interactions

Dense = NDArray[np.float64]


def edges(users: list[int], items: list[int]) -> Interactions:
    return Interactions(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64)).sorted()


def clicks_of(train: Interactions, num_users: int, num_items: int) -> Dense:
    """1 where a user clicked an item, however often."""
    clicks = np.zeros((num_users, num_items))
    for user, item in zip(train.user, train.item, strict=True):
        clicks[user, item] = 1.0
    return clicks


def normalised(clicks: Dense) -> Dense:
    """1 / sqrt(|N_u| |N_i|) on every edge."""
    out = np.zeros_like(clicks)
    for user in range(clicks.shape[0]):
        for item in range(clicks.shape[1]):
            if clicks[user, item]:
                out[user, item] = 1 / math.sqrt(sum(clicks[user]) * sum(clicks[:, item]))
    return out


def layers(norm: Dense, users: Dense, items: Dense, num_layers: int) -> tuple[list[Dense], list[Dense]]:
    """Layers 0 … num_layers of users and of items; every node adds up its neighbours' layer below."""
    all_users, all_items = [users], [items]
    for layer in range(num_layers):
        next_users, next_items = np.zeros_like(users), np.zeros_like(items)
        for user in range(len(users)):
            for item in range(len(items)):
                next_users[user] += norm[user, item] * all_items[layer][item]
                next_items[item] += norm[user, item] * all_users[layer][user]
        all_users.append(next_users)
        all_items.append(next_items)
    return all_users, all_items


def layer_means(norm: Dense, users: Dense, items: Dense, num_layers: int) -> tuple[Dense, Dense]:
    all_users, all_items = layers(norm, users, items, num_layers)
    return np.mean(all_users, axis=0), np.mean(all_items, axis=0)


def faded_mean(history: list[int], vectors: Dense, decay: float) -> Dense:
    """Σ_k decay^(steps back of k) v_k / Σ_k decay^(steps back of k); zero for nobody's history."""
    total, weights = np.zeros(vectors.shape[1]), 0.0
    for position, item in enumerate(history):
        weight = decay ** (len(history) - 1 - position)
        total, weights = total + weight * vectors[item], weights + weight
    return total / weights if weights else total


def cross_entropy(scores: list[float], target: int) -> float:
    """log Σ_j exp(s_j) - s_target."""
    return math.log(sum(math.exp(score) for score in scores)) - scores[target]


def softplus(value: float) -> float:
    """-log σ(-value)."""
    return -math.log(1 / (1 + math.exp(value)))


def slope(function: Callable[[], float], array: Dense, step: float = 1e-5) -> Dense:
    """Central differences of `function` by every entry of `array`, which it reads."""
    out = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        above = function()
        array[place] = kept - step
        out[place] = (above - function()) / (2 * step)
        array[place] = kept
    return out
