"""Decoys: items that nobody clicks, put among the candidates of an evaluation.

Many data sets hold clicked items only. Then each item without a training click is a target of validation or test, and a
model that lifts all of them looks good. A real catalogue has items that nobody will ever click as well.

- "auto": made of the catalogue. Two items of similar text, A and one of its nearest neighbours B, make a new one: the
  first half of A's title, the second half of B's, each other text from either of them, attributes from A.
- of another data folder: its items, with those columns that both catalogues have.

Both are a function of the catalogue and a seed, whatever model or text settings they are for.

While a gate is fitted (models/fusion/hybrid.py) there are vectors instead of columns of text. There a decoy has the
neighbourhood of one item i and the peculiarity of another one p (`decoy_vectors`):

    v = c(i) + v_p - c(p)          c: mean vector of the nearest neighbours

so that it is as far from its neighbours as items are. The sum of two neighbours would be nearer to all than any item.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from graphllmrec.data.read import load_data
from graphllmrec.data.tables import Ints, Items
from graphllmrec.errors import DataError
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import rng
from graphllmrec.text.clean import catalogue_texts, reading_order

AUTO = "auto"  # the source of decoys that are made of the catalogue itself
NEIGHBOURS = 30  # B is one of so many
AROUND = 10  # neighbours that make the centre c
_POOL = 20_000  # items that are looked at, spread at random over a larger catalogue
_AT_A_TIME = 500


@dataclass(frozen=True)
class Decoys:
    """Rows to be appended to a catalogue."""

    table: pl.DataFrame  # the columns of the catalogue, ids of their own
    source: str  # "auto", or the name of a data folder

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of what they are: two evaluations with the same one had the same decoys."""
        return hashlib.sha256(self.table.write_ndjson().encode()).digest()


def make_decoys(items: Items, number: int, source: str = AUTO, seed: int = 0) -> Decoys:
    """`number` decoys for a catalogue, from `source`: "auto", or a data folder. Raises DataError."""
    draw = rng(seed, f"decoys/{Path(source).name}")
    table = _crossed(items, number, draw) if source == AUTO else _of_folder(items, number, source, draw)
    stem = "decoy"
    while items.ids.ids.str.starts_with(f"{stem}-").any():
        stem += "-"
    ids = pl.Series("item_id", [f"{stem}-{place}" for place in range(1, number + 1)])
    return Decoys(table.with_columns(ids), AUTO if source == AUTO else Path(source).resolve().name)


def _crossed(items: Items, number: int, draw: np.random.Generator) -> pl.DataFrame:
    """New items, each made of two similar ones (number rows); copies where there is no text."""
    texts = catalogue_texts(items)
    pool = np.flatnonzero(texts.is_not_null().to_numpy())
    pool = draw.permutation(pool if len(pool) else np.arange(len(items)))[:_POOL]
    first = np.resize(pool, number)
    second = _neighbours(texts, pool, first, draw)
    table = items.table[first]
    names = reading_order(items.text_columns)
    others = items.table[second].select(names)
    columns = [
        _halves(table[name], others[name])
        if name == names[0]
        else table[name].zip_with(pl.Series(draw.random(number) < 0.5), others[name])
        for name in names
    ]
    return table.with_columns(columns)


def _neighbours(texts: pl.Series, pool: Ints, rows: Ints, draw: np.random.Generator) -> Ints:
    """For each of `rows` one of its nearest neighbours in the pool by n-grams of its text (n,), not itself."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    chosen = rows.copy()
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, dtype=np.float32)
    try:
        vectors = vectorizer.fit_transform(texts.gather(pool).fill_null("").to_list())  # (len(pool), num_ngrams)
    except ValueError:  # no text at all
        return chosen
    place = np.arange(len(rows)) % len(pool)  # in the pool
    width = min(NEIGHBOURS, len(pool) - 1)
    picks = draw.integers(0, max(width, 1), len(rows))
    for start in range(0, len(rows) if width else 0, _AT_A_TIME):
        block = place[start : start + _AT_A_TIME]
        alike = (vectors[block] @ vectors.T).toarray()  # (n, len(pool))
        alike[np.arange(len(block)), block] = -1.0
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :width]
        chosen[start : start + len(block)] = pool[nearest[np.arange(len(block)), picks[start : start + len(block)]]]
    return chosen


def _halves(left: pl.Series, right: pl.Series) -> pl.Series:
    """The first half of the words (or entries) of `left` and the second half of those of `right` (n,)."""
    if left.dtype != pl.String:
        return pl.Series(left.name, list(map(_half, left.to_list(), right.to_list())), left.dtype)
    found = map(_half, left.str.split(" ").to_list(), right.str.split(" ").to_list())
    return pl.Series(left.name, [None if words is None else " ".join(words) for words in found], pl.String)


def _half(left: list[str] | None, right: list[str] | None) -> list[str] | None:
    if left is None or right is None:
        return left if right is None else right
    return left[: (len(left) + 1) // 2] + right[len(right) // 2 :]


def _of_folder(items: Items, number: int, folder: str, draw: np.random.Generator) -> pl.DataFrame:
    """Items of another data folder (number rows) in the columns of this catalogue; its own are left out."""
    other = load_data(folder).items
    shared = [name for name in items.text_columns if other.table.schema.get(name) == items.table.schema[name]]
    if items.text_columns and not shared:
        listed = ", ".join(items.text_columns)
        hint = f"they need one of {listed}, with the same type"
        raise DataError(
            "the items of the decoys have none of the text columns of this catalogue", file=folder, hint=hint
        )
    kinds = items.table.schema
    table = other.table.select(
        pl.col(name) if other.table.schema.get(name) == kind else pl.lit(None, kind).alias(name)
        for name, kind in kinds.items()
    )
    texts, known = catalogue_texts(items.others(table)), catalogue_texts(items)
    usable = texts.is_not_null() & ~texts.is_in(known.drop_nulls().implode()) if shared else ~table["item_id"].is_null()
    rows = np.flatnonzero(usable.fill_null(False).to_numpy())
    if len(rows) < number:
        what = f"{number:,} decoys wanted, {len(rows):,} items there have a text that is not in this catalogue"
        raise DataError(what, file=folder, hint="ask for fewer, or make them of the catalogue itself (auto)")
    return table[np.sort(draw.permutation(rows)[:number])]


def decoy_vectors(text: TextVectors, number: int, seed: int) -> TextVectors:
    """Vectors of `number` items that could be in the catalogue (number, text_dim), with the texts of p.

    Without text where no item has any. Of a large catalogue, some items stand for the rest.
    """
    draw = rng(seed, "decoys/vectors")
    pool = draw.permutation(np.flatnonzero(text.present.numpy()))[:_POOL]
    if not len(pool):
        return TextVectors(torch.zeros(number, text.vectors.shape[1]), torch.zeros(number, dtype=torch.bool))
    around, own = (torch.from_numpy(draw.integers(0, len(pool), number)) for _ in range(2))
    vectors = text.vectors.index_select(0, torch.from_numpy(pool))
    peculiar = vectors.index_select(0, own) - _centres(vectors, own)
    length = vectors.norm(dim=1).index_select(0, own)[:, None]
    made = unit(_centres(vectors, around) + peculiar) * length
    texts = None if text.texts is None else tuple(text.texts[row] for row in pool[own.numpy()])
    return TextVectors(made, torch.ones(number, dtype=torch.bool), texts)


def _centres(vectors: Tensor, rows: Tensor) -> Tensor:
    """Mean vector (len(rows), d) of the nearest neighbours of these rows of `vectors`; the row itself without any."""
    directions = unit(vectors - vectors.mean(0))  # common to all vectors of an encoder is no likeness
    width = min(AROUND, len(vectors) - 1)
    if not width:
        return vectors.index_select(0, rows)
    found = []
    for some in torch.split(rows, _AT_A_TIME):
        alike = directions.index_select(0, some) @ directions.T  # (n, len(vectors))
        alike.scatter_(1, some[:, None], -2.0)
        found.append(vectors[alike.topk(width, dim=1).indices].mean(1))
    return torch.cat(found)
