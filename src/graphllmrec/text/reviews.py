"""Vectors of what users wrote: the reviews of the train part, per user and per item. No other part is ever read.

    user u:  r_u = Σ_{(u, i) in train} v(review_ui)      t_u = r_u / |r_u|              v: unit vector of a cleaned text
    item i:  m_i = mean of v(review_ui) over train       t_i = (x_i + m_i) / |x_i + m_i|   x_i: vector of its text

So a user vector is the common direction of the reviews (mean, then unit length), and stays the same at validation and
test time: later reviews are never read. For items the mean keeps its length, which measures how far the reviews agree:
reviews in different directions hardly change the item vector (`[text] reviews`, off by default).

Source: user text from reviews as in GraphLLMRec and RecMind (arXiv:2509.06286), whose pooling is not described: the
mean is ours. Every review is encoded once by the same cached encoder as item text; one long text per user would be cut
by the token limit after the first two or three reviews.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Ints
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Logger, TextVectors
from graphllmrec.text.clean import item_texts
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_texts
from graphllmrec.text.ngrams import NGrams

_CHARS_PER_TOKEN = 8  # more than any real text has: the rest is beyond the token limit


def user_text(
    split: Split,
    config: TextConfig | None = None,
    *,
    read: bool = True,
    ngrams: NGrams | None = None,
    cache: Path | None = None,
    logger: Logger | None = None,
) -> TextVectors | None:
    """Vectors of all users (num_users, dim) from their train reviews; None where no train interaction has one.

    present: at least one review is not empty after cleaning. `texts`: the user's reviews, newest first. `read=False`
    runs no encoder and returns vectors of no dimensions, for a placebo that replaces them. `ngrams`: the encoder of the
    catalogue, where that is not a language model.
    """
    config = config or TextConfig()
    rows, texts = _written(split, config)
    if not texts:
        return None
    vectors = _encoded(texts, config, read, ngrams, cache, logger)  # (n, dim)
    users = split.train.user[rows]
    present = torch.from_numpy(np.bincount(users, minlength=split.num_users) > 0)
    joined = _joined(users[::-1], texts[::-1], split.num_users, config)
    return TextVectors(unit(_sums(users, vectors, split.num_users)), present, joined)


def with_reviews(
    text: TextVectors,
    split: Split,
    config: TextConfig | None = None,
    *,
    ngrams: NGrams | None = None,
    cache: Path | None = None,
    logger: Logger | None = None,
) -> TextVectors:
    """Item vectors (num_items, dim) with those of the items' train reviews added; an item may have the latter only.

    Unchanged where no train interaction has a review. `text` without dimensions stays so: only `present` grows.
    """
    config = config or TextConfig()
    rows, texts = _written(split, config)
    if not texts:
        return text
    vectors = _encoded(texts, config, text.vectors.shape[1] > 0, ngrams, cache, logger)  # (n, dim)
    items = split.train.item[rows]
    number = torch.from_numpy(np.bincount(items, minlength=split.num_items))
    mean = _sums(items, vectors, split.num_items) / number.clamp_min(1)[:, None]  # (num_items, dim)
    joined = None if text.texts is None else _joined(items, texts, split.num_items, config, text.texts)
    return TextVectors(unit(text.vectors + mean), text.present | (number > 0), joined)


def _written(split: Split, config: TextConfig) -> tuple[Ints, list[str]]:
    """Rows (n,) of `split.train` with a review that is not empty after cleaning, and the cleaned reviews."""
    if split.train.review is None:
        return np.empty(0, dtype=np.int64), []
    clean = item_texts(split.train.review.alias("review").to_frame(), ["review"], config.max_tokens)
    return np.flatnonzero(clean.is_not_null().to_numpy()), clean.drop_nulls().to_list()


def _encoded(
    texts: list[str], config: TextConfig, read: bool, ngrams: NGrams | None, cache: Path | None, logger: Logger | None
) -> Tensor:
    if not read:
        return torch.zeros(len(texts), 0)
    if ngrams is not None:
        return ngrams.encode(texts)
    names = [f"review {number}" for number in range(1, len(texts) + 1)]
    return encode_texts(texts, config, cache=cache, logger=logger, names=names)


def _sums(owners: Ints, vectors: Tensor, count: int) -> Tensor:
    """Sums (count, dim) of the vectors (n, dim) of each owner (n,)."""
    return torch.zeros(count, vectors.shape[1]).index_add_(0, torch.from_numpy(owners), vectors)


def _joined(
    owners: Ints, texts: list[str], count: int, config: TextConfig, before: tuple[str | None, ...] | None = None
) -> tuple[str | None, ...]:
    """One text per owner (count,): its texts in order, after that of `before`, cut beyond the token limit."""
    frame = pl.DataFrame({"row": np.ascontiguousarray(owners), "text": texts})
    if before is not None:
        own = pl.DataFrame({"row": np.arange(count), "text": pl.Series(before, dtype=pl.String)}).drop_nulls()
        frame = pl.concat([own, frame])
    length = config.max_tokens * _CHARS_PER_TOKEN
    whole = frame.group_by("row", maintain_order=True).agg(pl.col("text").str.join(". ").str.slice(0, length))
    out: list[str | None] = [None] * count
    for row, text in whole.iter_rows():
        out[row] = text
    return tuple(out)
