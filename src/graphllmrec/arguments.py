"""Arguments of the front door, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

from graphllmrec.errors import ArgumentError


def id_list(ids: Any, what: str) -> list[object]:
    """Ids of any iterable as a list. Raises ArgumentError for one string, a table, lists of lists, and no iterable."""
    if type(ids).__name__ in ("DataFrame", "LazyFrame"):
        raise ArgumentError(f"{what} is a list of ids, e.g. one column of the table, not a {type(ids).__name__}")
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise ArgumentError(f"{what} is a list of ids, not {ids!r:.80}")
    try:
        found = list(ids)
    except TypeError:  # an array without dimensions
        raise ArgumentError(f"{what} is a list of ids, not {ids!r:.80}") from None
    for value in found:
        _check_single(value, f"{what} is one list of ids; it holds")
    return found


def one_id(value: Any, what: str) -> object:
    """One id. Raises ArgumentError for a list of them."""
    _check_single(value, f"{what} is one id, not")
    return value


def _check_single(value: Any, problem: str) -> None:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        raise ArgumentError(f"{problem} {value!r:.80}")


def list_length(k: Any) -> int:
    """Length of a list. Raises ArgumentError unless it is a whole number from 1 on."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ArgumentError(f"k is the length of the list, a whole number of at least 1, not {k!r:.80}")
    return int(k)


def one_of(value: Any, choices: Any, what: str, *, optional: bool = False) -> Any:
    """The value, one of the strings of the Literal `choices` (or None). Raises ArgumentError naming them."""
    known = get_args(choices)
    if not (optional and value is None) and value not in known:
        raise ArgumentError(f"{what} is one of {', '.join(map(repr, known))}, not {value!r:.80}")
    return value


def file_path(value: Any, what: str) -> Path:
    """A path. Raises ArgumentError for anything but a string or path."""
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(f"{what} is the path of a file, not {value!r:.80}")
    return Path(value)
