"""PCA whitening of frozen text vectors: decorrelate the language model's axes and even out their variance.

Sentence vectors of one catalogue share a large mean and a few dominant directions, so that every pair looks alike.
Whitening (Su et al. 2021, "Whitening Sentence Representations for Better Semantics and Faster Retrieval",
arXiv:2103.15316) removes both. With mean m and covariance U diag(s) U^T of the item vectors:

    W = U[:, :text_dim] diag(1 / sqrt((1 - shrink) s + shrink mean(s)))        z = (x - m) W

Differences from the paper: shrinkage, because the smallest variances of a small catalogue are noise that 1/sqrt(s)
amplifies (shrink=0 is the paper), and fixed signs, because eigenvectors are only defined up to sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphllmrec.errors import TextError
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Task, TextVectors

_NO_VARIANCE = 1e-10  # relative to the largest variance: below this an axis holds rounding errors only


@dataclass(frozen=True)
class Whitening:
    """An affine map fitted on the items of one catalogue and applied to any later item. Example:

    >>> whitening = Whitening.fit(text, text_dim=200)
    >>> z = whitening.apply(text)  # (num_items, 200)
    """

    mean: Tensor  # (dim,) float32
    matrix: Tensor  # (dim, out) float32

    @staticmethod
    def fit(text: TextVectors, text_dim: int | None = None, shrink: float = 0.0) -> Whitening:
        """Fit on the items that have text.

        `text_dim`: number of leading principal axes to keep; None, or more than the vectors span, keeps all that have
        variance (at most min(dim, items with text - 1)). `shrink` in [0, 1] pulls the variances towards their mean: 1
        rotates and centres, but leaves the relative variances as they are.
        Raises TextError with fewer than two different texts, ValueError for settings out of range.
        """
        if text_dim is not None and text_dim < 1:
            raise ValueError(f"text_dim must be at least 1 or None, found {text_dim}")
        if not 0.0 <= shrink <= 1.0:
            raise ValueError(f"shrink must lie in [0, 1], found {shrink}")
        rows = text.vectors[text.present].double()  # (n, dim)
        if len(rows) < 2:
            raise TextError(f"whitening needs at least 2 items with text, found {len(rows)} of {len(text)} items")
        mean = rows.mean(0)
        centred = rows - mean
        variance, axes = torch.linalg.eigh(centred.T @ centred / (len(rows) - 1))  # ascending; axes (dim, dim)
        variance, axes = variance.flip(0), axes.flip(1)
        spanned = int((variance > _NO_VARIANCE * variance[0].clamp_min(1e-30)).sum())
        if not spanned or variance[0] < 1e-12:
            raise TextError("whitening needs at least 2 different texts; all vectors are the same")
        keep = min(text_dim or spanned, spanned)
        scale = (1 - shrink) * variance + shrink * variance[:spanned].mean()
        matrix = _signed(axes[:, :keep]) / scale[:keep].sqrt()  # (dim, keep)
        return Whitening(mean.float(), matrix.float().contiguous())

    def apply(self, text: TextVectors) -> Tensor:
        """Whitened vectors (n, out) float32; rows of items without text stay zero. Raises TextError if dim differs."""
        if text.vectors.shape[1] != len(self.mean):
            raise TextError(
                f"whitening was fitted on vectors of {len(self.mean)} dimensions, these have {text.vectors.shape[1]}: "
                "encode the new items with the same text encoder"
            )
        out = (text.vectors - self.mean) @ self.matrix  # (n, out)
        return out * text.present[:, None]

    def to(self, device: torch.device) -> Whitening:
        """The same on another device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def state(self) -> dict[str, Tensor]:
        """Mean and matrix."""
        return {"mean": self.mean, "matrix": self.matrix}

    @staticmethod
    def restore(state: Mapping[str, Tensor]) -> Whitening:
        """A whitening from tensors written by `state`."""
        return Whitening(state["mean"], state["matrix"])


def require_text(task: Task, model: str) -> TextVectors:
    """The item text of `task`. Raises TextError without any, and for another number of text vectors than items."""
    if task.text is None:
        raise TextError(f"{model} needs item text, and this data has none: add a title column to the items table")
    _check_count(task.text, task.split.num_items)
    return task.text


def whiten_text(task: Task, text_dim: int, model: str, *, ids: bool) -> tuple[Whitening | None, Tensor]:
    """Whitened text vectors (num_items, text_dim) of unit length, for a model that can use item embeddings alone.

    Zero rows for items without text, and None with zeros for data without any. Raises TextError when `model` has no
    embeddings either (`ids`), and for another number of text vectors than items.
    """
    text, num_items = task.text, task.split.num_items
    if text is None or not bool(text.present.any()):
        if not ids:
            raise TextError(f"{model} with ids = false needs item text, and this data has none: set model.ids")
        return None, torch.zeros(num_items, text_dim)
    _check_count(text, num_items)
    whitening = Whitening.fit(text, text_dim)
    return whitening, unit(whitening.apply(text))


def _check_count(text: TextVectors, num_items: int) -> None:
    if len(text) != num_items:
        raise TextError(f"{len(text):,} text vectors for {num_items:,} items")


def _signed(axes: Tensor) -> Tensor:
    """Each column (dim, k) with the sign that makes its largest entry positive: the same on every machine."""
    largest = axes.abs().argmax(0, keepdim=True)  # (1, k)
    return axes * axes.gather(0, largest).sign()
