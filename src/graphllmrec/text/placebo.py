"""Placebos: vectors without the meaning of the texts, in place of the text vectors. A model that is as good with them
learned nothing from the text (a 2026 study got the published gain of aligning graph and text without any text).

    shuffled   the vectors (and texts) of the items that have text, permuted among them: no item keeps its own
    random     independent Gaussian vectors of length 1, one per item that has text
    item2vec   vectors of the train clicks alone (below), for the items that have text and clicks

The set of items with text stays the same, so that only the content is replaced; under item2vec, items without clicks
have no vector. User text likewise: permuted among the users who wrote, random, or the mean of the item2vec vectors of
the user's train items. Everything is a function of the recipe's seed and the train part, so that a saved, loaded or
resumed run has the same vectors. An item added later gets, under shuffled, the text of a random item of the catalogue;
under random, a random vector; under item2vec none. These draws depend on its id.

item2vec (Barkan & Koenigstein 2016, arXiv:1603.04259) is skip-gram with negative sampling on histories. Its optimum
factorises a shifted matrix of pointwise mutual information (Levy & Goldberg 2014, "Neural Word Embedding as Implicit
Matrix Factorization"), which needs no training: with C_ij the number of times that j stands near i in a history,

    M_ij = log( 1 + C_ij / (k r_i P_j) ),   r_i = Σ_j C_ij,   P_j = r_j^α / Σ_l r_l^α
    M ≈ U diag(S) Vᵀ,   e_i = U_i diag(S)^½ / |U_i diag(S)^½|

k: negatives per pair, α = .75: the distribution that word2vec draws them from. Where clicks have an order, "near" is a
window in which the weight falls linearly with distance (the mean of word2vec's random window sizes); else all items of
the history count the same, as in the paper, up to a window of 50 places in a random order of the history, which bounds
the work for long ones. Differences from the papers: the factorisation, the window, and log(1 + x) instead of their
max(log x, 0), which is nearly the same for strong pairs but gives every clicked item an entry; otherwise the popular
items of a small catalogue have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, IdMap, Items
from graphllmrec.graph.bipartite import sparse_tensor
from graphllmrec.graph.svd import truncated_svd
from graphllmrec.nn.histories import aggregate
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import rng
from graphllmrec.text.clean import catalogue_texts
from graphllmrec.text.config import Placebo, TextConfig

DIM = 384  # of vectors that no encoder made: that of the default encoder
WINDOW = 5  # places to either side, as in word2vec
WIDE_WINDOW = 50  # where clicks have no order
NEGATIVES = 20  # k: the most that word2vec recommends; for small data
SMOOTHING = 0.75  # α
READS_TEXT = ("none", "shuffled")  # start from the vectors of the texts


def without_encoder(items: Items, config: TextConfig) -> TextVectors:
    """Which items have text, and vectors of no dimensions (num_items, 0): all that random and item2vec need."""
    present = catalogue_texts(items, config.columns, config.max_tokens).is_not_null().to_numpy()
    return TextVectors(torch.zeros(len(items), 0), torch.from_numpy(present))


@dataclass(frozen=True)
class TextPlacebo:
    """One of the placebos, for one seed and train part. `reads_text`: are the real vectors needed?"""

    kind: Placebo
    seed: int
    split: Split

    @property
    def reads_text(self) -> bool:
        """Does it start from the vectors of the texts? If not, those of `without_encoder` will do."""
        return self.kind in READS_TEXT

    def items(self, text: TextVectors, ids: IdMap) -> TextVectors:
        """The placebo's vectors in the place of those of the catalogue's texts (num_items rows)."""
        if self.kind == "item2vec":
            return _placed(self._item2vec, text.present)
        return self._drawn(text, ids, "items")

    def users(self, text: TextVectors, ids: IdMap) -> TextVectors:
        """The placebo's vectors in the place of those of what users wrote (num_users rows)."""
        if self.kind == "item2vec":
            histories = self.split.train.histories(self.split.num_users)
            mean = unit(aggregate(histories, self._item2vec, np.ones(len(histories.items), dtype=np.float32)))
            return _placed(mean, text.present)
        return self._drawn(text, ids, "users")

    def new_items(self, text: TextVectors, ids: IdMap) -> TextVectors:
        """The same for items added later; under shuffled, `text` is that of `donors` already."""
        if self.kind == "item2vec":
            return _placed(torch.zeros(len(text), DIM), text.present)
        return text if self.kind == "shuffled" else self._drawn(text, ids, "items")

    def donors(self, new: Items, catalogue: Items, config: TextConfig) -> Items:
        """The new items, each with the text of a random item of the catalogue, or still without text if it has none."""
        written = np.flatnonzero(without_encoder(catalogue, config).present.numpy())
        present = without_encoder(new, config).present.tolist()
        if not len(written):
            return new
        chosen = [int(written[rng(self.seed, f"text/shuffled/{id_}").integers(len(written))]) for id_ in new.ids.ids]
        others = catalogue.table[chosen].drop("item_id")
        texts = others.select(pl.when(pl.lit(pl.Series(present))).then(pl.all()).name.keep())
        return catalogue.others(texts.insert_column(0, new.table["item_id"]))

    def _drawn(self, text: TextVectors, ids: IdMap, whose: str) -> TextVectors:
        if self.kind == "shuffled":
            return shuffled(text, rng(self.seed, f"text/shuffled/{whose}"))
        if self.kind == "random":
            return random_vectors(text.present, ids, self.seed, whose)
        return text

    @cached_property
    def _item2vec(self) -> Tensor:
        histories = self.split.train.histories(self.split.num_users)
        return item2vec(histories, self.split.num_items, self.split.ordered, self.seed)


def shuffled(text: TextVectors, draw: np.random.Generator) -> TextVectors:
    """Vectors and texts of the rows that have some, permuted in one random cycle: no row keeps its own.

    A single row with text keeps it.
    """
    cycle = draw.permutation(np.flatnonzero(text.present.numpy()))
    source = np.arange(len(text))
    source[cycle] = np.roll(cycle, 1)
    texts = None if text.texts is None else tuple(text.texts[row] for row in source.tolist())
    return TextVectors(text.vectors.index_select(0, torch.from_numpy(source)), text.present, texts)


def random_vectors(present: Tensor, ids: IdMap, seed: int, whose: str) -> TextVectors:
    """Gaussian vectors (n, DIM) of length 1 for the rows that are `present`, each a function of the seed and its id."""
    vectors = torch.zeros(len(present), DIM)
    rows = np.flatnonzero(present.numpy())
    for row, id_ in zip(rows.tolist(), ids.of(rows), strict=True):
        drawn = rng(seed, f"text/random/{whose}/{id_}").standard_normal(DIM, dtype=np.float32)
        vectors[row] = torch.from_numpy(drawn)
    return TextVectors(unit(vectors), present)


def item2vec(histories: Histories, num_items: int, ordered: bool, seed: int) -> Tensor:
    """Vectors (num_items, DIM) of length 1 from clicks alone; zero for items that no history has beside others.

    Where the matrix has a lower rank than DIM, the last dimensions are zero.
    """
    matrix = shifted_pmi(cooccurrence(histories, num_items, ordered, seed))
    vectors = torch.zeros(num_items, DIM)
    if matrix.nnz:
        found = truncated_svd(sparse_tensor(matrix), sparse_tensor(sp.csr_array(matrix.T)), DIM, seed)
        vectors[:, : len(found.s)] = unit(found.u * found.s.sqrt())
    return vectors


def cooccurrence(histories: Histories, num_items: int, ordered: bool, seed: int) -> sp.csr_array:
    """How often j stands near i in a history, C (num_items, num_items) float64, symmetric; an item is not near itself.

    Pairs at distance d ≤ WINDOW count 1 - (d - 1) / WINDOW where histories have an order, else all alike.
    """
    items, rows = histories.items, histories.row_of_entry
    if not ordered:
        shuffle = np.argsort(rows + rng(seed, "text/item2vec").random(len(rows)))  # within each history
        items = items[shuffle]
    window = WINDOW if ordered else WIDE_WINDOW
    total = sp.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, min(window, len(items) - 1) + 1):
        first, second = items[:-distance], items[distance:]
        pair = (rows[:-distance] == rows[distance:]) & (first != second)
        weight = np.full(int(pair.sum()), 1 - (distance - 1) / window if ordered else 1.0)
        total = total + sp.csr_array((weight, (first[pair], second[pair])), shape=total.shape)
    return (total + total.T).tocsr()


def shifted_pmi(counts: sp.csr_array, negatives: int = NEGATIVES, smoothing: float = SMOOTHING) -> sp.csr_array:
    """M (num_items, num_items) of the module's equation, from C."""
    entries = counts.tocoo()
    row_sum = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    context = row_sum**smoothing / max((row_sum**smoothing).sum(), np.finfo(np.float64).tiny)
    value = np.log1p(entries.data / (negatives * row_sum[entries.row] * context[entries.col]))
    return sp.csr_array((value, (entries.row, entries.col)), shape=counts.shape)


def _placed(vectors: Tensor, present: Tensor) -> TextVectors:
    """The vectors of rows that are `present` and have one that is not zero."""
    present = present & vectors.any(1)
    return TextVectors(vectors * present[:, None], present)
