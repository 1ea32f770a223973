"""From the columns of an item to the one text that the language model reads.

    "Title. Brand. Category > Subcategory. Description. Other text columns"

Structured fields come first because encoders cut at a token limit, so that only the end of a long description is lost.
Columns are cleaned as a whole, in compiled code; `item_text` does the same for one record.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from graphllmrec.data.roles import as_strings
from graphllmrec.data.tables import Items
from graphllmrec.errors import TextError

FIRST = ("title", "brand", "categories", "description")
_CHARS_PER_TOKEN = 8  # more than any real text has: the rest is beyond the token limit
_TYPICAL_CHARS_PER_TOKEN = 4
_LONGEST_CHATTER = 160  # characters of a sentence that can be dropped whole
_LONG_SENTENCE = 20  # characters; shorter repetitions ("x 3 in.") can be facts

_BLOCKS = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>|<!--.*?-->"
_INLINE_TAG = r"(?i)</?(?:a|abbr|b|big|code|em|font|i|mark|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*)?/?>"
_TAG = r"</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>"  # "<5 mm" and "a < b" are not tags
_INVISIBLE = r"[\x{00AD}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}\x{FEFF}]"
_CONTROL = r"[\p{Cc}\x{2028}\x{2029}\x{FFFD}]"
_SPACES = r"\s{2,}|[^\S ]"  # a lone space is left alone: there are many
_URL = r"(?i)\b(?:https?://|www\.)[^\s<>\")]+"
_PLACEHOLDER = r"(?i)^(?:value not found|no description(?: available)?|not available|unknown|n/?a|none|null|nan)\.?$"

# Advertising phrases of shops. Only the phrase is removed, so that a fact in the same sentence stays.
_PHRASES = r"(?i)\b(?:" + "|".join((
    r"(?:backed by |with |comes with )?(?:our |a |an )?(?:100\s?% |full |complete |total |lifetime )?"
    r"(?:customer )?satisfaction (?:is )?(?:100\s?% )?guarantee[ds]?",
    r"(?:\d+[- ]days? |100\s?% |full |with )*(?:a )?money[- ]back(?: guaranteed?)?",
    r"(?:with |and |plus |fast |enjoy )*free (?:shipping|delivery|returns)(?: (?:and|&) (?:free )?returns)?",
    r"(?:please )?click (?:here|the link(?: below)?|on the (?:link|picture|image))(?: (?:to|for) [a-z]+(?: more)?)?",
    r"(?:so |just )?(?:buy|order|shop|act) (?:it |yours )?(?:now|today)\b",
    r"(?:simply |just )?(?:scroll up and )?(?:click )?(?:the )?add to (?:cart|basket|bag)(?: (?:now|today|button))*",
    r"at (?:the )?(?:best|lowest) (?:possible )?prices?",
    r"(?:best|lowest) prices? (?:guaranteed?|on the market|online|ever)",
    r"(?:limited[- ]time offer|while supplies last|hurry up|don'?t miss (?:out|it)|satisfaction guaranteed)",
    r"(?:100\s?% )?brand new (?:and|&|with) high quality",
    r"(?:check out|visit|see|browse) (?:our|my) (?:store|shop|other (?:items|products|listings))"
    r"(?: for (?:the )?(?:more|other|new|latest|great)\b[^.!?]{0,60})?",
    r"(?:risk[- ]free purchase|buy with confidence|value not found|read more|see more product details)",
)) + r")[!.]*"  # fmt: skip
# A sentence about the shop, not the product. Kept if it has a number, or is long enough for a fact.
_SHOP_SENTENCE = (
    r"(?i)(?:feel free to (?:contact|email|e-mail|message)|contact us|full refund|"
    r"leave (?:us )?(?:a )?(?:positive |negative )?feedback|customer (?:service|support) (?:team|is|will)|"
    r"we (?:will|'ll) (?:refund|reply|respond)|thank you for (?:shopping|your (?:purchase|visit))|"
    r"(?:color|colour) may (?:vary|differ)[^.]*monitor)"
)


def catalogue_texts(items: Items, columns: Sequence[str] | None = None, max_tokens: int = 96) -> pl.Series:
    """One clean text per item (num_items,) String, as `item_texts`; by default of the columns whose role is text.

    An attribute that `columns` names is read as text too.
    """
    names = reading_order(items.text_columns) if columns is None else columns
    return item_texts(items.table, names, max_tokens)


def reading_order(columns: Sequence[str]) -> list[str]:
    """Title, brand, categories and description first, then the others as they come."""
    return [name for name in FIRST if name in columns] + [name for name in columns if name not in FIRST]


def item_texts(table: pl.DataFrame, columns: Sequence[str] | None = None, max_tokens: int = 96) -> pl.Series:
    """One clean text per row of `table` (n,) String; null where all columns are empty.

    `columns`: which, in this order, of any type; default all columns of strings except item_id, in `reading_order`.
    `max_tokens`: the token limit of the encoder; when a row is longer than that, its longest field is shortened so that
    the fields after it are still read. Raises TextError for a column the table does not have.
    """
    names = _columns(table, columns)
    if not names:
        return pl.Series("text", [None] * len(table), dtype=pl.String)
    fields = pl.DataFrame([_field(table, name, max_tokens) for name in names])
    fields = fields.with_columns(_shortened(names, max_tokens))
    joined = pl.concat_str(names, separator=". ", ignore_nulls=True).alias("text")
    return _without_repeats(fields.select(pl.when(joined != "").then(joined).alias("text")).to_series())


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
    others = [name for name in table.columns if name != "item_id"]
    if columns is None:
        return reading_order([name for name in others if table.schema[name] in (pl.String, pl.List(pl.String))])
    if missing := [name for name in columns if name not in others]:
        raise TextError(f"items have no text column {missing[0]!r}; columns: {', '.join(others) or 'none'}")
    return list(columns)


def _field(table: pl.DataFrame, name: str, max_tokens: int) -> pl.Series:
    """One column (n,), cleaned; null where it is empty then."""
    text = as_strings(table[name])
    if text.dtype != pl.String:
        text = text.list.drop_nulls().list.join(" > " if name == "categories" else ", ")
    text = _without_markup(text.str.slice(0, max_tokens * _CHARS_PER_TOKEN * 4))  # markup may be most of it
    text = text.str.replace_all(_INVISIBLE, "").str.replace_all(_CONTROL, " ").str.replace_all(_URL, " ")
    text = _where(text, text.str.contains(r"[^\x00-\x7F]"), lambda some: some.str.normalize("NFC"))
    text = text.str.replace_all(_SPACES, " ")
    if name == "title":  # a film may be called "Buy Now", or "None"
        short = _tidy(text.str.replace_all(_PHRASES, " "))
        text = short.zip_with(short.is_not_null(), _tidy(text))
    else:
        text = _where(text, text.str.contains(_SHOP_SENTENCE), _without_shop_sentences)
        text = _tidy(text.str.replace_all(_PHRASES, " "))
        text = text.set(text.str.contains(_PLACEHOLDER), None)
    return text.str.slice(0, max_tokens * _CHARS_PER_TOKEN).alias(name)


def _where(text: pl.Series, mask: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """`text` with `change` applied to the rows of `mask` only: most texts need no costly step."""
    rows = mask.arg_true()
    return text.scatter(rows, change(text.gather(rows))) if len(rows) else text


def _without_markup(text: pl.Series) -> pl.Series:
    """Tags and entities gone. Twice, because shops escape their HTML twice (&amp;lt;br&amp;gt;)."""
    for _ in range(2):
        text = _where(text, text.str.contains(r"&(?:#\d|#[xX]|[A-Za-z])"), _unescaped)
        text = text.str.replace_all(_BLOCKS, " ").str.replace_all(_INLINE_TAG, "").str.replace_all(_TAG, " ")
    return text


def _unescaped(text: pl.Series) -> pl.Series:
    return pl.Series([html.unescape(value) for value in text.to_list()], dtype=pl.String)


def _sentences(text: pl.Series) -> pl.Series:
    """List of sentences; joined by one space they are the text again."""
    return text.str.replace_all(r"([.!?])\s+", "${1}\n").str.split("\n")


def _without_shop_sentences(text: pl.Series) -> pl.Series:
    """Sentences about the shop dropped."""
    part = pl.element()
    chatter = part.str.contains(_SHOP_SENTENCE) & ~part.str.contains(r"\d") & (part.str.len_chars() <= _LONGEST_CHATTER)
    return _sentences(text).list.eval(part.filter(~chatter)).list.join(" ")


def _tidy(text: pl.Series) -> pl.Series:
    """No double spaces or punctuation, nothing at the ends but words; null when no letter or digit is left."""
    text = text.str.replace_all(_SPACES, " ").str.replace_all(r" ([.,;!?])", "${1}")
    text = text.str.replace_all(r"([.,;:])(?: ?[.,;:])+( |$)", "${1}${2}").str.strip_chars(" .,;:|>-*!~_")
    return text.set(~text.str.contains(r"[\p{L}\p{N}]"), None)


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
    frame = pl.DataFrame({"text": texts, "part": _sentences(texts)}).with_row_index("row")
    parts = frame.select("row", "part").explode("part").with_row_index("at")
    said = pl.col("part").str.to_lowercase().str.strip_chars(" .!?")
    again = (said.str.len_chars() >= _LONG_SENTENCE) & (pl.col("at") > pl.col("at").first().over("row", said))
    parts = parts.with_columns(again=again)
    rows = parts.filter(pl.col("again"))["row"].unique()
    kept = parts.filter(pl.col("row").is_in(rows.implode()) & ~pl.col("again"))
    changed = kept.group_by("row", maintain_order=True).agg(pl.col("part").str.join(" ").alias("shorter"))
    joined = frame.join(changed, on="row", how="left", maintain_order="left")
    return joined.select(pl.coalesce("shorter", "text").alias("text")).to_series()
