"""The role of each column of the items table: text, which the encoder reads, or an attribute, which filters use.

    type      numbers, booleans, dates and times are attributes; lists of floats, bytes and objects are left out
    name      title and description are text; price, stock, url, image, id, sku, … are attributes
    values    strings that are all numbers, dates, or true and false become attributes of that type; URLs, codes, values
              without letters, and one value for every item are attributes; what is left is text

The first rule that applies decides. `text.columns` of a recipe overrides it for the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from graphllmrec.data.ids import filled

Role = Literal["text", "attribute", "left out"]

PROSE = frozenset({"title", "description"})  # text whatever the values
LABELS = frozenset({
    "artist", "author", "authors", "brand", "categories", "category", "color", "colour", "director", "feature",
    "features", "genre", "genres", "keywords", "language", "manufacturer", "material", "publisher", "style", "summary",
    "tags", "theme", "themes",
})  # fmt: skip  # short text: "3M" is not a code here
_NAMED = {
    "a price, by its name": {"price", "prices", "cost", "msrp", "currency", "discount"},
    "stock, by its name": {"stock", "availability", "available", "inventory", "quantity", "qty"},
    "links, by its name": {"url", "urls", "uri", "link", "links", "href", "image", "images", "img", "thumbnail",
                           "photo", "photos", "picture", "pictures"},
    "ids, by its name": {"id", "ids", "sku", "asin", "isbn", "ean", "upc", "gtin", "mpn", "barcode", "uuid", "guid"},
    "a date, by its name": {"date", "datetime", "timestamp"},
}  # fmt: skip
_SAMPLE = 10_000  # values that tell text from attributes; whether a type holds is seen on all
_MOST = 0.8  # of the values
_NEARLY_ALL = 0.9
_FEW_WORDS = 4  # a mean of fewer words per value is no prose
_ENOUGH = 10  # values, to say that they are all different, or all the same
_EXACT_DIGITS = 15  # a float64 holds any number of so many digits

_MISSING = r"(?i)^(?:n/?a|nan|nil|none|null|unknown|\\N|\?+|[-–—]+)$"
_URL = r"(?i)^(?:(?:https?:)?//|www\.|data:|s3://)\S+$|^\S+\.(?:jpe?g|png|gif|webp|svg|bmp|mp4|pdf)$|^[\w.+-]+@[\w-]+\.\S+$"
_CODE = r"^[\x21-\x7E]*\d[\x21-\x7E]*$"  # one word of ASCII with a digit
_KEY = r"^(?:[A-Z0-9]*[A-Z][A-Z0-9]*\d[A-Z0-9]*|[0-9a-fA-F-]{16,}|[\x21-\x7E]{64,}|[A-Za-z]{1,8}[-_]?\d{3,})$"
_KEY_LENGTH = 8
_WORD = r"\S+"
_OBJECT = r"(?s)^\{.*\}$"
_CURRENCY = r"(US\$|[$€£¥₹₩]|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|SEK|KRW|BRL)\b|元|円|kr\b|zł)"
_THOUSANDS = r"^-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?$"
_DECIMAL_COMMA = r"^-?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d{1,2})?$"
_FLAGS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%d.%m.%Y")
_MOMENTS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M%:z", "%Y-%m-%d %H:%M")
_UTC = pl.Datetime("us")


@dataclass(frozen=True)
class ColumnRole:
    """What a column is, and why."""

    column: str
    role: Role
    reason: str


def read_column(raw: pl.Series, name: str, kind: str = "") -> tuple[pl.Series | None, ColumnRole]:
    """A column of the items table in its own type, and its role; None for a column that is left out.

    Text is String or List(String); empty strings and words such as "NaN" (data/ids.py) are null. Attributes are Int64,
    Float64, Boolean, Date, Datetime (UTC, microseconds, without a zone), Time, Duration, String or lists of those.
    `kind`: RecBole's type of the column.
    """
    raw = _plain(raw)
    if name == "title":
        return _title(raw), ColumnRole(name, "text", "the title")
    if kind in ("token_seq", "float_seq") and raw.dtype == pl.String:
        raw = raw.str.strip_chars().str.split(" ")
        raw = raw.cast(pl.List(pl.Float64), strict=False) if kind == "float_seq" else raw
    if isinstance(raw.dtype, pl.List):
        return _list_column(raw, name)
    if raw.dtype == pl.String:
        return _text_column(filled(raw), name)
    values, reason = _typed(raw)
    return values, ColumnRole(name, "left out" if values is None else "attribute", reason)


def role_by_type(values: pl.Series) -> ColumnRole:
    """The role of a column of a table that was not read from a file: strings are text, all else is an attribute."""
    text = values.dtype in (pl.String, pl.List(pl.String))
    return ColumnRole(values.name, "text" if text else "attribute", f"its type, {values.dtype}")


def fitting(values: pl.Series, kind: pl.DataType) -> pl.Series:
    """Values in the type of a column that is there already; null where a value does not fit it.

    Strings are read as in a file: "19.99" is a number, "yes" a boolean, "2024-03-01" a date. Fractions stay fractions
    in a column of whole numbers, numbers become text in a column of text. Raises PolarsError for a list that does not
    fit.
    """
    values = _plain(values)
    read = _flags if kind == pl.Boolean else _moments if kind.is_temporal() else _numbers if kind.is_numeric() else None
    if values.dtype == pl.String and read is not None:
        found = read(filled(values))
    elif values.dtype.is_nested() or values.dtype == pl.String:
        found = values
    else:
        found = _typed(values)[0]
    if found is None:
        return pl.Series(values.name, [None] * len(values), kind)
    if found.dtype == kind or (kind == pl.Int64 and found.dtype == pl.Float64):
        return found
    if kind in (pl.String, pl.List(pl.String)) and found.dtype.is_nested() == kind.is_nested():
        return as_strings(found) if found.dtype != pl.Boolean else pl.Series(values.name, [None] * len(values), kind)
    alike = found.dtype.is_numeric() == kind.is_numeric() and found.dtype.is_temporal() == kind.is_temporal()
    same = alike and found.dtype.is_nested() == kind.is_nested()
    return found.cast(kind, strict=kind.is_nested()) if same else pl.Series(values.name, [None] * len(values), kind)


def _plain(raw: pl.Series) -> pl.Series:
    """The same values in one of few types: categories as strings, bytes that are text as strings, arrays as lists."""
    kind = raw.dtype
    if isinstance(kind, pl.Categorical | pl.Enum | pl.Null):
        return raw.cast(pl.String)
    if isinstance(kind, pl.Binary):
        try:
            text = raw.cast(pl.String)
        except pl.exceptions.PolarsError:  # not UTF-8
            return raw
        return raw if text.str.contains(r"[\x00-\x08]").any() else text
    if isinstance(kind, pl.Array):
        return raw.arr.to_list() if len(kind.shape) == 1 else raw
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Categorical | pl.Enum | pl.Null):
        return raw.cast(pl.List(pl.String))
    if kind == pl.List(pl.List(pl.String)):  # Amazon's categories: several paths
        return raw.list.eval(pl.element().explode())
    return raw


def _typed(raw: pl.Series) -> tuple[pl.Series | None, str]:
    """A column that is not text, in one of few types, and what it holds."""
    kind = raw.dtype
    if kind == pl.Boolean:
        return raw, "true or false"
    if kind.is_integer():
        whole = raw.cast(pl.Int64, strict=False)
        return (whole, "whole numbers") if whole.null_count() == raw.null_count() else (raw.cast(pl.String), "numbers")
    if kind.is_float() or kind.is_decimal():
        return raw.cast(pl.Float64).fill_nan(None), "numbers"
    if isinstance(kind, pl.Datetime):
        utc = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else raw
        return utc.cast(_UTC), "dates"
    if kind == pl.Date:
        return raw, "dates"
    if kind == pl.Time:
        return raw, "times of day"
    if isinstance(kind, pl.Duration):
        return raw.cast(pl.Duration("us")), "durations"
    return None, "holds objects or bytes"


def _title(raw: pl.Series) -> pl.Series:
    """Titles as strings, whatever they were. Raises nothing: what cannot be a title has none."""
    if isinstance(raw.dtype, pl.List):
        return filled(raw.cast(pl.List(pl.String), strict=False).list.join(" "))
    values = raw if raw.dtype == pl.String else _typed(raw)[0]
    if values is None:
        return pl.Series(raw.name, [None] * len(raw), dtype=pl.String)
    return filled(as_strings(values))


def as_strings(values: pl.Series) -> pl.Series:
    """Values of any type of `read_column` as text: whole floats without ".0", lists as lists of strings."""
    if isinstance(values.dtype, pl.List):
        return values.cast(pl.List(pl.String))
    if isinstance(values.dtype, pl.Duration):
        return values.dt.to_string("polars")
    text = values.cast(pl.String)
    return text.str.strip_suffix(".0") if values.dtype.is_float() else text


def _list_column(raw: pl.Series, name: str) -> tuple[pl.Series | None, ColumnRole]:
    assert isinstance(raw.dtype, pl.List)
    if raw.dtype.inner == pl.String:
        entry = pl.element().str.strip_chars()
        lists = raw.list.eval(entry.filter(entry != ""))
        lists = pl.select(pl.when(lists.list.len() > 0).then(lists)).to_series()
        entries = _sample(lists.explode().drop_nulls())
        reason = _attribute_reason(entries, name, each_differs=False) if len(entries) else None
        return lists, ColumnRole(name, "attribute" if reason else "text", reason or _text_reason(entries, "entry"))
    if raw.dtype.inner.is_float() or raw.dtype.inner.is_nested():
        what = "holds vectors" if raw.dtype.inner.is_float() else "holds objects or bytes"
        return None, ColumnRole(name, "left out", what)
    values, reason = _typed(raw.explode())
    if values is None:
        return None, ColumnRole(name, "left out", reason)
    return raw.cast(pl.List(values.dtype)), ColumnRole(name, "attribute", f"lists of {reason}")


def _text_column(text: pl.Series, name: str) -> tuple[pl.Series, ColumnRole]:
    values = _sample(text.drop_nulls())
    if not len(values):
        return text, ColumnRole(name, "text", "no values")
    if name.lower() in PROSE:
        return text, ColumnRole(name, "text", f"a {name.lower()}, by its name")
    for read in (_flags, _moments, _numbers):
        found = None if read(values) is None else read(text)  # most columns are told by a part of them
        if found is not None:
            unit = f" in {money}" if (money := _currency(values)) else ""
            return found, ColumnRole(name, "attribute", _typed(found)[1] + unit)
    why = _attribute_reason(values.str.strip_chars(), name, each_differs=True)
    return text, ColumnRole(name, "attribute" if why else "text", why or _text_reason(values, "value"))


def _text_reason(values: pl.Series, each: str) -> str:
    if not len(values):
        return "no values"
    return f"text, {_mean(values.str.count_matches(_WORD)):.1f} words per {each}"


def _sample(values: pl.Series) -> pl.Series:
    """At most _SAMPLE of the values, spread evenly; the same ones each time."""
    return values.gather_every(-(-len(values) // _SAMPLE)) if len(values) > _SAMPLE else values


def _mean(values: pl.Series) -> float:
    """Mean of numbers, or share of true ones; 0 without any."""
    return float(values.to_numpy().mean()) if len(values) else 0.0


def _without_markers(text: pl.Series) -> pl.Series:
    """Stripped strings; null for what stands for a missing value in a column of another type: "N/A", "-", "null"."""
    text = text.str.strip_chars()
    return pl.select(pl.when(~text.str.contains(_MISSING)).then(text)).to_series().alias(text.name)


def _flags(text: pl.Series) -> pl.Series | None:
    """Booleans, when all values are "true" and "false", "yes" and "no", …; None otherwise."""
    lower = _without_markers(text).str.to_lowercase()
    found = set(lower.drop_nulls().unique().head(3).to_list())
    for pair in _FLAGS:
        if found == pair or (found and found < pair and len(next(iter(found))) > 1):
            return pl.select(pl.when(lower.is_not_null()).then(lower.str.slice(0, 1).is_in(["t", "y"]))).to_series()
    return None


def _moments(text: pl.Series) -> pl.Series | None:
    """Dates, or dates with a time (UTC), when all values are some in a form that can be read one way only."""
    values = _without_markers(text)
    if not values.drop_nulls().head(100).str.contains(r"\d").all() or not len(values.drop_nulls()):
        return None
    days = pl.select(pl.coalesce(*(values.str.to_date(shape, strict=False) for shape in _DATES))).to_series()
    if days.null_count() == values.null_count():
        return days
    iso = values.str.replace(r"^(\d{4}-\d\d-\d\d)[T ]\s*", "${1} ").str.replace(r"\s*(?:[zZ]|UTC|GMT)$", "+00:00")
    iso = iso.str.replace(r"([+-]\d\d)(\d\d)?$", "${1}:${2}").str.replace(r":$", ":00")
    read = [iso.str.to_datetime(shape, time_unit="us", strict=False).dt.replace_time_zone(None) for shape in _MOMENTS]
    moments = pl.select(pl.coalesce(*read, days.cast(_UTC))).to_series()
    return moments if moments.null_count() == values.null_count() else None


def _numbers(text: pl.Series) -> pl.Series | None:
    """Int64 or Float64, when all values are numbers that lose nothing by it; None otherwise."""
    values = _without_markers(text)
    given = values.drop_nulls()
    if not len(given) or given.str.contains(r"^[+-]?0\d").any():
        return None  # zeros in front belong to a code
    if given.str.extract(_CURRENCY).n_unique() > 1:
        return None  # amounts in several currencies cannot be compared
    values = values.str.replace_all(_CURRENCY, "").str.strip_chars()
    given = values.drop_nulls()
    if given.str.contains(_THOUSANDS).all():
        values = values.str.replace_all(",", "", literal=True)
    elif given.str.contains(_DECIMAL_COMMA).all():
        values = values.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    whole = values.cast(pl.Int64, strict=False)
    if whole.null_count() == values.null_count():
        return whole
    numbers = values.cast(pl.Float64, strict=False)
    lost = numbers.null_count() > values.null_count() or not numbers.drop_nulls().is_finite().all()
    return None if lost or given.str.contains(rf"\d{{{_EXACT_DIGITS + 1}}}").any() else numbers


def _currency(values: pl.Series) -> str | None:
    found = values.str.extract(_CURRENCY).drop_nulls()
    return str(found[0]) if len(found) else None


def _attribute_reason(values: pl.Series, name: str, *, each_differs: bool) -> str | None:
    """Why these strings (no nulls) are not text; None when they are. `each_differs`: may codes be told by that?"""
    words = values.str.count_matches(_WORD)
    if _mean(words) < _FEW_WORDS and (why := _by_name(name, values)):
        return why
    for what, found in _SHAPES:
        share = _mean(found(values))
        if share >= _MOST and (what != "codes" or name.lower() not in LABELS):
            return f"{what} ({share:.0%} of the values)"
    if name.lower() in LABELS or not each_differs or len(values) < _ENOUGH:
        return None
    distinct = values.n_unique()
    if distinct == 1:
        return "the same value for every item"
    if distinct >= _NEARLY_ALL * len(values) and _mean(values.str.contains(_CODE)) >= _NEARLY_ALL:
        return "codes, nearly all different"
    return None


_SHAPES: Sequence[tuple[str, Callable[[pl.Series], pl.Series]]] = (
    ("URLs or files", lambda values: values.str.contains(_URL)),
    ("no letters", lambda values: ~values.str.contains(r"\p{L}")),
    ("objects written as text", lambda values: values.str.contains(_OBJECT)),
    ("codes", lambda values: (values.str.len_bytes() >= _KEY_LENGTH) & values.str.contains(_KEY)),
)


def _by_name(name: str, values: pl.Series) -> str | None:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    for reason, names in _NAMED.items():
        one_word = not reason.startswith("ids") or _mean(values.str.contains(r"^\S+$")) >= _NEARLY_ALL
        if words & names and one_word:
            return reason
    return None
