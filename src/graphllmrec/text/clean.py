"""From the columns of an item to the one text that the language model reads.

    "Title. Brand. Category > Subcategory. Description. Whatever else there is"

Structured fields come first because encoders cut at a token limit: what is lost is the tail of a long description.
Everything is a polars expression (compiled code, all cores); `item_text` is the same for one record.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.errors import TextError

FIRST = ("title", "brand", "categories", "description")
_CHARS_PER_TOKEN = 8  # more than any real text has: what lies beyond cannot reach the model
_TYPICAL_CHARS_PER_TOKEN = 4
_LONG_SENTENCE = 20  # characters; shorter repetitions ("x 3 in.") can be facts

_BLOCKS = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>|<!--.*?-->"
_INLINE_TAG = r"(?i)</?(?:a|abbr|b|big|code|em|font|i|mark|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*)?/?>"
_TAG = r"</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>"  # "<5 mm" and "a < b" are not tags
_INVISIBLE = r"[\x{00AD}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}\x{FEFF}]"
_CONTROL = r"[\p{Cc}\x{2028}\x{2029}\x{FFFD}]"
_URL = r"(?i)\b(?:https?://|www\.)[^\s<>\")]+"
_PLACEHOLDER = r"(?i)^(?:value not found|no description(?: available)?|not available|unknown|n/?a|none|null|nan)\.?$"

# What shops say about themselves. Only the phrase goes, so that a fact in the same sentence stays.
_PHRASES = r"(?i)\b(?:" + "|".join((
    r"(?:backed by |with |comes with )?(?:our |a |an )?(?:100\s?% |full |complete |total |lifetime )?"
    r"(?:customer )?satisfaction (?:is )?(?:100\s?% )?guarantee[ds]?",
    r"(?:\d+[- ]days? |100\s?% |full |with )*(?:a )?money[- ]back(?: guaranteed?)?",
    r"(?:with |and |plus |fast |enjoy )*free (?:shipping|delivery|returns)(?: (?:and|&) (?:free )?returns)?",
    r"(?:please )?click (?:here|the link(?: below)?|on the (?:link|picture|image))(?: (?:to|for) [a-z]+(?: more)?)?",
    r"(?:so |just )?(?:buy|order|shop|act) (?:it |yours )?(?:now|today)\b",
    r"(?:simply |just )?(?:scroll up and )?(?:click )?(?:the )?add to (?:cart|basket|bag)(?: (?:now|today|button))*",
    r"(?:at )?(?:the )?(?:best|lowest) prices?(?: guaranteed?| on the market| online| ever)?\b",
    r"(?:limited[- ]time offer|while supplies last|hurry up|don'?t miss (?:out|it)|satisfaction guaranteed)",
    r"(?:100\s?% )?brand new (?:and|&|with) high quality",
    r"(?:check out|visit|see|browse) (?:our|my) (?:store|shop|other (?:items|products|listings))"
    r"(?: for (?:more|other|new|latest|great)\b[^.!?]{0,60})?",
    r"(?:risk[- ]free purchase|buy with confidence|value not found|read more|see more product details)",
)) + r")[!.]*"  # fmt: skip
# A sentence about the shop, not the product; one that holds a number is kept.
_SHOP_SENTENCE = (
    r"(?i)(?:feel free to (?:contact|email|e-mail|message)|contact us|positive feedback|leave (?:us )?(?:a )?feedback|"
    r"customer (?:service|support) (?:team|is|will)|full refund|we (?:will|'ll) (?:refund|reply|respond)|"
    r"thank you for (?:shopping|your (?:purchase|visit))|(?:color|colour) may (?:vary|differ)[^.]*monitor)"
)


def item_texts(table: pl.DataFrame, columns: Sequence[str] | None = None, max_tokens: int = 96) -> pl.Series:
    """One clean text per row of `table` (n,) String; null where no column says anything.

    `columns`: which, in this order; default title, brand, categories, description, then every other text column except
    item_id. `max_tokens`: the limit of the model that will read it; when a row is longer than that, its longest field
    is shortened so that the fields after it are still read. Raises TextError for a column the table does not have.
    """
    names = _columns(table, columns)
    if not names:
        return pl.Series("text", [None] * len(table), dtype=pl.String)
    fields = table.select(_field(table, name, max_tokens) for name in names)
    fields = fields.with_columns(_shortened(names, max_tokens))
    joined = pl.concat_str(names, separator=". ", ignore_nulls=True).alias("text")
    texts = _without_repeats(fields.select(joined).to_series())
    return pl.select(pl.when(texts.str.contains(r"[\p{L}\p{N}]")).then(texts)).to_series().alias("text")


def item_text(record: Mapping[str, Any], columns: Sequence[str] | None = None, max_tokens: int = 96) -> str:
    """The text of one item, e.g. {"title": "Lamp", "categories": ["Home", "Light"]} -> "Lamp. Home > Light".

    The same as `item_texts`; "" when there is no text. Columns that the record lacks are skipped.
    """
    known = {name: _plain(value) for name, value in record.items() if name != "item_id" and value is not None}
    known = {name: value for name, value in known.items() if value is not None}
    names = None if columns is None else [name for name in columns if name in known]
    if not known:
        return ""
    text = item_texts(pl.DataFrame({name: [value] for name, value in known.items()}), names, max_tokens)[0]
    return text or ""


def _plain(value: Any) -> str | list[str] | None:
    """A string, or a list of strings, without lone surrogates (JSON may carry them); None for numbers."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [text for text in map(_plain, value) if isinstance(text, str)]
    return None


def _columns(table: pl.DataFrame, columns: Sequence[str] | None) -> list[str]:
    text = [
        name
        for name, kind in table.schema.items()
        if name != "item_id" and kind in (pl.String, pl.List(pl.String))
    ]  # fmt: skip
    if columns is None:
        return [name for name in FIRST if name in text] + [name for name in text if name not in FIRST]
    if missing := [name for name in columns if name not in text]:
        raise TextError(f"items have no text column {missing[0]!r}; text columns: {', '.join(text) or 'none'}")
    return list(columns)


def _field(table: pl.DataFrame, name: str, max_tokens: int) -> pl.Expr:
    """One column, cleaned; null where nothing remains."""
    text = pl.col(name)
    if table.schema[name] != pl.String:
        text = text.list.drop_nulls().list.join(" > " if name == "categories" else ", ")
    text = _without_markup(text.str.slice(0, max_tokens * _CHARS_PER_TOKEN * 4))  # markup may be most of it
    text = text.str.replace_all(_INVISIBLE, "").str.replace_all(_CONTROL, " ").str.normalize("NFC")
    text = text.str.replace_all(_URL, " ")
    if name == "title":  # a film may be called "Buy Now", or "None"
        text = pl.coalesce(_tidy(text.str.replace_all(_PHRASES, " ")), _tidy(text))
    else:
        text = _tidy(_without_shop_sentences(text).str.replace_all(_PHRASES, " "))
        text = pl.when(~text.str.contains(_PLACEHOLDER)).then(text)
    return text.str.slice(0, max_tokens * _CHARS_PER_TOKEN).alias(name)


def _without_markup(text: pl.Expr) -> pl.Expr:
    """Tags and entities gone. Twice, because shops escape their HTML twice (&amp;lt;br&amp;gt;)."""
    for _ in range(2):
        entity = text.str.contains(r"&(?:#\d|#[xX]|[A-Za-z])")
        text = pl.when(entity).then(_unescaped(pl.when(entity).then(text))).otherwise(text)
        text = text.str.replace_all(_BLOCKS, " ").str.replace_all(_INLINE_TAG, "").str.replace_all(_TAG, " ")
    return text


def _unescaped(text: pl.Expr) -> pl.Expr:
    return text.map_elements(html.unescape, return_dtype=pl.String, skip_nulls=True)


def _sentences(text: pl.Expr) -> pl.Expr:
    """List of sentences; joined by one space they are the text again."""
    return text.str.replace_all(r"([.!?])\s+", "${1}\n").str.split("\n")


def _without_shop_sentences(text: pl.Expr) -> pl.Expr:
    kept = pl.element().filter(~pl.element().str.contains(_SHOP_SENTENCE) | pl.element().str.contains(r"\d"))
    cleaned = _sentences(text.str.replace_all(r"\s+", " ")).list.eval(kept).list.join(" ")
    return pl.when(text.str.contains(_SHOP_SENTENCE)).then(cleaned).otherwise(text)


def _tidy(text: pl.Expr) -> pl.Expr:
    """Single spaces, no space before a full stop, no punctuation at the ends; null when no letter or digit is left."""
    text = text.str.replace_all(r"\s+", " ").str.replace_all(r"\s+([.,;!?])", "${1}")
    text = text.str.replace_all(r"([.,;:])(?:\s*[.,;:])+(\s|$)", "${1}${2}")
    text = text.str.strip_chars(" .,;:|>-*!~_")
    return pl.when(text.str.contains(r"[\p{L}\p{N}]")).then(text)


def _shortened(names: Sequence[str], max_tokens: int) -> list[pl.Expr]:
    """Fields that others follow, cut at a word where the row is too long: each keeps what the others leave, or half."""
    budget = max_tokens * _TYPICAL_CHARS_PER_TOKEN
    length = {name: pl.col(name).str.len_chars().fill_null(0).cast(pl.Int64) for name in names}
    total = pl.sum_horizontal(length.values())
    out = []
    for name in names[:-1]:
        room = pl.max_horizontal(pl.lit(budget // 2, pl.Int64), pl.lit(budget, pl.Int64) - (total - length[name]))
        cut = pl.col(name).str.slice(0, room.cast(pl.UInt32)).str.replace(r"\s+\S*$", "")
        rest = pl.sum_horizontal(length[other] for other in names[names.index(name) + 1 :])
        out.append(pl.when((length[name] > room) & (rest > 0)).then(cut).otherwise(pl.col(name)).alias(name))
    return out


def _without_repeats(texts: pl.Series) -> pl.Series:
    """Long sentences that a text has said before (word for word, in any case) are dropped; the first one stays."""
    frame = texts.to_frame("text").with_row_index("row").with_columns(part=_sentences(pl.col("text")))
    parts = frame.select("row", "part").explode("part").with_row_index("at")
    said = pl.col("part").str.to_lowercase().str.strip_chars(" .!?")
    again = (said.str.len_chars() >= _LONG_SENTENCE) & (pl.col("at") > pl.col("at").first().over("row", said))
    parts = parts.with_columns(again=again)
    rows = parts.filter(pl.col("again"))["row"].unique()
    kept = parts.filter(pl.col("row").is_in(rows.implode()) & ~pl.col("again"))
    changed = kept.group_by("row", maintain_order=True).agg(pl.col("part").str.join(" ").alias("shorter"))
    joined = frame.join(changed, on="row", how="left", maintain_order="left")
    return joined.select(pl.coalesce("shorter", "text").alias("text")).to_series()
