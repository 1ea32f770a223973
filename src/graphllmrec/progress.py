"""Progress of a fit: a bar and a line per piece of work (screen.py says where), and two log files.

    log.jsonl      values that follow from recipe, data and seed: the same bytes whether or not the fit was interrupted
    timings.jsonl  start and seconds of each piece of work, number of cached texts; every attempt adds lines

A resumed fit writes log.jsonl anew, from the logs in the checkpoints and from what is computed again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import TaskID

from graphllmrec.io import storage
from graphllmrec.screen import Screen, can_draw

LOG, TIMINGS = "log.jsonl", "timings.jsonl"
TIMING_EVENTS = ("begin", "end", "text")  # may differ between two fits of the same recipe, data and seed


class RunLogger:
    """A Logger (protocol.py) for the terminal and for files.

        with RunLogger() as logger:
            recommender.fit(data, out="runs/ease", logger=logger)

    A terminal or notebook shows a bar for the current piece of work, with its latest values; everywhere a line is
    printed at its end. `write_to` opens the files in the run folder and writes all that was logged since `new_run`.
    Each line of the two files is one object: "event" and the values; in timings.jsonl "time" (unix seconds) too.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._screen = Screen(quiet=quiet, console=console)
        self._task: TaskID | None = None
        self._name, self._done, self._began = "", 0, 0.0
        self._values: dict[str, float | str] = {}
        self._files: dict[str, TextIO] = {}
        self._waiting: dict[str, list[str]] = {LOG: [], TIMINGS: []}

    def __enter__(self) -> RunLogger:
        """Start drawing."""
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last piece of work, stop drawing and close the files."""
        self._end(failed=error is not None)
        self._screen.stop()
        self._close()

    def new_run(self) -> None:
        """Forget all events logged so far: they belong to another run, or to none."""
        self._end()
        self._close()
        for lines in self._waiting.values():
            lines.clear()

    def write_to(self, folder: Path) -> None:
        """Write all events so far and from now on into `folder`: log.jsonl anew, timings.jsonl continued."""
        with storage(folder / LOG):
            _drop_torn_line(folder / TIMINGS)
            self._files = {
                LOG: (folder / LOG).open("w", encoding="utf-8"),
                TIMINGS: (folder / TIMINGS).open("a", encoding="utf-8"),
            }
        for name, lines in self._waiting.items():
            self._write(name, "".join(lines))
            lines.clear()

    def finish_log(self) -> None:
        """Fitting is over: log.jsonl is complete and on disk. Later timings are still written."""
        log = self._files.pop(LOG)
        with storage(Path(log.name)):
            os.fsync(log.fileno())
            log.close()

    def begin(self, name: str, total: int | None = None) -> None:
        """A new piece of work begins, of `total` steps where known; the one before is over."""
        self._end()
        self._name, self._done, self._began, self._values = name, 0, time.monotonic(), {}
        self._task = self._screen.bars.add_task(name, total=total, rate="", values="")
        self._screen.draw()
        self.log("begin", name=name, total=total)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done; `values` are shown beside the bar."""
        self._done += steps
        self._values |= values
        if self._task is not None:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            values_text = _shown(self._values)
            self._screen.bars.update(self._task, advance=steps, rate=f"{rate:,.1f}/s", values=values_text)
            self._screen.draw(now=False)

    def log(self, event: str, **values: Any) -> None:
        """Write an event. Values are JSON values, or numbers of NumPy and torch."""
        name = TIMINGS if event in TIMING_EVENTS else LOG
        entry = {"event": event, **values} if name == LOG else {"time": round(time.time(), 3), "event": event, **values}
        line = json.dumps(entry, ensure_ascii=False, default=float) + "\n"
        if name in self._files:
            self._write(name, line)
        else:
            self._waiting[name].append(line)

    def say(self, message: str, style: str = "") -> None:
        """A message, above the bars."""
        self._screen.say(message, style)

    def _write(self, name: str, lines: str) -> None:
        with storage(Path(self._files[name].name)):
            self._files[name].write(lines)
            self._files[name].flush()

    def _close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk was reported when the line was written
                file.close()
        self._files = {}

    def _end(self, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.monotonic() - self._began
        self.log("end", name=self._name, seconds=round(seconds, 3), failed=failed)
        if self._task is not None:
            self._screen.bars.remove_task(self._task)
        if self._done or seconds > 0.05:  # no line for work without steps that took no time
            steps = f", {self._done:,} steps" if self._done > 1 else ""
            values = f", {_shown(self._values)}" if self._values else ""
            mark = "✓ " if self._screen.draws and not failed else ""
            self.say(f"{mark}{self._name}: {'stopped after ' if failed else ''}{seconds:.1f} s{steps}{values}")
        self._name, self._task = "", None


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """Events of timings.jsonl, [] without one; lines that are no event are left out: no manifest guards this file."""
    events = []
    for line in (folder / TIMINGS).read_bytes().splitlines() if (folder / TIMINGS).is_file() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


@contextmanager
def open_logger(logger: RunLogger | None) -> Iterator[RunLogger]:
    """The caller's logger; without one a new logger that draws where it can be seen and is silent elsewhere."""
    if logger is not None:
        yield logger
        return
    console = Console(stderr=True)
    with RunLogger(quiet=not can_draw(console), console=console) as own:
        yield own


def _drop_torn_line(path: Path) -> None:
    """Remove a last line without a line end, as a kill can leave it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _shown(values: dict[str, float | str]) -> str:
    return "  ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())  # fmt: skip
