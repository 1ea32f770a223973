"""Arguments of the front door, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from graphllmrec.errors import ArgumentError


def id_list(ids: Any, what: str) -> list[object]:
    """Ids of any iterable as a list. Raises ArgumentError for one string, and for what is no iterable."""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise ArgumentError(f"{what} is a list of ids, not {ids!r:.80}")
    return list(ids)


def list_length(k: Any) -> int:
    """Length of a list. Raises ArgumentError unless it is a whole number from 1 on."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ArgumentError(f"k is the length of the list, a whole number of at least 1, not {k!r:.80}")
    return int(k)
