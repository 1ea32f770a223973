"""Read a data folder: find the files, check every value, number users and items.

Formats (details in files.py and columns.py): `interactions.*` with user_id, item_id and maybe timestamp or position
and rating, or a ready-made `train.*`, `test.*`, `valid.*`; `items.*` with item_id, title and any other columns;
MovieLens and RecBole folders as published. csv, tsv, jsonl (.gz, .zst) and parquet. Users and items are numbered by
their sorted ids; items that occur in interactions only have no text. The order of rows in the files does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.checks import IdColumn, Problems, check_ids, check_ratings, check_text, find_rows
from graphllmrec.data.columns import match_columns
from graphllmrec.data.files import PARTS, Source, parse_name
from graphllmrec.data.filters import k_core_dataset
from graphllmrec.data.formats import check_short_rows, read_table
from graphllmrec.data.frames import Table, find_sources
from graphllmrec.data.items import read_items
from graphllmrec.data.meeting import unmet_ids
from graphllmrec.data.published import amazon_headline
from graphllmrec.data.roles import ColumnRole
from graphllmrec.data.tables import Dataset, IdMap, Interactions, Items
from graphllmrec.data.tags import add_tags, read_tags
from graphllmrec.data.ties import Ties, break_ties, tied_users
from graphllmrec.data.times import OrderColumn, check_position, check_timestamp
from graphllmrec.data.weights import Floats, Repeats, Scale, Weighting, fade, read_weights, settle_repeats
from graphllmrec.errors import DataError


def load_data(
    data: str | Path | Table | Mapping[str, Table],
    items: Table | None = None,
    *,
    min_rating: float | None = None,
    k_core: int = 0,
    max_bytes: int | None = None,
    name: str | None = None,
    ties: Ties = "hash",
    weights: Scale = "log",
    events: Mapping[str, float] | None = None,
    half_life: float = 0.0,
    repeats: Repeats = "first",
) -> Dataset:
    """Read and check a data folder, or tables in memory.

    Args:
        data: a data folder; one file or table of interactions (a DataFrame of polars or pandas, a LazyFrame, an Arrow
            table); or {"train": table, "test": table} and maybe "valid", a ready-made split.
        items: the table of items, or its file, where `data` is no folder that holds it.
        min_rating: keep interactions with rating >= this; users left without any disappear, the catalogue stays whole.
        k_core: keep only clicks of users and on items with at least this many distinct partners, repeated until stable;
            users left without any disappear, the items of the items table all stay. Not for a ready-made split.
        max_bytes: the most bytes that one file may hold, unpacked; None: no limit, but a compressed file (.gz, .zst,
            parquet) may not hold over a hundred times its own size and over 16 MiB.
        name: name of the dataset; default: the folder's.
        ties: what sorts interactions of one user at one time (data/ties.py): "hash" of the ids, or the rows of the
            "file". All interactions of a user are at one time where there is no order.
        weights: how columns weight and count become the weight of a click (data/weights.py): "log" of 1 + their value,
            "linear", or "none": every click counts the same.
        events: weight per type in the column event, e.g. {"view": 1, "buy": 5}; other types are left out.
        half_life: days in which the weight of a click halves; 0: no fading.
        repeats: a repeated (user, item) pair counts once ("first"), or its occurrences "add" up to a weight. Where
            there are weights, counts or events, they add up always.

    Users and items are numbered by their sorted ids, so the order of rows in the files does not matter. Repeated pairs
    keep their first occurrence in time.
    Raises DataError (file, line or row from 1 on, column, value, hint, number of bad rows) and then loads nothing;
    ArgumentError where `data` or `items` is no table.
    """
    weighting = Weighting(weights, dict(events or {}), half_life, repeats)
    sources = find_sources(data, items, max_bytes)
    place = str(data) if isinstance(data, str | Path) else "tables in memory"
    ready = "interactions" not in sources
    if ready and k_core > 0:
        raise DataError("a ready-made split cannot be k-core filtered", file=place, hint="set k_core to 0")
    parts = {
        part: _read_interactions(sources[part], min_rating, weighting)
        for part in (PARTS if ready else ("interactions",))
        if part in sources
    }
    tags = read_tags(sources["tags"]) if "tags" in sources else None
    if tags is not None:
        parts = {part: _tags_as_reviews(rows, tags, sources["tags"].name, part) for part, rows in parts.items()}
    order = _common_order(place, parts)
    if half_life and order != "timestamp":
        raise DataError("half_life needs timestamps", file=place, hint="leave half_life out")
    catalogue = _read_catalogue(sources["items"], parts) if "items" in sources else _Catalogue()
    dataset = _number_rows(parts, catalogue.table, ready, order, weighting, ties)
    dataset = replace(
        dataset,
        name=name or _name(data),
        source=place,
        items=replace(dataset.items, roles=catalogue.roles),
        notes=(*(note for rows in parts.values() for note in rows.notes), *catalogue.notes),
        apart=catalogue.apart,
    )
    if tags is not None and catalogue.table is not None:
        dataset = add_tags(dataset, tags, sources["tags"].name)
    if k_core > 0:
        listed = dataset.items.ids.ids.clear() if catalogue.table is None else catalogue.table["item_id"]
        dataset = k_core_dataset(dataset, k_core, listed)
    return _in_seconds(_with_ties_told(_with_repeats_told(dataset)), parts)


def _name(data: object) -> str:
    if not isinstance(data, str | Path):
        return "data"
    return Path(data).name.split(".")[0] or Path(data).resolve().name


def demo_data() -> Dataset:
    """MovieLens latest-small (610 users, 9,742 films, 100,836 ratings), shipped with the package under its own licence.

    Text columns: title, genres (list), tags (list, most frequent first); ordered by timestamp. The licence is in
    data/demo/README.txt: research use, no endorsement, no commercial use without permission.
    """
    return load_data(Path(__file__).parent / "demo", name="movielens-latest-small")


@dataclass(frozen=True)
class _Rows:
    """The interactions of one file: checked, still in the file's order and numbered within the file."""

    users: IdColumn
    items: IdColumn
    order: OrderColumn | None
    rating: NDArray[np.float32] | None
    review: pl.Series | None  # String
    weight: Floats | None
    order_kind: str | None  # "timestamp", "position" or None
    notes: list[str]


@dataclass(frozen=True)
class _Catalogue:
    """The items table, its columns' roles, notes, and what to say where no clicked item is in it."""

    table: pl.DataFrame | None = None
    roles: tuple[ColumnRole, ...] = ()
    notes: tuple[str, ...] = ()
    apart: str = ""


def _read_catalogue(source: Source, parts: dict[str, _Rows]) -> _Catalogue:
    """The items, held against the clicked ones. Raises DataError."""
    table, roles, notes = read_items(source)
    clicked = pl.concat([rows.items.ids for rows in parts.values()]).unique(maintain_order=True)
    unmet, do_not_meet = unmet_ids(clicked, table["item_id"], source.name)
    return _Catalogue(table, tuple(roles), (*notes, *unmet), unmet[0] if do_not_meet else "")


def _read_interactions(source: Source, min_rating: float | None, weighting: Weighting) -> _Rows:
    columns: dict[str, str] = {}

    def pick(names: Sequence[str]) -> Sequence[str]:
        _refuse_sessions(names, source.name)
        optional = (
            "timestamp", "position", "rating", "review", "summary", "weight", "count", "event", "label",
        )  # fmt: skip
        columns.update(match_columns(names, ("user_id", "item_id"), optional, source.name))
        if headline := amazon_headline(names):
            columns.setdefault("summary", headline)
        return list(columns.values())

    table = read_table(source, pick)
    problems = Problems(table)
    users, items = check_ids(problems, columns["user_id"]), check_ids(problems, columns["item_id"])
    kind = next((kind for kind in ("timestamp", "position") if kind in columns), None)
    order = None
    if kind is not None:
        order = (check_timestamp if kind == "timestamp" else check_position)(problems, columns[kind])
    rating = None
    if "rating" in columns:
        rating = check_ratings(problems, columns["rating"], required=min_rating is not None)
    notes = [*table.notes, *([f"{source.name}: {order.note}"] if order is not None and order.note else [])]
    weight, keep = read_weights(problems, columns, weighting, notes)
    problems.raise_any()
    if problems.blank.all():
        raise DataError("no rows, only column names", file=source.name, hint="is the export complete?")
    keep &= ~problems.blank
    if min_rating is not None:
        if rating is None:
            raise DataError("no rating column for min_rating", file=source.name, hint="leave min_rating out")
        keep &= rating >= np.float32(min_rating)
        if not keep.any():
            raise DataError(
                f"no interaction has a rating >= {min_rating:g}", file=source.name, column=columns["rating"]
            )
    elif rating is not None and (low := int(((rating <= 0) & keep).sum())):
        notes.append(
            f"{source.name}: {low:,} ratings of 0 or less count as clicks like all others; "
            "keep the good ones only with data.min_rating"
        )
    rating = _some_ratings(rating, problems, source, notes)
    if kind == "timestamp" and "position" in columns:
        notes.append(f"{source.name}: ordered by {columns['timestamp']}; column {columns['position']} is not used")
    review = _reviews(problems, source, columns, notes)
    return _select(_Rows(users, items, order, rating, review, weight, kind, notes), keep)


def _some_ratings(
    rating: NDArray[np.float32] | None, problems: Problems, source: Source, notes: list[str]
) -> NDArray[np.float32] | None:
    """The ratings, NaN where a row has none; None where no row has any. Adds to `notes`."""
    if rating is None:
        return None
    rows, missing = int((~problems.blank).sum()), int((np.isnan(rating) & ~problems.blank).sum())
    if missing:
        notes.append(f"{source.name}: {missing:,} of {rows:,} rows have no rating")
    return None if missing == rows else rating


def _reviews(problems: Problems, source: Source, columns: dict[str, str], notes: list[str]) -> pl.Series | None:
    """The users' reviews (n_rows,), each headline before its text; None where no row has any. Adds to `notes`."""
    names, texts = [columns[meaning] for meaning in ("summary", "review") if meaning in columns], []
    for name in names:
        text = check_text(problems, name)
        if text is None:
            notes.append(f"{source.name}: column {name} holds no text, not read as a review")
        elif text.null_count() < len(text):
            texts.append(text.str.strip_chars_end(".") if name != names[-1] else text)
    if not texts:
        return None
    lacking = (texts[-1].is_null() & pl.Series(~problems.blank)).any()
    if lacking and (parse_name(source) or ("", ""))[1] in ("csv", "tsv"):
        check_short_rows(source)  # a line break in a text would make two wrong rows of one
    frame = pl.DataFrame(texts)
    joined = pl.concat_str(pl.all(), separator=". ", ignore_nulls=True).alias("review")
    review = frame.select(pl.when(joined != "").then(joined)).to_series()
    written = len(review) - review.null_count()
    notes.append(f"{source.name}: {written:,} reviews read from {' and '.join(frame.columns)}")
    return review


def _tags_as_reviews(rows: _Rows, tags: pl.DataFrame, file: str, part: str) -> _Rows:
    """The tags of a user for an item as the review of that interaction; unchanged where there are reviews already.

    Needs tags with user ids. Tags without an interaction of the same user describe the item only.
    """
    if rows.review is not None:
        return rows
    given = tags.drop_nulls().unique().sort("tag")
    given = given.select(
        pl.Series("user", find_rows(rows.users.ids, given["user_id"])),
        pl.Series("item", find_rows(rows.items.ids, given["item_id"])),
        pl.col("tag"),
    )
    joined = given.group_by("user", "item", maintain_order=True).agg(pl.col("tag").str.join(", "))
    pairs = pl.DataFrame({"user": rows.users.code, "item": rows.items.code})
    review = pairs.join(joined, on=["user", "item"], how="left", maintain_order="left")["tag"]
    written = len(review) - review.null_count()
    if not written:
        return rows
    note = f"{file}: tags serve as reviews of {written:,} rows of {part}"
    return replace(rows, review=review, notes=[*rows.notes, note])


def _refuse_sessions(names: Sequence[str], file: str) -> None:
    found = match_columns(names, (), ("user_id", "item_id", "items"), file)
    if "items" in found and "item_id" not in found:
        raise DataError(
            "a list of items per row: this is a session set",
            file=file,
            column=found["items"],
            hint="session models are not part of this release; give one (user_id, item_id) pair per row",
        )


def _select(rows: _Rows, keep: NDArray[np.bool_]) -> _Rows:
    """The rows of `keep`, and the ids that occur in them."""
    if keep.all():
        return rows
    return _Rows(
        _compact(rows.users, keep),
        _compact(rows.items, keep),
        None if rows.order is None else replace(rows.order, ticks=rows.order.ticks[keep]),
        None if rows.rating is None else rows.rating[keep],
        None if rows.review is None else rows.review.filter(pl.Series(keep)),
        None if rows.weight is None else rows.weight[keep],
        rows.order_kind,
        rows.notes,
    )


def _compact(column: IdColumn, keep: NDArray[np.bool_]) -> IdColumn:
    code = column.code[keep]
    used = np.bincount(code, minlength=len(column.ids)) > 0
    return IdColumn(column.ids.filter(pl.Series(used)), (np.cumsum(used) - 1)[code])


def _common_order(place: str, parts: dict[str, _Rows]) -> str | None:
    kinds = {rows.order_kind for rows in parts.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{part}: {rows.order_kind or 'none'}" for part, rows in parts.items())
        raise DataError(f"the parts are ordered differently ({listed})", file=place, hint="give all the same column")
    return kinds.pop()


def _number_rows(
    parts: dict[str, _Rows],
    catalogue: pl.DataFrame | None,
    ready: bool,
    order: str | None,
    weighting: Weighting,
    ties: Ties,
) -> Dataset:
    """Row numbers for users and items over all parts, and the parts as Interactions, ordered by their ticks."""
    users = pl.concat([rows.users.ids for rows in parts.values()]).unique().sort()
    listed = [] if catalogue is None else [catalogue["item_id"]]
    items = pl.concat([*listed, *(rows.items.ids for rows in parts.values())]).unique().sort()
    newest = max(
        float(rows.order.ticks.max()) / rows.order.per_second if rows.order else 0.0 for rows in parts.values()
    )
    numbered: dict[str, Interactions] = {}
    read = 0
    for part, rows in parts.items():
        user = find_rows(users, rows.users.ids)[rows.users.code]
        item = find_rows(items, rows.items.ids)[rows.items.code]
        ticks = None if rows.order is None else rows.order.ticks
        clicks = Interactions(user, item, ticks, rows.rating, rows.review, rows.weight).sorted()
        if ties == "hash":
            clicks = break_ties(clicks, users, items)
        if weighting.half_life and rows.order is not None:
            clicks = fade(clicks, weighting.half_life, newest, rows.order.per_second)
        numbered[part] = settle_repeats(clicks, len(items), weighting)
        read += len(user)
    table = items.alias("item_id").to_frame()
    if catalogue is not None:
        table = table.join(catalogue, on="item_id", how="left", maintain_order="left")
    return Dataset(
        name="",
        users=IdMap(users),
        items=Items(IdMap(items), table),
        interactions=Interactions.joined(list(numbered.values())) if ready else numbered["interactions"],
        ready=numbered if ready else {},
        order=order,
        repeats=read - sum(map(len, numbered.values())),
        ties=ties,
    )


def _with_repeats_told(dataset: Dataset) -> Dataset:
    """The dataset with a note on its repeated pairs, where there are any."""
    if not dataset.repeats:
        return dataset
    how = "the first of each is kept" if dataset.interactions.weight is None else "their weights add up"
    return replace(dataset, notes=(*dataset.notes, f"{dataset.repeats:,} repeated (user, item) pairs: {how}"))


def _with_ties_told(dataset: Dataset) -> Dataset:
    """The dataset with its share of tied users, and a note where there are any."""
    share = tied_users(dataset.ready["train"] if dataset.ready else dataset.interactions)
    if not share:
        return dataset
    how = "a fixed hash of the ids decides" if dataset.ties == "hash" else "the order of rows in the file decides"
    note = f"the newest two interactions of {share:.0%} of the users have the same {dataset.order}; {how} (data.ties)"
    return replace(dataset, tied_users=share, notes=(*dataset.notes, note))


def _in_seconds(dataset: Dataset, parts: dict[str, _Rows]) -> Dataset:
    """The dataset with times in unix seconds; the finer times have sorted it."""
    units = {part: 1 if rows.order is None else rows.order.per_second for part, rows in parts.items()}
    if all(unit == 1 for unit in units.values()):
        return dataset
    if not dataset.ready:
        return replace(dataset, interactions=_divided(dataset.interactions, units["interactions"]))
    ready = {part: _divided(rows, units[part]) for part, rows in dataset.ready.items()}
    return replace(dataset, ready=ready, interactions=Interactions.joined(list(ready.values())))


def _divided(interactions: Interactions, by: int) -> Interactions:
    order = None if interactions.order is None else interactions.order // by
    return replace(interactions, order=order)
