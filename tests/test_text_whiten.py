"""Whitening against a loop-written transcription of its equation, and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphllmrec.errors import TextError
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import torch_rng
from graphllmrec.text.whiten import Whitening


def text_vectors(items: int = 200, dim: int = 8, absent: tuple[int, ...] = (3, 17)) -> TextVectors:
    generator = torch_rng(0, "whiten")
    mixing = torch.randn(dim, dim, generator=generator)
    vectors = torch.randn(items, dim, generator=generator) @ mixing + 5.0
    present = torch.ones(items, dtype=torch.bool)
    present[list(absent)] = False
    vectors[~present] = 0.0
    return TextVectors(vectors, present)


def transcription(text: TextVectors, dims: int, shrink: float) -> np.ndarray:
    """The module's equation with loops, in float64, by the singular vectors of the centred rows."""
    rows = [v for v, there in zip(text.vectors.double().numpy(), text.present.tolist(), strict=True) if there]
    dim = len(rows[0])
    mean = [sum(row[k] for row in rows) / len(rows) for k in range(dim)]
    centred = np.array([[row[k] - mean[k] for k in range(dim)] for row in rows])
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2 / (len(rows) - 1)
    out = np.zeros((len(text), dims))
    for item in range(len(text)):
        if not text.present[item]:
            continue
        for j in range(dims):
            axis = axes[j] * np.sign(axes[j][np.argmax(np.abs(axes[j]))])
            scale = (1 - shrink) * variance[j] + shrink * variance.mean()
            value = sum((float(text.vectors[item, k]) - mean[k]) * axis[k] for k in range(dim))
            out[item, j] = value / scale**0.5
    return out


@pytest.mark.parametrize(("dims", "shrink"), [(8, 0.0), (3, 0.0), (5, 0.3), (4, 1.0)])
def test_golden(dims: int, shrink: float) -> None:
    text = text_vectors()
    ours = Whitening.fit(text, dims, shrink).apply(text).double().numpy()
    expected = transcription(text, dims, shrink)
    np.testing.assert_allclose(ours, expected, atol=2e-5)  # float32 in and out
    exact = TextVectors(text.vectors.double(), text.present)
    fitted = Whitening.fit(exact, dims, shrink)
    np.testing.assert_allclose(fitted.matrix.double().numpy(), _matrix(exact, dims, shrink), atol=1e-6)


def _matrix(text: TextVectors, dims: int, shrink: float) -> np.ndarray:
    """W of the module's equation, column by column."""
    rows = text.vectors[text.present].double().numpy()
    _, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    variance = singular**2 / (len(rows) - 1)
    columns = []
    for j in range(dims):
        sign = np.sign(axes[j][np.argmax(np.abs(axes[j]))])
        columns.append(sign * axes[j] / np.sqrt((1 - shrink) * variance[j] + shrink * variance.mean()))
    return np.stack(columns, axis=1)


def test_present_rows_become_white_and_absent_rows_stay_zero() -> None:
    text = text_vectors()
    out = Whitening.fit(text).apply(text)
    rows = out[text.present]
    torch.testing.assert_close(rows.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.T.cov(), torch.eye(8), atol=1e-4, rtol=0)
    assert not out[~text.present].any()


def test_absent_rows_do_not_matter_for_the_fit() -> None:
    text = text_vectors()
    alone = TextVectors(text.vectors[text.present], torch.ones(int(text.present.sum()), dtype=torch.bool))
    assert torch.equal(Whitening.fit(text, 4).matrix, Whitening.fit(alone, 4).matrix)


def test_signs_do_not_depend_on_the_order_of_the_rows() -> None:
    text = text_vectors(absent=())
    turned = TextVectors(text.vectors.flip(0), text.present)
    torch.testing.assert_close(Whitening.fit(text).matrix, Whitening.fit(turned).matrix, atol=1e-4, rtol=1e-3)


def test_never_more_dimensions_than_the_vectors_span() -> None:
    text = text_vectors(items=5, dim=8, absent=())
    whitening = Whitening.fit(text, 200)
    assert whitening.matrix.shape == (8, 4)
    assert torch.isfinite(whitening.apply(text)).all()


def test_state_round_trip() -> None:
    text = text_vectors()
    whitening = Whitening.fit(text, 5)
    again = Whitening.restore(whitening.state())
    assert torch.equal(whitening.apply(text), again.apply(text))


def test_refusals() -> None:
    text = text_vectors()
    with pytest.raises(TextError, match=r"at least 2 items with text, found 1 of 3 items"):
        Whitening.fit(TextVectors(torch.ones(3, 4), torch.tensor([True, False, False])))
    with pytest.raises(TextError, match="all vectors are the same"):
        Whitening.fit(TextVectors(torch.ones(3, 4), torch.ones(3, dtype=torch.bool)))
    with pytest.raises(TextError, match=r"fitted on vectors of 8 dimensions, these have 6"):
        Whitening.fit(text).apply(text_vectors(dim=6))
    with pytest.raises(ValueError, match="text_dim must be at least 1"):
        Whitening.fit(text, 0)
    with pytest.raises(ValueError, match="shrink must lie in"):
        Whitening.fit(text, 2, shrink=1.5)
