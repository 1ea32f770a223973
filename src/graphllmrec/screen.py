"""Where progress is shown: bars on a terminal or in a notebook, and lines of text.

On a terminal rich draws the bars (on stderr: stdout carries results only). In a notebook the bars and lines of one
logger share one output area; rich's own display there needs ipywidgets, so only its drawing is used. Elsewhere (a pipe,
a log file, a test) there are no bars, and lines are printed as they are.

The environment variable GRAPHLLMREC_QUIET=1 turns off everything here, in Python and on the command line.
"""

from __future__ import annotations

import os
import threading
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from graphllmrec.terminal import visible

QUIET = "GRAPHLLMREC_QUIET"
WIDE = 100  # columns of a terminal that has room for everything
REDRAWN_EVERY = 0.2  # seconds, in a notebook


def is_quiet() -> bool:
    """Does GRAPHLLMREC_QUIET ask for silence? Empty and "0" do not."""
    return os.environ.get(QUIET, "") not in ("", "0")


def can_draw(console: Console) -> bool:
    """Can bars be seen: on a terminal or in a notebook, in the main thread?

    FORCE_COLOR makes rich take any file for a terminal, so the file is asked too. Two threads that draw would write
    into each other's bars.
    """
    here = console.is_jupyter or (console.is_interactive and console.file.isatty())
    return here and threading.current_thread() is threading.main_thread()


class Screen:
    """Bars and lines of one logger. `bars` has one row per task, with the fields `rate` and `values`."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        if quiet or is_quiet():
            self.console.quiet = True
        terminal = self.console.is_terminal and not self.console.quiet
        self._area = _NotebookArea(self) if self.console.is_jupyter and not self.console.quiet else None
        self.draws = terminal or self._area is not None
        self.bars = Progress(
            *_columns(wide=self.console.width >= WIDE),
            console=self.console,
            disable=not terminal,
            redirect_stdout=False,
            transient=True,  # what is finished becomes a line
        )

    def start(self) -> None:
        """Start drawing."""
        self.bars.start()

    def stop(self) -> None:
        """Stop drawing: the bars disappear, the lines stay."""
        for task in self.bars.task_ids:
            self.bars.remove_task(task)
        self.bars.stop()
        self.draw()

    def draw(self, *, now: bool = True) -> None:
        """Draw a notebook's area again, unless it was just drawn and need not be `now`; a terminal draws by itself."""
        if self._area is not None:
            self._area.draw(now=now)

    def say(self, message: str, style: str = "") -> None:
        """A message, above the bars."""
        line = Text("\n".join(map(visible, message.split("\n"))), style=style)
        if self._area is not None:
            self._area.lines.append(line)
            self.draw()
        else:
            self.console.print(line, soft_wrap=True)


class _NotebookArea(JupyterMixin):
    """One output area of a notebook cell: lines, and below them the bars."""

    def __init__(self, screen: Screen) -> None:
        self.lines: list[Text] = []
        self._screen, self._handle, self._drawn = screen, None, 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines
        yield self._screen.bars

    def draw(self, *, now: bool) -> None:
        if not now and time.monotonic() - self._drawn < REDRAWN_EVERY:
            return
        self._drawn = time.monotonic()
        if self._handle is None:
            from IPython.display import display

            if self.lines or self._screen.bars.tasks:  # no empty area for a call that shows nothing
                self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)


class _FlexibleText(ProgressColumn):
    """A text that ends in an ellipsis where there is no room, so that bars and counts keep theirs."""

    def __init__(self, of: str, style: str = "") -> None:
        self._of, self._style = of, style
        super().__init__(Column(no_wrap=False))  # rich makes columns narrower that may wrap, before all others

    def render(self, task: Task) -> Text:
        """The description or a field of the task."""
        text = task.description if self._of == "description" else str(task.fields.get(self._of, ""))
        return Text(visible(text), style=self._style, no_wrap=True, overflow="ellipsis")


def _columns(*, wide: bool) -> list[ProgressColumn]:
    rate = [TextColumn("{task.fields[rate]}", style="cyan", markup=False)] if wide else []
    return [
        SpinnerColumn(),
        _FlexibleText("description"),
        BarColumn(bar_width=24 if wide else 12),
        MofNCompleteColumn(),
        *rate,
        TimeElapsedColumn(),
        _FlexibleText("values", "dim"),
    ]
