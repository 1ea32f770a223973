"""The language of the item texts, and the warning when the encoder does not know it."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl
import pytest

from graphllmrec.data.tables import IdMap, Items
from graphllmrec.protocol import SilentLogger
from graphllmrec.text import language
from graphllmrec.text.config import TextConfig
from graphllmrec.text.language import check_language, guess_language, scripts, text_figures, text_lines, unknown_share
from graphllmrec.text.loading import packaged_tokenizer

ENGLISH = ["The lamp for the table, with a shade of glass and wood"] * 5
GERMAN = ["Die Lampe für den Tisch mit einem Schirm aus Glas und Holz"] * 10
JAPANESE = ["常滑焼 急須", "有田焼の皿"]
RUSSIAN = ["настольная лампа", "деревянный стул"]


def catalogue(texts: list[str]) -> Items:
    ids = [str(row) for row in range(len(texts))]
    return Items(IdMap(ids), pl.DataFrame({"item_id": ids, "title": texts}))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (ENGLISH, "English"),
        (GERMAN, "German"),
        (JAPANESE, "Japanese"),
        (RUSSIAN, "Cyrillic script"),
        (["茶壶", "花瓶"], "Chinese"),
        (["찻주전자"], "Korean"),
        (["مصباح"], "Arabic script"),
        (["Lampe"], "Latin script"),
        (["12", "3.5"], None),
        ([], None),
    ],
)
def test_language_or_script_is_guessed(texts: list[str], expected: str | None) -> None:
    assert guess_language(texts) == expected


def test_shares_of_scripts_add_up() -> None:
    found = scripts(["ab лё ა"])
    assert found == {"Latin": 0.4, "Cyrillic": 0.4, "other": 0.2}


class _Words:
    """A tokenizer that knows "lamp" only."""

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"tokens": [word if word == "lamp" else "[UNK]" for word in text.split()]})


def test_unknown_tokens_are_counted() -> None:
    assert unknown_share(["lamp lamp", "chair lamp"], _Words()) == 0.25
    assert unknown_share([], _Words()) == 0


@pytest.mark.skipif(packaged_tokenizer() is None, reason="the packaged encoder is not installed")
def test_figures_of_a_japanese_catalogue() -> None:
    figures = text_figures(catalogue(["常滑焼 急須"]))
    assert (figures["language"], figures["unknown_tokens"]) == ("Chinese", 1.0)  # without kana
    assert dict(text_lines(figures))["unknown to minilm"] == "100.0% of the tokens"
    assert text_figures(catalogue(ENGLISH))["unknown_tokens"] == 0


def test_a_catalogue_without_text_has_no_language() -> None:
    figures = text_figures(Items(IdMap(["a"]), pl.DataFrame({"item_id": ["a"]})))
    assert figures == {"language": None, "scripts": {}, "unknown_tokens": None}
    assert text_lines(figures) == []


@pytest.mark.parametrize("texts", [JAPANESE, RUSSIAN], ids=["unknown tokens", "single letters"])
@pytest.mark.parametrize("installed", [True, False])
def test_a_fit_on_texts_that_minilm_does_not_know_warns(
    texts: list[str], installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(language, "packaged_tokenizer", lambda: None)
    with pytest.warns(UserWarning, match=r"'minilm' knows English only.*multilingual.*'ngrams'"):
        check_language(catalogue(texts), TextConfig(), SilentLogger())


@pytest.mark.parametrize(
    ("texts", "encoder"),
    [(ENGLISH, "minilm"), (JAPANESE, "ngrams"), (JAPANESE, "./multilingual"), (["café 1"], "minilm")],
)
def test_no_warning_otherwise(texts: list[str], encoder: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_language(catalogue(texts), TextConfig(encoder=encoder), SilentLogger())
