"""Vectors from character n-grams: any script, no language model, no download. `text.encoder = "ngrams"`.

    x_tg = (1 + log count(g in t)) · idf(g), rows scaled to length 1        g: n-grams of 2 to 4 characters within words
    X ≈ U S Vᵀ  (truncated SVD of the catalogue's rows)                     v_t = x_t V / |x_t V|

Latent semantic analysis (Deerwester et al. 1990) of n-grams instead of words: parts of words, other spellings and
scripts without spaces between words need no tokenizer. The n-grams are those of scikit-learn's `char_wb` analyzer. It
knows no meaning: two texts are alike when they are written alike, or when their n-grams occur in the same texts.

Everything is fitted on the catalogue and kept, so that a text that comes later gets the vector it would have had. The
same texts give the same vectors; random numbers of the SVD come from a fixed seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphllmrec.data.tables import Items
from graphllmrec.errors import TextError
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import TextVectors
from graphllmrec.text.clean import catalogue_texts
from graphllmrec.text.config import NGRAMS, TextConfig

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

DIM = 256
LENGTHS = (2, 4)  # of n-grams, in characters
_ROUNDS = 2  # of power iteration
_MOST_NGRAMS = 40_000  # the most frequent ones
_TEXTS_FOR_SVD = 100_000  # spread evenly over the catalogue
_TEXTS_AT_A_TIME = 20_000


@dataclass(frozen=True, eq=False)
class NGrams:
    """A fitted encoder. Example:

    >>> encoder = NGrams.fit(["red lamp", "red chair", "blue lamp"])
    >>> encoder.encode(["lamps"]).shape
    torch.Size([1, 2])
    """

    vocabulary: tuple[str, ...]  # the n-grams, by column
    idf: Tensor  # (num_ngrams,) float32
    axes: Tensor  # (num_ngrams, dim) float32, V of the equation

    @staticmethod
    def fit(texts: Sequence[str], dim: int = DIM) -> NGrams:
        """Fit on the texts of a catalogue; `dim` is at most the number of texts and n-grams less one.

        Raises TextError where the texts have no n-gram at all.
        """
        from sklearn.utils.extmath import randomized_svd

        vectorizer = _vectorizer(max_features=_MOST_NGRAMS)
        some = list(texts[:: -(-len(texts) // _TEXTS_FOR_SVD)]) if len(texts) > _TEXTS_FOR_SVD else list(texts)
        try:
            matrix = vectorizer.fit_transform(some)  # (n, num_ngrams)
        except ValueError as error:  # an empty vocabulary
            raise TextError(f"the texts have no n-grams: {error}") from error
        rank = max(min(dim, min(matrix.shape) - 1), 1)
        axes = randomized_svd(matrix, rank, n_iter=_ROUNDS, random_state=0)[2].T  # (num_ngrams, rank)
        names = vectorizer.get_feature_names_out().tolist()
        return NGrams(tuple(names), torch.from_numpy(vectorizer.idf_.copy()), torch.from_numpy(axes.copy()))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-length vectors (len(texts), dim) float32; zero for a text without any n-gram of the catalogue."""
        parts = [
            self._encoded(texts[start : start + _TEXTS_AT_A_TIME]) for start in range(0, len(texts), _TEXTS_AT_A_TIME)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self.axes.shape[1])

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        return unit(torch.from_numpy(self._vectorizer.transform(texts) @ self.axes.numpy()))

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = _vectorizer(vocabulary={ngram: column for column, ngram in enumerate(self.vocabulary)})
        vectorizer.idf_ = self.idf.numpy()
        return vectorizer

    def state(self) -> dict[str, Tensor]:
        """Tensors for `restore`; the vocabulary as the bytes of a JSON list."""
        text = json.dumps(self.vocabulary, ensure_ascii=False).encode()
        return {"vocabulary": torch.tensor(list(text), dtype=torch.uint8), "idf": self.idf, "axes": self.axes}

    @staticmethod
    def restore(state: Mapping[str, Tensor]) -> NGrams:
        """An encoder from tensors written by `state`."""
        vocabulary = json.loads(state["vocabulary"].numpy().tobytes())
        return NGrams(tuple(vocabulary), state["idf"], state["axes"])


def with_encoder(items: Items, config: TextConfig) -> Items:
    """The catalogue with an encoder that is fitted on its texts, where the settings want n-grams; else unchanged.

    Raises TextError when no item has text.
    """
    if config.encoder != NGRAMS or items.encoder:
        return items
    texts = catalogue_texts(items, config.columns, config.max_tokens).drop_nulls()
    if not len(texts):
        raise without_text(items, config)
    state = NGrams.fit(texts.to_list()).state()
    return replace(items, encoder={name: tensor.numpy() for name, tensor in state.items()})


def encoder_of(items: Items) -> NGrams:
    """The encoder that `with_encoder` has put there."""
    return NGrams.restore({name: torch.from_numpy(array) for name, array in items.encoder.items()})


def encode_by_ngrams(items: Items, config: TextConfig) -> TextVectors:
    """Vectors of all items (num_items, dim) by the encoder of the catalogue, which is fitted where there is none.

    An item none of whose n-grams is known counts as one without text. Raises TextError when no item has text.
    """
    encoder = encoder_of(with_encoder(items, config))
    texts = catalogue_texts(items, config.columns, config.max_tokens)  # (num_items,) null without text
    written = torch.from_numpy(texts.is_not_null().to_numpy())
    if not written.any():
        raise without_text(items, config)
    vectors = torch.zeros(len(items), encoder.axes.shape[1])
    vectors[written] = encoder.encode(texts.drop_nulls().to_list())
    return TextVectors(vectors, vectors.any(1), tuple(texts.to_list()))


def without_text(items: Items, config: TextConfig) -> TextError:
    """The error about a catalogue in which no item has text."""
    columns = ", ".join(config.columns or items.text_columns) or "none"
    return TextError(f"none of the {len(items):,} items has any text (columns read: {columns})")


def _vectorizer(**settings: Any) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=LENGTHS, sublinear_tf=True, dtype=np.float32, **settings)
