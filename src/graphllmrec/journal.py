"""What a fit reports: bars on a terminal, a line per stage elsewhere (on stderr), and log.jsonl in the run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


class RunJournal:
    """A Journal (models.base) for people and for files.

        with RunJournal() as journal:
            recommender.fit(data, out="runs/ease", journal=journal)

    The terminal shows one bar per stage with its rate and the latest values; what is not a terminal gets one line when
    a stage ends. `keep_in` names the JSONL file; facts logged before that are kept and written then. Each line of the
    file is one object: "time" (unix seconds), "event", and the values.
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
        self._file: TextIO | None = None
        self._waiting: list[str] = []

    def __enter__(self) -> RunJournal:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last stage, stop drawing and close the file."""
        self._end_stage(failed=error is not None)
        self._progress.stop()
        if self._file is not None:
            self._file.close()
            self._file = None

    def keep_in(self, path: Path) -> None:
        """Append everything logged so far and from now on to the JSONL file `path`."""
        self._file = path.open("a", encoding="utf-8")
        for line in self._waiting:
            self._file.write(line)
        self._waiting.clear()
        self._file.flush()

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps where known; the one before is over."""
        self._end_stage()
        self._name, self._done, self._began, self._values = name, 0, time.monotonic(), {}
        self._task = self._progress.add_task(name, total=total, rate="", values="")
        self.log("stage", name=name, total=total)

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """`steps` done; `values` are shown beside the bar."""
        self._done += steps
        self._values |= values
        if self._task is not None:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            self._progress.update(self._task, advance=steps, rate=f"{rate:,.1f}/s", values=_shown(self._values))

    def log(self, event: str, **values: Any) -> None:
        """Keep a fact. Values are what JSON knows, or numbers of NumPy and torch."""
        entry = {"time": round(time.time(), 3), "event": event, **values}
        line = json.dumps(entry, ensure_ascii=False, default=float) + "\n"
        if self._file is None:
            self._waiting.append(line)
        else:
            self._file.write(line)
            self._file.flush()

    def say(self, message: str, style: str = "") -> None:
        """One line for the person, above the bars."""
        self.console.print(Text(message, style=style), soft_wrap=True)

    def _end_stage(self, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.monotonic() - self._began
        self.log("stage-end", name=self._name, seconds=round(seconds, 3), failed=failed)
        if self._task is not None and not failed:
            total = self._progress.tasks[self._progress.task_ids.index(self._task)].total
            self._progress.update(self._task, total=self._done or total or 1, completed=self._done or total or 1)
            self._progress.stop_task(self._task)
        if not self.console.is_terminal and (
            self._done or seconds > 0.05
        ):  # a stage that only opens others says nothing
            steps = f", {self._done:,} steps" if self._done > 1 else ""
            values = f", {_shown(self._values)}" if self._values else ""
            self.say(f"{self._name}: {'stopped after ' if failed else ''}{seconds:.1f} s{steps}{values}")
        self._name, self._task = "", None


def _shown(values: dict[str, float | str]) -> str:
    return "  ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())  # fmt: skip
