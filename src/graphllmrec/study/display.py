"""Progress of a study: one bar for all fits, and below it one line for the current fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console

from graphllmrec.progress import RunLogger
from graphllmrec.screen import Screen, can_draw
from graphllmrec.study.search import Kind


class Display:
    """Bars on a terminal or in a notebook, and everywhere a line per fit (screen.py).

    The time left is estimated from the fits made so far: of the same kind, else of the same variant, else of any.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._screen = Screen(quiet=quiet, console=console)
        bars = self._screen.bars
        self._all = bars.add_task("study", rate="", values="")
        self._current = bars.add_task("", visible=False, rate="", values="")
        self._times: dict[Kind, list[float]] = {}
        self._left: list[Kind] = []
        self._number, self._began = 0, 0.0

    @classmethod
    def of_python(cls) -> Display:
        """The display of a call without one: it draws where it can be seen, and is silent elsewhere."""
        console = Console(stderr=True)
        return cls(quiet=not can_draw(console), console=console)

    def __enter__(self) -> Display:
        """Start drawing."""
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._screen.stop()

    def plan(self, kinds: Sequence[Kind], known: dict[Kind, list[float]], done: int) -> None:
        """Kinds of the fits to make, in order; seconds of earlier fits by kind; number of fits that are done."""
        self._left, self._times, self._number = list(kinds), known, done
        self._screen.bars.update(self._all, total=done + len(kinds), completed=done)

    def begin(self, label: str) -> None:
        """A fit begins."""
        self._began = time.monotonic()
        self._screen.bars.update(self._all, description=label, values=self._estimate())

    def end(self, result: str, kind: Kind, *, failed: bool = False) -> None:
        """The fit is over, with `result`."""
        seconds = time.monotonic() - self._began
        self._times.setdefault(kind, []).append(seconds)
        self._left.remove(kind)
        self._number += 1
        self._screen.bars.update(self._all, advance=1, values=self._estimate())
        self._screen.bars.update(self._current, visible=False)
        total = self._number + len(self._left)
        self.say(f"[{self._number}/{total}] {result}, {_duration(seconds)}{self._left_text()}", "red" if failed else "")

    def say(self, message: str, style: str = "") -> None:
        """A message, above the bars."""
        self._screen.say(message, style)

    def show(self, name: str, total: int | None) -> None:
        """A new piece of work of the current fit."""
        self._screen.bars.reset(self._current, total=total, description=f"  {name}", visible=True, values="")
        self._screen.draw()

    def advance(self, steps: int) -> None:
        """`steps` of it are done."""
        self._screen.bars.update(self._current, advance=steps)
        self._screen.draw(now=False)

    def _estimate(self) -> str:
        seconds = remaining(self._left, self._times)
        return "" if seconds is None else f"about {_duration(seconds)} left"

    def _left_text(self) -> str:
        return f" ({estimate})" if self._left and (estimate := self._estimate()) else ""


class FitLogger(RunLogger):
    """The logger of one fit of a study: writes into the run folder, and shows the work on the study's display."""

    def __init__(self, display: Display) -> None:
        super().__init__(quiet=True)
        self._display = display

    def begin(self, name: str, total: int | None = None) -> None:
        """A new piece of work begins."""
        super().begin(name, total)
        self._display.show(name, total)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done."""
        super().advance(steps, **values)
        self._display.advance(steps)


def remaining(left: Sequence[Kind], times: dict[Kind, list[float]]) -> float | None:
    """Estimated seconds of the fits `left`, from the `times` of finished fits; None where there are none."""
    if not times:
        return None
    everything = [seconds for each in times.values() for seconds in each]
    total = 0.0
    for kind in left:
        same_variant = [seconds for (_, name), each in times.items() if name == kind[1] for seconds in each]
        known = times.get(kind) or same_variant or everything
        total += sum(known) / len(known)
    return total


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
