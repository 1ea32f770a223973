"""Where progress is seen: a terminal, a notebook, or lines in a log; and the one switch against it."""

from __future__ import annotations

import io
import sys
import threading
import types

import pytest
from rich.console import Console

from front_door_world import write_world
from graphllmrec import Recommender, evaluate
from graphllmrec.progress import RunLogger
from graphllmrec.screen import Screen, is_quiet
from graphllmrec.study import run_study
from graphllmrec.study.display import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """From here on standard error is a terminal of 80 columns (not in a fixture: pytest sets stderr after those)."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


@pytest.fixture
def notebook(monkeypatch):
    """A notebook: what its one output area shows after every update, as text."""
    shown: list[str] = []

    class Handle:
        def update(self, area):
            shown.append(area._repr_mimebundle_([], [])["text/html"])

    def display(area, display_id):
        Handle().update(area)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return shown


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


def work(logger):
    with logger:
        logger.begin("fit hybrid", 40)
        logger.advance(40, loss=0.5)
        logger.say("a note with [brackets]")


def test_a_call_in_python_shows_what_it_does_on_a_terminal(world, monkeypatch):
    terminal = terminal_of(monkeypatch)
    evaluate(Recommender.from_recipe("popularity").fit(world))
    assert "━" in terminal.getvalue()
    assert "✓ evaluate popularity on test: " in terminal.getvalue()


def test_a_study_in_python_shows_its_fits_on_a_terminal(world, tmp_path, monkeypatch):
    terminal = terminal_of(monkeypatch)
    run_study({"models": [{"recipe": "popularity"}]}, [world], tmp_path / "out")
    assert "[1/1] books · popularity · seed 0: validation ndcg@20" in terminal.getvalue()


def test_a_call_in_python_is_silent_where_nobody_sees_it(world, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as build servers do
    evaluate(Recommender.from_recipe("popularity").fit(world))
    run_study({"models": [{"recipe": "popularity"}]}, [world], tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_call_in_another_thread_draws_no_bars(world, monkeypatch):
    terminal = terminal_of(monkeypatch)
    thread = threading.Thread(target=lambda: Recommender.from_recipe("popularity").fit(world))
    thread.start()
    thread.join()
    assert terminal.getvalue() == ""


def test_one_variable_switches_everything_off(world, monkeypatch, tmp_path):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("GRAPHLLMREC_QUIET", "1")
    recommender = Recommender.from_recipe("popularity").fit(world)
    work(RunLogger())
    work(RunLogger(console=Console(file=terminal)))
    run_study({"models": [{"recipe": "popularity"}]}, [world], tmp_path / "out", display=Display())
    assert terminal.getvalue() == ""
    assert recommender.recommend(users=["u0"], k=1)[0]


@pytest.mark.parametrize(("value", "quiet"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_values_of_the_variable(value, quiet, monkeypatch):
    monkeypatch.setenv("GRAPHLLMREC_QUIET", value)
    assert is_quiet() == quiet


def test_a_notebook_has_one_area_with_lines_and_the_current_bar(notebook):
    logger = RunLogger()
    with logger:
        logger.begin("fit <b>hybrid</b>", 40)
        assert "fit &lt;b&gt;hybrid" in notebook[-1]
        assert "0/40" in notebook[-1]
        logger.say("a note with [brackets]")
        assert notebook[-1].index("a note with [brackets]") < notebook[-1].index("fit &lt;b&gt;")
        before = len(notebook)
        for _ in range(1_000):
            logger.advance(loss=0.5)
        assert len(notebook) < before + 50  # not one update per step
    assert "✓ fit &lt;b&gt;hybrid&lt;/b&gt;: " in notebook[-1]
    assert "/40" not in notebook[-1]  # the bar is gone, its line stays
    assert "<b>hybrid" not in "".join(notebook)


def test_a_notebook_shows_a_study(notebook, world, tmp_path):
    run_study({"models": [{"recipe": "popularity"}]}, [world], tmp_path / "out")
    assert "[1/1] books · popularity" in notebook[-1]


def test_a_quick_call_leaves_no_empty_area_in_a_notebook(notebook):
    with RunLogger():
        pass
    assert notebook == []


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_and_counts_keep_their_width_and_texts_are_cut(width):
    console = Console(force_terminal=True, width=width, file=io.StringIO(), color_system=None)
    screen = Screen(console=console)
    name = "amazon-industrial · hybrid-static [shuffled] · trial 3 of 20 and so on"
    screen.bars.add_task(name, total=9_742, completed=9_742, rate="1,234.5/s", values="loss 0.1234  ndcg@20 0.0795")
    console.print(screen.bars)
    [line] = console.file.getvalue().splitlines()
    assert len(line) <= width
    assert line.count("━") == (24 if width >= 100 else 12)
    assert "9742/9742" in line
    assert "0:00:00" in line
    assert "amazon-" in line


def test_names_with_brackets_and_control_characters_are_shown_as_they_are():
    console = Console(force_terminal=True, width=120, file=io.StringIO(), color_system=None)
    screen = Screen(console=console)
    screen.bars.add_task("hybrid [shuffled]", total=1, rate="", values="\x1b[31m")
    console.print(screen.bars)
    assert "hybrid [shuffled]" in console.file.getvalue()
    assert r"\x1b[31m" in console.file.getvalue()


def test_a_log_has_a_line_per_piece_of_work(capsys):
    work(RunLogger())
    out, err = capsys.readouterr()
    assert out == ""
    note, done = err.splitlines()
    assert note == "a note with [brackets]"
    assert done.startswith("fit hybrid: 0.0 s, 40 steps, loss 0.5000")
