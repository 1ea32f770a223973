"""Files of published data sets: their names, and the columns of those that do not name them.

MovieLens 100K (`u.data`, `u.item`), 1M and 10M (`ratings.dat`, `movies.dat`, `tags.dat`); later ones are csv.
Amazon reviews of 2014, 2018 and 2023 (`reviews_Books_5.json.gz`, `Books_5.json.gz`, `Books.jsonl.gz`, each with its
`meta_Books`). Their fields, as published by McAuley's group:

    2014, 2018  reviews: reviewerID, asin, overall, unixReviewTime (seconds), reviewText, summary
                items: asin, title, description, price ("$7.86", "$14.02 - $79.04", style sheets), rank, similar_item, …
    2023        reviews: user_id, parent_asin, asin (a variant), rating, timestamp (milliseconds), title, text
                items: parent_asin, title, description and features (lists), price (69.0, "from 14.99", "—", null), …

RecBole's `NAME.inter`, `NAME.item` and `NAME.train.inter` are found by their endings (files.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

GENRES = (  # the flags at the end of every line of MovieLens 100K's u.item, in its order (u.genre)
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A text table without a line of column names. Bytes that are not UTF-8 are latin-1."""

    table: str
    separator: str
    columns: tuple[str, ...]


LAYOUTS = {  # file name -> layout
    "u.data": Layout("interactions", "\t", ("user_id", "item_id", "rating", "timestamp")),
    "u.item": Layout("items", "|", ("item_id", "title", "release_date", "video_release_date", "imdb_url", *GENRES)),
    "ratings.dat": Layout("interactions", "::", ("user_id", "item_id", "rating", "timestamp")),
    "movies.dat": Layout("items", "::", ("item_id", "title", "genres")),
    "tags.dat": Layout("tags", "::", ("user_id", "item_id", "tag", "timestamp")),
}


def find_layout(file: str) -> Layout | None:
    """The layout of a file without column names, by its name (compressed or not); None for every other file."""
    return LAYOUTS.get(file.lower().removesuffix(".gz").removesuffix(".zst"))


def genres_of_flags(frame: pl.DataFrame) -> pl.DataFrame:
    """MovieLens 100K's columns of 0 and 1 as one list column `genres`; other frames are returned as they are."""
    flags = [name for name in GENRES if name in frame.columns]
    if not flags:
        return frame
    names = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in flags]
    return frame.with_columns(pl.concat_list(names).list.drop_nulls().alias("genres")).drop(flags)


def amazon_tables(stems: Iterable[str]) -> dict[str, str]:
    """Stem -> table for the file names of Amazon reviews, in lower case: "books_5" -> "interactions".

    A `meta_NAME` counts only beside reviews of the same NAME; `reviews_NAME` of 2014 also without it.
    """
    stems = list(stems)
    found = {stem: "interactions" for stem in stems if stem.startswith("reviews_")}
    for meta in (stem for stem in stems if stem.startswith("meta_")):
        name = meta.removeprefix("meta_")
        reviews = {name, f"{name}_5", f"reviews_{name}", f"reviews_{name}_5"}
        parts = {f"{name}.{part}" for part in ("train", "valid", "test")}
        if present := (reviews | parts).intersection(stems):
            found |= {meta: "items"} | dict.fromkeys(present & reviews, "interactions")
    return found


AMAZON_ATTRIBUTES = {"rank": "a sales rank", "similar_item": "a table of other items"}  # columns of its items, 2018
_AMOUNT = r"^\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s|-|$)"


def is_amazon_items(stem: str, id_column: str) -> bool:
    """Is this a file of Amazon's items?"""
    return stem.startswith("meta_") and id_column in ("asin", "parent_asin")


def amazon_prices(price: pl.Series) -> pl.Series:
    """The amounts of a price column of strings, Float64: the lowest one of a range; null where there is none.

    >>> amazon_prices(pl.Series(["$1,299.00", "from 14.99", "$14.02 - $79.04", "—", ".a-box{color:#fff}"])).to_list()
    [1299.0, 14.99, 14.02, None, None]
    """
    return price.str.extract(_AMOUNT).str.replace_all(",", "", literal=True).cast(pl.Float64)


def amazon_headline(columns: Sequence[str]) -> str | None:
    """The column with the headlines of Amazon's reviews of 2023, where `title` is not that of the item."""
    return "title" if {"parent_asin", "title", "text"} <= set(columns) else None
