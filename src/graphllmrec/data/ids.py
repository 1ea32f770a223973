"""What an id is, once for both doors: columns of a table (`id_column`) and single values of the API (`clean_id`).

5, 5.0, "5", " 5 ", "5.0"   -> "5"          a number that a table has turned into a float is the number it was
"0007"                      -> "0007"       zeros in front count: "7" is another id
None, NaN, "", "nan"        -> missing

And which words stand for a missing text. In ids any case counts; a title may be "Nan" or "None of the above".
"""

from __future__ import annotations

import math
import re
from numbers import Integral, Real

import polars as pl

MISSING_IDS = ("", "nan", "nat", "<na>", "null", "none", "inf", "-inf")  # missing values as text
# What pandas, Python, SQL and JSON write for a missing text, in their spelling.
MISSING_TEXTS = ("nan", "NaN", "NaT", "<NA>", "None", "null", "NULL", r"\N")
# White space as polars knows it; Python would strip separators such as \x1c too, which can be a whole id.
_BLANK = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_WHOLE_FLOAT = r"^(-?\d+)\.0+$"
_EXACT = 2**53  # from here on, not every whole number is a float


def clean_id(value: object) -> str | None:
    """One id as a string; None for a missing one. NumPy and pandas values are as good as Python's.

    >>> [clean_id(value) for value in (5, 5.0, " 5 ", "0007", float("nan"), None)]
    ['5', '5', '5', '0007', None, None]
    """
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if not math.isfinite(number):
            return None
        whole = number == math.floor(number) and abs(number) < _EXACT
        value = int(number) if whole else pl.Series([number]).cast(pl.String)[0]  # written as in a column
    text = str(value).strip(_BLANK)
    if value is None or text.lower() in MISSING_IDS:
        return None
    return re.sub(_WHOLE_FLOAT, r"\1", text)


def is_missing(value: object) -> bool:
    """Is this None, NaN, or the NA or NaT of pandas?"""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) in ("<NA>", "NaT")


def is_missing_text(value: object) -> bool:
    """Is this a missing value, a blank text, or a word for one?"""
    return is_missing(value) or (isinstance(value, str) and value.strip() in ("", *MISSING_TEXTS))


def filled(text: pl.Series) -> pl.Series:
    """Strings as they are; null for nothing but white space, and for MISSING_TEXTS."""
    stripped = text.str.strip_chars()
    keep = ~stripped.is_in(["", *MISSING_TEXTS])
    return pl.select(pl.when(keep).then(text)).to_series().alias(text.name)


def clean_ids(distinct: pl.Series) -> pl.Series:
    """`clean_id` of distinct strings (n,); null for missing ones."""
    text = distinct.str.strip_chars(_BLANK)
    text = text.str.replace(_WHOLE_FLOAT, "${1}")
    missing = text.str.to_lowercase().is_in(list(MISSING_IDS))
    return pl.select(pl.when(~missing).then(text)).to_series()


def id_text(raw: pl.Series) -> pl.Series:
    """A column of any simple kind as strings: whole floats without their ".0"."""
    if not raw.dtype.is_float():
        return raw.cast(pl.String)
    whole = (raw == raw.floor()) & raw.is_finite() & (raw.abs() < _EXACT)
    number = raw.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.select(pl.when(whole).then(number).otherwise(raw.cast(pl.String))).to_series()
