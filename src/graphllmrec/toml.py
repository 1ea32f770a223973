"""TOML files and settings as plain values, within the bounds of what settings can be.

Beyond them (a number of thousands of digits, tables nested a thousand deep) the errors of the parser and of the
validation are tracebacks, or take minutes; here they are one sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphllmrec.errors import RecipeError

MAX_CHARACTERS = 1_000_000  # of a file, or of one value
MAX_DEPTH = 16  # tables and lists within each other
MAX_VALUES = 100_000  # of a file
MAX_WHOLE = 2**63  # TOML has whole numbers of 64 bits


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises RecipeError naming the file and what is wrong."""
    try:
        size = path.stat().st_size
        if size > 4 * MAX_CHARACTERS:
            raise OverflowError(f"{size:,} bytes; it has at most {MAX_CHARACTERS:,} characters")
        return check_values(parse_toml(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise RecipeError([f"cannot be read: {error.strerror}"], str(path)) from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise RecipeError([f"not valid TOML: {error}"], str(path)) from None


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as plain values. Raises TOMLDecodeError, and ValueError, RecursionError or OverflowError beyond bounds."""
    if len(text) > MAX_CHARACTERS:
        raise OverflowError(f"{len(text):,} characters; there may be {MAX_CHARACTERS:,}")
    return tomllib.loads(text)


def check_values(values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """`values` with plain tables in place of other mappings. Raises RecipeError for what is beyond the bounds."""
    left, problem = [MAX_VALUES], ""

    def plain(value: Any, key: str, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise _BeyondBounds(f"more than {MAX_VALUES:,} values")
        if isinstance(value, Mapping | list | tuple) and depth == MAX_DEPTH:
            raise _BeyondBounds(f"{_start(key)}: tables and lists nested more than {MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            if wrong := [name for name in value if not isinstance(name, str)]:
                raise _BeyondBounds(f"{_start(key)}: the keys of a table are strings, not {wrong[0]!r:.80}")
            return {name: plain(entry, f"{key}.{name}" if key else name, depth + 1) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry, key, depth + 1) for entry in value]
        if isinstance(value, np.generic):
            value = value.item()
        if value is not None and not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise _BeyondBounds(f"{_start(key)}: settings are strings, numbers, lists and tables, not {kind}")
        if isinstance(value, int) and not -MAX_WHOLE <= value < MAX_WHOLE:
            raise _BeyondBounds(f"{_start(key)}: a whole number of more than 64 bits")
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            raise _BeyondBounds(f"{_start(key)}: {len(value):,} characters; there may be {MAX_CHARACTERS:,}")
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _BeyondBounds(f"{_start(key)}: half a character (a lone surrogate, {value!r:.80})") from None
        return value

    try:
        found: dict[str, Any] = plain(values, "", 0)
        return found
    except _BeyondBounds as error:
        problem = str(error)
    raise RecipeError([problem], label)


class _BeyondBounds(Exception):
    """Values that no setting can have."""


def _start(key: str) -> str:
    return key[:80] or "the top"
