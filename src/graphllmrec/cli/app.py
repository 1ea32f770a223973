"""The command line. Results go to stdout, progress and messages to stderr; `--json` prints one object as the last line.

Command functions import what they need when they run, so `graphllmrec --help` loads neither torch nor polars.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graphllmrec.cli.card import card
from graphllmrec.cli.demo import demo
from graphllmrec.cli.doctor import doctor
from graphllmrec.cli.evaluate import compare, evaluate, report, stats
from graphllmrec.cli.fit import fit
from graphllmrec.cli.grok_lab import grok_lab
from graphllmrec.cli.init import init
from graphllmrec.cli.recommend import explain, recommend, similar
from graphllmrec.cli.refit import refit
from graphllmrec.cli.study import study
from graphllmrec.errors import GraphLLMRecError, Interrupted
from graphllmrec.terminal import visible


class Commands(TyperGroup):
    """The group of all commands; turns our errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Errors of this package: one red message, exit code 2; an interrupted fit: 130."""
        warnings.showwarning = _show_warning
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _message("interrupted", "yellow")
            raise typer.Exit(130) from None
        except (GraphLLMRecError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            interrupted = isinstance(error, Interrupted)
            _message(str(error), "yellow" if interrupted else "red")
            raise typer.Exit(130 if interrupted else 2) from None


app = typer.Typer(
    name="graphllmrec",
    cls=Commands,
    help="Train, evaluate and explain recommenders that combine user clicks with item texts.",
    epilog="Start with: graphllmrec demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"graphllmrec {installed('graphllmrec')}")
        raise typer.Exit


def _message(text: str, colour: str) -> None:
    from rich.console import Console
    from rich.text import Text

    shown = "\n".join(visible(line) for line in text.split("\n"))
    Console(stderr=True).print(Text(shown, style=colour), soft_wrap=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _message(f"warning: {message}", "yellow")


app.command("demo", rich_help_panel="Start")(demo)
app.command("doctor", rich_help_panel="Start")(doctor)
app.command("init", rich_help_panel="Start")(init)
app.command("grok-lab", rich_help_panel="Start")(grok_lab)
app.command("fit", rich_help_panel="Train and evaluate")(fit)
app.command("refit", rich_help_panel="Train and evaluate")(refit)
app.command("evaluate", rich_help_panel="Train and evaluate")(evaluate)
app.command("compare", rich_help_panel="Train and evaluate")(compare)
app.command("study", rich_help_panel="Train and evaluate", context_settings={"allow_extra_args": True})(study)
app.command("report", rich_help_panel="Train and evaluate")(report)
app.command("card", rich_help_panel="Train and evaluate")(card)
app.command("stats", rich_help_panel="Train and evaluate")(stats)
app.command("recommend", rich_help_panel="Recommend")(recommend)
app.command("explain", rich_help_panel="Recommend")(explain)
app.command("similar", rich_help_panel="Recommend")(similar)


def main() -> None:
    """Entry point of the `graphllmrec` script."""
    # Read when torch is loaded. On a busy machine, threads that spin while they wait take up to ten times the time of
    # the work itself; on an idle machine, sleeping while waiting costs next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(app())
