"""A data folder small enough to know by heart: four circles of readers, each with its own twelve books."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from graphllmrec.protocol import TextVectors

WORDS = ("gears pump valve", "poems novel sonnet", "tulip spade compost", "drum guitar amp")
PER_BLOCK = 12


def write_world(folder: Path, users: int = 40, seed: int = 0) -> Path:
    """interactions.csv and items.csv: reader u<n> of block n % 4 has 8 items of that block, in order of time."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"i{item + PER_BLOCK * (user % 4)}", 1_600_000_000 + 86_400 * step)
        for user in range(users)
        for step, item in enumerate(draw.permutation(PER_BLOCK)[:8])
    ]
    items = [(f"i{item}", f"{WORDS[item // PER_BLOCK]} {item}") for item in range(4 * PER_BLOCK)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    interactions.write_csv(folder / "interactions.csv")
    pl.DataFrame(items, schema=["item_id", "title"], orient="row").write_csv(folder / "items.csv")
    return folder


def encode_first_word(items, config, **_):
    """Stands in for the language model: items whose titles begin with the same word have nearly the same vector."""
    vectors = []
    for row, title in enumerate(items.titles):
        kind = sum(map(ord, title.split()[0]))
        noise = torch.randn(16, generator=torch.Generator().manual_seed(row)) * 0.1
        vectors.append(torch.randn(16, generator=torch.Generator().manual_seed(kind)) + noise)
    return TextVectors(torch.stack(vectors), torch.ones(len(vectors), dtype=torch.bool))
