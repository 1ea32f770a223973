"""Which script and language the item texts are in, and whether the encoder knows it.

The packaged MiniLM was trained on English: text in another script becomes unknown tokens or single letters, and its
vectors say little. `check_language` warns; `text_figures` are the figures that `stats` shows.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from graphllmrec.data.tables import Items
from graphllmrec.protocol import Logger
from graphllmrec.text.clean import catalogue_texts
from graphllmrec.text.config import TextConfig
from graphllmrec.text.loading import packaged_tokenizer

UNKNOWN_LIMIT = 0.1  # share of unknown tokens from which on a warning is given
FOREIGN_LIMIT = 0.3  # share of letters that are not Latin, for an encoder that was trained on English
_SAMPLE = 2_000  # texts
_SCRIPTS = (
    "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai", "Hangul", "Hiragana",
    "Katakana", "Han",
)  # fmt: skip
_LANGUAGE_OF_SCRIPT = {"Hangul": "Korean", "Han": "Chinese", "Greek": "Greek", "Hebrew": "Hebrew", "Thai": "Thai"}
_COMMON_WORDS = {  # that the other languages here do not have
    "English": {"the", "and", "with", "of", "for", "from", "by"},
    "German": {"und", "der", "das", "mit", "für", "von", "auf", "nicht", "ein", "eine"},
    "French": {"le", "les", "et", "pour", "avec", "dans", "une", "du", "est", "sur"},
    "Spanish": {"el", "los", "las", "y", "con", "para", "por", "una", "del"},
    "Italian": {"il", "gli", "di", "per", "della", "nel", "che", "è"},
    "Portuguese": {"o", "os", "da", "do", "com", "em", "não", "uma"},
    "Dutch": {"het", "een", "van", "voor", "met", "op", "niet"},
    "Polish": {"i", "w", "z", "na", "dla", "się", "nie"},
    "Turkish": {"ve", "ile", "için", "bir"},
    "Swedish": {"och", "med", "för", "att", "till", "av"},
}
_FEW_WORDS = 10  # fewer common words than that in the sample say nothing


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Share of the letters in each script, largest first; {} without letters."""
    sample = pl.Series(texts, dtype=pl.String)
    letters = int(sample.str.count_matches(r"\p{L}").sum())
    counts = {name: int(sample.str.count_matches(rf"\p{{{name}}}").sum()) for name in _SCRIPTS} if letters else {}
    counts["other"] = max(letters - sum(counts.values()), 0)
    return {name: count / letters for name, count in sorted(counts.items(), key=lambda x: -x[1]) if count}


def guess_language(texts: Sequence[str]) -> str | None:
    """The most likely language, or the script where that does not tell it; None without letters."""
    found = scripts(texts)
    if not found:
        return None
    if found.get("Hiragana", 0) + found.get("Katakana", 0) > 0.05:
        return "Japanese"
    script = next(iter(found))
    if script != "Latin":
        return _LANGUAGE_OF_SCRIPT.get(script, f"{script} script")
    words = Counter(re.findall(r"[^\W\d_]+", " ".join(texts).lower()))
    hits = {language: sum(words[word] for word in common) for language, common in _COMMON_WORDS.items()}
    language = max(hits, key=lambda name: hits[name])
    return language if hits[language] >= _FEW_WORDS else "Latin script"


def unknown_share(texts: Sequence[str], tokenizer: Any) -> float:
    """Share of the tokens of these texts that the tokenizer does not know; it is one of the package `tokenizers`."""
    ids = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).tokens]
    unknown = sum(token in ("[UNK]", "<unk>") for token in ids)
    return unknown / len(ids) if ids else 0.0


def text_figures(items: Items, config: TextConfig | None = None) -> dict[str, Any]:
    """Language, scripts, and the share of tokens unknown to the packaged encoder (None where it is not installed)."""
    texts = _sampled(items, config or TextConfig())
    tokenizer = packaged_tokenizer() if texts else None
    return {
        "language": guess_language(texts),
        "scripts": scripts(texts),
        "unknown_tokens": None if tokenizer is None else unknown_share(texts, tokenizer),
    }


def text_lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of `text_figures` as lines of a table; none where no item has text."""
    if figures["language"] is None:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["scripts"].items() if share >= 0.005)
    lines = [("language of the text", f"looks like {figures['language']} ({shares})")]
    if figures["unknown_tokens"] is not None:
        lines.append(("unknown to minilm", f"{figures['unknown_tokens']:.1%} of the tokens"))
    return lines


def check_language(items: Items, config: TextConfig, logger: Logger) -> None:
    """Warn, and log, when the packaged encoder does not know the language of the items."""
    if config.encoder != "minilm":
        return
    texts = _sampled(items, config)
    found = scripts(texts)
    foreign = 1 - found.get("Latin", 0.0) if found else 0.0
    if foreign < UNKNOWN_LIMIT:  # nearly all Latin letters: those are known
        return
    tokenizer = packaged_tokenizer()
    unknown = None if tokenizer is None else unknown_share(texts, tokenizer)
    if foreign < FOREIGN_LIMIT and (unknown is None or unknown < UNKNOWN_LIMIT):
        return
    logger.log("text-language", language=guess_language(texts), foreign=round(foreign, 4), unknown=unknown)
    tokens = "" if not unknown else f" ({unknown:.0%} of the tokens are unknown to it)"
    warnings.warn(
        f"the item texts look like {guess_language(texts)}, and the text encoder 'minilm' knows English only{tokens}; "
        "set text.encoder to a multilingual model (a Hugging Face name such as intfloat/multilingual-e5-small, or a "
        "folder), or to 'ngrams', which works offline for any script",
        stacklevel=2,
    )


def _sampled(items: Items, config: TextConfig) -> list[str]:
    texts = catalogue_texts(items, config.columns, config.max_tokens).drop_nulls()
    return texts.gather_every(max(len(texts) // _SAMPLE, 1)).to_list()
