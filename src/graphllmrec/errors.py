"""All errors that input can cause. A message has the problem, the place, the value found, and what to do."""

from __future__ import annotations

_SHOWN = 20  # problems of a recipe in its message


class GraphLLMRecError(Exception):
    """Base of all errors of this package; the command line prints them without a traceback."""


class DataError(GraphLLMRecError):
    """A table that cannot be used; nothing was loaded.

    Attributes: what (the problem), file (or table in memory), line (1-based, header included), column, value (as
    found), hint (what to do), count (number of rows of the file with a problem; the first one is described). Where a
    table has no lines (parquet, a frame in memory), `counted` is "row" and `line` the number of the row, from 1 on.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
        value: object = None,
        hint: str | None = None,
        count: int = 1,
        counted: str = "line",
    ) -> None:
        self.what, self.file, self.line, self.column = what, file, line, column
        self.value, self.hint, self.count, self.counted = value, hint, count, counted
        where = ", ".join(
            part
            for part in (
                file or "",
                f"{counted} {line}" if line is not None else "",
                f"column '{column}'" if column is not None else "",
            )
            if part
        )
        found = f" (found {str(value)[:80]!r})" if value is not None else ""
        more = f" [{count:,} such problems in this file]" if count > 1 else ""
        text = (f"{where}: " if where else "") + what + found + more + (f"\n  hint: {hint}" if hint else "")
        super().__init__(text.encode(errors="backslashreplace").decode())  # half a surrogate pair cannot be printed


def _readable(text: str, longest: int) -> str:
    """The text on one line, without characters that command a terminal, and cut in its middle where it is long."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} … {text[-longest // 3 :]}"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


class RecipeError(GraphLLMRecError):
    """A recipe with one or more invalid settings; `problems` lists all of them, the message the first of very many."""

    def __init__(self, problems: list[str], source: str = "recipe") -> None:
        self.problems = [_readable(problem, 600) for problem in problems]
        more = len(problems) - _SHOWN
        shown = self.problems[:_SHOWN] + ([f"and {more:,} more"] if more > 0 else [])
        count = f"{_readable(source, 200)} has {len(problems):,} problem(s):\n"
        super().__init__(count + "\n".join(f"  - {problem}" for problem in shown))


class TextError(GraphLLMRecError):
    """Item text or text vectors that cannot be used (missing, NaN, zero, a wrong checksum)."""


class CheckpointError(GraphLLMRecError):
    """A run folder or checkpoint that is absent, incomplete, or of other settings or data."""


class StorageError(GraphLLMRecError, OSError):
    """A file or folder that cannot be written: a full disk, no permission."""


class EvaluationError(GraphLLMRecError):
    """Scores that cannot be ranked, a metric that does not exist, or evaluations that must not be compared."""


class ArgumentError(GraphLLMRecError, ValueError, TypeError):
    """An argument of a wrong type or value; the message says what is wanted."""


class UnknownIdError(GraphLLMRecError, KeyError):
    """A user or item id that is not in the data."""

    def __str__(self) -> str:  # KeyError would quote the message
        return str(self.args[0])


class Interrupted(GraphLLMRecError):
    """Training stopped on Ctrl-C or SIGTERM, after writing a checkpoint; the run can be resumed."""
