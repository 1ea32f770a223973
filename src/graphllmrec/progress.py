"""Progress of a fit: bars on a terminal, one line per piece of work elsewhere (on stderr), and two log files.

    log.jsonl      values that follow from recipe, data and seed: the same bytes whether or not the fit was interrupted
    timings.jsonl  start and seconds of each piece of work, number of cached texts; every attempt adds lines

A resumed fit writes log.jsonl anew, from the logs in the checkpoints and from what is computed again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

LOG, TIMINGS = "log.jsonl", "timings.jsonl"
TIMING_EVENTS = ("begin", "end", "text")  # may differ between two fits of the same recipe, data and seed


class RunLogger:
    """A Logger (protocol.py) for the terminal and for files.

        with RunLogger() as logger:
            recommender.fit(data, out="runs/ease", logger=logger)

    A terminal shows one bar per piece of work with its rate and the latest values; elsewhere one line is printed at its
    end. `write_to` opens the files in the run folder and writes all that was logged since `new_run`. Each line of the
    two files is one object: "event" and the values; in timings.jsonl "time" (unix seconds) too.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[values]}", style="dim"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            redirect_stdout=False,  # stdout carries results only, also while bars are drawn
        )
        self._task: TaskID | None = None
        self._name, self._done, self._began = "", 0, 0.0
        self._values: dict[str, float | str] = {}
        self._files: dict[str, TextIO] = {}
        self._waiting: dict[str, list[str]] = {LOG: [], TIMINGS: []}

    def __enter__(self) -> RunLogger:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last piece of work, stop drawing and close the files."""
        self._end(failed=error is not None)
        self._progress.stop()
        self._close()

    def new_run(self) -> None:
        """Forget all events logged so far: they belong to another run, or to none."""
        self._end()
        self._close()
        for lines in self._waiting.values():
            lines.clear()

    def write_to(self, folder: Path) -> None:
        """Write all events so far and from now on into `folder`: log.jsonl anew, timings.jsonl continued."""
        _drop_torn_line(folder / TIMINGS)
        self._files = {
            LOG: (folder / LOG).open("w", encoding="utf-8"),
            TIMINGS: (folder / TIMINGS).open("a", encoding="utf-8"),
        }
        for name, lines in self._waiting.items():
            self._files[name].writelines(lines)
            self._files[name].flush()
            lines.clear()

    def finish_log(self) -> None:
        """Fitting is over: log.jsonl is complete and on disk. Later timings are still written."""
        log = self._files.pop(LOG)
        os.fsync(log.fileno())
        log.close()

    def begin(self, name: str, total: int | None = None) -> None:
        """A new piece of work begins, of `total` steps where known; the one before is over."""
        self._end()
        self._name, self._done, self._began, self._values = name, 0, time.monotonic(), {}
        self._task = self._progress.add_task(name, total=total, rate="", values="")
        self.log("begin", name=name, total=total)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done; `values` are shown beside the bar."""
        self._done += steps
        self._values |= values
        if self._task is not None:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            self._progress.update(self._task, advance=steps, rate=f"{rate:,.1f}/s", values=_shown(self._values))

    def log(self, event: str, **values: Any) -> None:
        """Write an event. Values are JSON values, or numbers of NumPy and torch."""
        name = TIMINGS if event in TIMING_EVENTS else LOG
        entry = {"event": event, **values} if name == LOG else {"time": round(time.time(), 3), "event": event, **values}
        line = json.dumps(entry, ensure_ascii=False, default=float) + "\n"
        if name in self._files:
            self._files[name].write(line)
            self._files[name].flush()
        else:
            self._waiting[name].append(line)

    def say(self, message: str, style: str = "") -> None:
        """One line on the terminal, above the bars."""
        self.console.print(Text(message, style=style), soft_wrap=True)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _end(self, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.monotonic() - self._began
        self.log("end", name=self._name, seconds=round(seconds, 3), failed=failed)
        if self._task is not None and not failed:
            total = self._progress.tasks[self._progress.task_ids.index(self._task)].total
            self._progress.update(self._task, total=self._done or total or 1, completed=self._done or total or 1)
            self._progress.stop_task(self._task)
        if not self.console.is_terminal and (
            self._done or seconds > 0.05
        ):  # no line for work without steps that took no time
            steps = f", {self._done:,} steps" if self._done > 1 else ""
            values = f", {_shown(self._values)}" if self._values else ""
            self.say(f"{self._name}: {'stopped after ' if failed else ''}{seconds:.1f} s{steps}{values}")
        self._name, self._task = "", None


def _drop_torn_line(path: Path) -> None:
    """Remove a last line without a line end, as a kill can leave it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _shown(values: dict[str, float | str]) -> str:
    return "  ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())  # fmt: skip
