"""Work that dies by SIGKILL at chosen moments, and is taken up again. Run as a program of its own:

    python tests/killing.py writer FOLDER             # a kill at every line of the checkpoint writer
    python tests/killing.py fit RECIPE DATA FOLDER    # kills all over a fit
    python tests/killing.py replace RECIPE DATA FOLDER    # kills all over a fit that takes the place of another run

Prints one JSON object: what the unbroken work left, and for every moment of death what the resumed work left. Every
attempt is a fork of this process, which itself never uses a thread: polars and OpenMP would not survive the fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import graphllmrec.recommender
from front_door_world import encode_first_word
from graphllmrec import Recommender, lock, manifest, recommender
from graphllmrec import io as files
from graphllmrec import progress as logger
from graphllmrec import run_folder as run
from graphllmrec.rng import rng
from graphllmrec.run_folder import model as run_model
from graphllmrec.run_folder import tables as run_tables
from graphllmrec.text import prepare as text_prepare
from graphllmrec.train import checkpoint
from toy_training import Run

WRITER = (Path(files.__file__), Path(checkpoint.__file__))
PACKAGE = str(Path(graphllmrec.recommender.__file__).parent)
KEEPING = [
    module.__file__ for module in (files, lock, logger, manifest, recommender, run, run_model, run_tables, checkpoint)
]
MOVES = 10  # functions that are first called when a finished run takes the place of another one
SETTINGS: dict[str, Any] = {
    "lightgcn-fast": {"epochs": 3, "batch_size": 64, "embedding_dim": 8},
    "hybrid": {
        "settings": {"sign": {"epochs": 2, "min_steps": 0, "batch_size": 16, "text_dim": 8, "hidden": 8}},
        "gate": {"epochs": 2, "min_steps": 0, "batch_size": 16},
    },
}


def attempt(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> bool:
    """Do the work in a fork. True if it came to its end, False if it was killed; anything else is an error."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            work()
            sys.settrace(None)
            sys.setprofile(None)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert os.WIFEXITED(status), f"ended by signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) == 0, "raised an error"
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# the checkpoint writer


def kill_at_line(number: int, of_save: int) -> Callable[[], None]:
    """Arranges death before the `number`-th line that the writer runs in its `of_save`-th call (both from 1)."""
    left, saves, inside = [number], [0], [False]

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and inside[0]:
            left[0] -= 1
            if not left[0]:
                die()
        if event == "return" and frame.f_code is checkpoint.Checkpoints.save.__code__:
            inside[0] = False
        return lines

    def calls(frame: FrameType, _event: str, _arg: Any) -> Any:
        if frame.f_code is checkpoint.Checkpoints.save.__code__:
            saves[0] += 1
            inside[0] = saves[0] == of_save
        return lines if Path(frame.f_code.co_filename) in WRITER else None

    return lambda: sys.settrace(calls)


def half_written(of_save: int) -> Callable[[], None]:
    """Arranges death when half of the `of_save`-th checkpoint's bytes are in the temporary file."""
    saves, write = [0], checkpoint.save_file

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata)
        saves[0] += 1
        if saves[0] == of_save:
            os.truncate(path, path.stat().st_size // 2)
            die()

    return lambda: setattr(checkpoint, "save_file", save_file)


def writer(folder: Path) -> dict[str, Any]:
    """Kill the toy training at every line of a checkpoint, at some lines of the first and the last; then resume it."""
    found: dict[str, str] = {}
    attempt(lambda: toy(folder / "whole"))
    for of_save, stride in ((12, 1), (1, 10), (26, 10)):  # 26: after 20 steps and 5 epochs, the end
        number, alive = 0, False
        while not alive:
            name = f"checkpoint {of_save}, " + (f"line {number}" if number else "half written")
            deadly = kill_at_line(number, of_save) if number else half_written(of_save)
            alive = attempt(lambda: toy(folder / name), deadly)  # noqa: B023
            if not alive:
                checkpoint.Checkpoints(folder / name).load("toy")  # can be read
                attempt(lambda: toy(folder / name))  # noqa: B023
                found[name] = (folder / name / "outcome").read_text()
            number += stride
    return {"whole": (folder / "whole" / "outcome").read_text(), "killed": found}


def toy(folder: Path) -> None:
    """Train the toy to the end, a checkpoint at every step; leaves "outcome", a hash of weights and log."""
    training = Run(folder=folder, every=0)
    training.train()
    outcome = hashlib.sha256(training.bytes + json.dumps(training.notes.logged).encode()).hexdigest()
    (folder / "outcome").write_text(outcome)


# a whole fit


def fit(name: str, data: str, folder: Path) -> dict[str, Any]:
    """Kill a fit at the first call of functions that keep things, and at random calls; then resume it."""
    text_prepare.encode_items = encode_first_word
    calls = folder / "calls.json"
    attempt(lambda: go_on(name, data, folder / "whole"), lambda: count_calls(calls))
    first, total = json.loads(calls.read_text())
    draw = rng(0, f"killing/{name}")
    moments = sorted({*first[:: max(len(first) // 6, 1)], *first[-2:], *draw.integers(1, total, 3).tolist()})
    found = {}
    for moment in moments:
        path = folder / f"killed at call {moment}"
        alive = attempt(lambda: go_on(name, data, path), lambda: kill_at_call(moment))  # noqa: B023
        later = int(draw.integers(1, total))
        attempt(lambda: go_on(name, data, path), lambda: kill_at_call(later))  # noqa: B023
        assert attempt(lambda: go_on(name, data, path))  # noqa: B023
        assert not alive
        found[path.name] = outcome(path)
        shutil.rmtree(path)
    return {
        "whole": outcome(folder / "whole"),
        "killed": found,
        "left": sorted(entry.name for entry in folder.iterdir()),
    }


# a fit that takes the place of another run


def replace(name: str, data: str, folder: Path) -> dict[str, Any]:
    """Kill a fit over a finished run at calls of functions that keep things: what RUN holds then, and in the end."""
    calls, answer = folder / "calls.json", folder / "answer"
    attempt(lambda: Recommender.from_recipe("popularity").fit(data, out=folder / "old"))
    attempt(lambda: look(folder / "old", answer))
    old = answer.read_text()
    shutil.copytree(folder / "old", folder / "whole")
    attempt(lambda: take_over(name, data, folder / "whole"), lambda: count_calls(calls))
    attempt(lambda: look(folder / "whole", answer))
    new, found = answer.read_text(), {}
    first = json.loads(calls.read_text())[0]
    for moment in [*first[: -MOVES : max(len(first) // 6, 1)], *first[-MOVES:]]:
        path = folder / f"killed at call {moment}"
        shutil.copytree(folder / "old", path)
        (path / "notes.txt").write_text("mine")
        assert not attempt(lambda: take_over(name, data, path), lambda: kill_at_call(moment))  # noqa: B023
        assert attempt(lambda: look(path, answer))  # noqa: B023
        held = {old: "old", new: "new"}[answer.read_text()]
        assert attempt(lambda: take_over(name, data, path))  # noqa: B023
        assert attempt(lambda: look(path, answer))  # noqa: B023
        assert answer.read_text() == new
        assert (path / "notes.txt").read_text() == "mine"
        (path / "notes.txt").unlink()
        found[path.name] = {"then": held, "files": " ".join(sorted(entry.name for entry in path.iterdir()))}
        shutil.rmtree(path)
    return found


def take_over(name: str, data: str, path: Path) -> None:
    """Begin the fit that replaces the run, or continue it, or see that it is finished."""
    if run.unfinished(path) is not None:
        Recommender.resume(path, save_every=0)
    elif Recommender.load(path).recipe.model.name == "popularity":
        recommender = Recommender.from_recipe(name, model=SETTINGS[name])
        recommender.fit(data, out=path, save_every=0, overwrite=True)
    run.tidy(path)


def look(path: Path, answer: Path) -> None:
    """Write what the run at `path` answers."""
    answer.write_text(repr(Recommender.load(path).recommend(users=["u1", "u2"])))


def go_on(name: str, data: str, path: Path) -> None:
    """Begin the fit, or continue it, or see that it is finished."""
    state = run.state_of(path)
    if state == "absent":
        Recommender.from_recipe(name, model=SETTINGS[name]).fit(data, out=path, save_every=0)
    elif state == "interrupted":
        Recommender.resume(path, save_every=0)
    run.tidy(path)


def outcome(path: Path) -> dict[str, str]:
    """Hashes of model and log, and what else the run folder holds."""
    hashes = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in ("model.safetensors", "log.jsonl")
    }
    lines = (path / "timings.jsonl").read_text().splitlines()
    assert all("time" in json.loads(line) for line in lines)
    return hashes | {"files": " ".join(sorted(entry.name for entry in path.iterdir()))}


def count_calls(to: Path) -> None:
    """Arranges that the number of the first call of every function that keeps things, and of all calls, are kept."""
    seen: dict[CodeType, int] = {}
    number = [0]

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            number[0] += 1
            if frame.f_code.co_filename in KEEPING:
                seen.setdefault(frame.f_code, number[0])
            if frame.f_code is run.tidy.__code__:
                to.write_text(json.dumps([sorted(seen.values()), number[0]]))

    sys.setprofile(note)


def kill_at_call(number: int) -> None:
    """Arranges death at the `number`-th call of a function of the package."""
    left = [number]

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            left[0] -= 1
            if not left[0]:
                die()

    sys.setprofile(count)


if __name__ == "__main__":
    Run().train()  # what is imported on first use is imported here, once
    os.fsync = lambda _: None  # a killed process loses nothing that it has written; waiting for the disk takes minutes
    what, *arguments = sys.argv[1:]
    places = Path(arguments[-1])
    if what == "writer":
        print(json.dumps(writer(places)))
    else:
        print(json.dumps({"fit": fit, "replace": replace}[what](arguments[0], arguments[1], places)))
