"""Run folders: damage is refused, one process writes at a time, and a run is replaced by a whole one or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from front_door_world import write_world
from graphllmrec import run_folder as run
from graphllmrec.cli import app
from graphllmrec.errors import CheckpointError, EvaluationError, GraphLLMRecError, Interrupted, StorageError, TextError
from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.io import atomic_file
from graphllmrec.lock import LOCK, Holder, locked
from graphllmrec.manifest import MANIFEST, NEXT, Manifest, list_files
from graphllmrec.models.baselines.ease import EASE
from graphllmrec.recommender import Recommender
from graphllmrec.rng import rng

FILES = {"recipe.toml", "data.json", "users.parquet", "items.parquet", "interactions.parquet", "log.jsonl",
         "timings.jsonl", "model.safetensors", "model.json", "manifest.json"}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of EASE with an evaluation."""
    path = tmp_path_factory.mktemp("runs") / "ease"
    Recommender.from_recipe("ease").fit(world, out=path).evaluate().write(path)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def use(path: Path) -> object:
    """Everything that reads a run folder."""
    recommender = Recommender.load(path)
    lists = recommender.recommend(users=["u1", "u7"], k=5), recommender.similar("i3", k=5)
    return lists, run.load_log(path), run.load_about(path), Evaluation.read(path).to_json()


def refresh(path: Path, *names: str) -> None:
    """Give changed files the checksums that they have now, as who changes them on purpose would."""
    manifest = Manifest.read(path)
    assert manifest is not None
    changed = manifest.files | list_files(path, [name for name in names if name in manifest.files])
    manifest.model_copy(update={"files": changed}).write(path)


def make_old(path: Path) -> Path:
    """The run as version 0.2 wrote it: without a manifest, with the checksum of the tensors in model.json."""
    entry = list_files(path, ["model.safetensors"])["model.safetensors"]
    for name, change in {"model.json": {"format": 4, "sha256": entry.sha256}, "data.json": {"format": None}}.items():
        values = json.loads((path / name).read_text()) | change
        (path / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    (path / MANIFEST).unlink()
    return path


# damage


def test_the_manifest_lists_every_file_of_a_run_but_the_timings(made: Path) -> None:
    manifest = Manifest.read(made)
    assert manifest is not None
    assert manifest.complete
    assert {*manifest.files} == FILES - {"timings.jsonl", "manifest.json"}
    assert {*manifest.evaluations["test"]} == {"metrics-test.json", "per-user-test.parquet", "targets-test.parquet"}


def test_no_flipped_bit_and_no_missing_end_changes_an_answer(made: Path, tmp_path: Path) -> None:
    expected = use(made)
    draw = rng(0, "test/flipped-bits")
    for name in sorted(path.name for path in made.iterdir()):
        for number in range(6):
            folder = Path(shutil.copytree(made, tmp_path / f"{name}-{number}"))
            content = bytearray((folder / name).read_bytes())
            place = int(draw.integers(len(content)))
            if number % 3:
                content[place] ^= 1 << int(draw.integers(8))
            else:
                content = content[:place]
            (folder / name).write_bytes(content)
            try:
                assert use(folder) == expected, f"{name}, byte {place}"
                assert name == "timings.jsonl"
            except (CheckpointError, EvaluationError) as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"timings.jsonl"}))
def test_a_deleted_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        Recommender.load(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"timings.jsonl"}))
def test_a_file_of_another_run_is_refused(folder: Path, world: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    Recommender.from_recipe("ease", seed=3, model={"l2": 7.0}).fit(world, out=other)
    same = (other / name).read_bytes() == (folder / name).read_bytes()
    shutil.copy(other / name, folder / name)
    if same:  # the tables: the data are the same
        Recommender.load(folder)
        return
    with pytest.raises(CheckpointError, match=r"cannot be read|is damaged"):
        use(folder)


def test_files_of_two_fits_are_refused_although_every_checksum_is_right(folder: Path) -> None:
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("l2 = ", "l2 = 1"))
    refresh(folder, "recipe.toml")
    with pytest.raises(CheckpointError, match=r"model\.json and recipe\.toml describe different models"):
        Recommender.load(folder)


@pytest.mark.parametrize("column", ["user", "item"])
@pytest.mark.parametrize("row", [-1, 48, 2**40])
def test_rows_outside_the_tables_never_reach_a_model(folder: Path, column: str, row: int) -> None:
    """In a run from before manifests too, whose tables have no checksum: SciPy would read other memory."""
    old = make_old(folder)
    table = pl.read_parquet(old / "interactions.parquet")
    values = table[column].to_numpy(writable=True)
    values[0 if row < 0 else -1] = row
    table.with_columns(pl.Series(column, values)).write_parquet(old / "interactions.parquet")
    with pytest.raises(CheckpointError, match=r"interactions\.parquet cannot be read: (column|the rows)"):
        Recommender.load(old)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.with_columns(pl.col("user").cast(pl.Float64)),
        lambda t: t.drop("item"),
        lambda t: t.drop("part"),
        lambda t: t.with_columns(part=pl.lit("training")),
        lambda t: t.with_columns(pl.col("item").replace(3, None)),
        lambda t: t.with_columns(pl.when(pl.col("user") > 3).then("order").alias("order")),
        lambda t: t.reverse(),
    ],
)
def test_tables_of_another_shape_are_refused(folder: Path, change) -> None:
    old = make_old(folder)
    table = change(pl.read_parquet(old / "interactions.parquet"))
    table.write_parquet(old / "interactions.parquet")
    with pytest.raises(CheckpointError, match=r"interactions\.parquet cannot be read"):
        Recommender.load(old)


def reshaped(tensors: dict) -> dict:
    return tensors | {"weights": tensors["weights"].reshape(-1, 2)}


@pytest.mark.parametrize(
    "change",
    [
        reshaped,
        lambda tensors: tensors | {"weights": tensors["weights"][:-1]},
        lambda tensors: tensors | {"weights": tensors["weights"].double()},
        lambda tensors: tensors | {"weights": tensors["weights"].long()},
        lambda tensors: tensors | {"num_items": tensors["num_items"] + 5},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "decay"},
        lambda tensors: {},
    ],
)
def test_tensors_of_another_shape_are_refused_although_the_checksum_is_right(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    refresh(folder, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: its tensors are not those of ease"):
        Recommender.load(folder)


@pytest.mark.parametrize("recipe", ["item-knn", "transitions", "graph-filter"])
def test_impossible_columns_of_a_sparse_matrix_are_refused(world: Path, tmp_path: Path, recipe: str) -> None:
    """A wrong column ends SciPy in a segmentation fault, or in a number of other memory."""
    Recommender.from_recipe(recipe).fit(world, out=tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    tensors = load_file(path)
    name = "click_items" if "click_items" in tensors else "indices"
    tensors[name][0] = 10**8
    save_file(tensors, path)
    refresh(tmp_path / "run", "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        Recommender.load(tmp_path / "run")


@pytest.mark.parametrize(
    "content",
    [
        "", "null", "[]", '{"format": 5}', "[" * 100_000, '{"a":' * 100_000, "\x00", '{"format": 4, "model": 7}',
        '{"format": 4, "model": "ease", "config": {"l2": "much"}, "sha256": "0"}', '{"format": ' + "9" * 5000 + "}",
        '{"format": NaN}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["model.json", "data.json", "recipe.toml", "manifest.json", "metrics-test.json"])
def test_whatever_stands_in_a_json_file_is_one_sentence(folder: Path, name: str, content: str) -> None:
    old = folder if name == "manifest.json" else make_old(folder)
    (old / name).write_text(content)
    with pytest.raises(CheckpointError) as error:
        use(old)
    assert len(str(error.value).splitlines()) == 1
    assert name in str(error.value) or "model.safetensors" in str(error.value)
    assert len(str(error.value)) < 1500


def test_a_manifest_that_was_deleted_is_missing(folder: Path, world: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"missing: manifest\.json"):
        Recommender.load(folder)
    Recommender.from_recipe("popularity").fit(world, out=folder, overwrite=True)
    assert Recommender.load(folder).model.name == "popularity"


def test_a_run_from_before_manifests_is_read_and_then_saved_with_one(folder: Path, tmp_path: Path) -> None:
    expected = Recommender.load(folder).recommend(users=["u1"], k=5)
    old = Recommender.load(make_old(folder))
    assert old.recommend(users=["u1"], k=5) == expected
    assert Evaluation.read(folder).overall == old.evaluate().overall
    old.save(tmp_path / "new")
    assert Manifest.read(tmp_path / "new") is not None


# evaluations


def test_an_evaluation_of_another_run_is_refused(folder: Path, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Recommender.from_recipe("popularity").fit(world, out=other).evaluate().write(other)
    for name in ("metrics-test.json", "per-user-test.parquet", "targets-test.parquet"):
        shutil.copy(other / name, folder / name)
    with pytest.raises(CheckpointError, match=r"metrics-test\.json cannot be read: it is damaged, or of another run"):
        Evaluation.read(folder)


def test_an_evaluation_is_not_written_beside_another_run(folder: Path, world: Path) -> None:
    evaluation = Recommender.load(folder).evaluate("valid")
    Recommender.from_recipe("popularity").fit(world, out=folder, overwrite=True)
    with pytest.raises(CheckpointError, match="holds another run than the one that was evaluated"):
        evaluation.write(folder)
    assert not (folder / "metrics-valid.json").exists()
    assert not (folder / "metrics-test.json").exists()  # of the run that was there before


def test_an_evaluation_whose_writing_was_killed_counts_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("graphllmrec.evaluation.evaluation.write_text", kill)
        with pytest.raises(KeyboardInterrupt):
            Recommender.load(folder).evaluate().write(folder)
    with pytest.raises(EvaluationError, match="no such evaluation"):
        Evaluation.read(folder)
    Recommender.load(folder).evaluate().write(folder)
    assert Evaluation.read(folder).name == "ease"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.with_columns(pl.col("ndcg@20") + 0.1),
        lambda t: t.head(3),
        lambda t: t.drop("recommended"),
        lambda t: t.with_columns(pl.col("user").cast(pl.String)),
        lambda t: t.with_columns(pl.col("recommended") + 10**6),
    ],
)
def test_per_user_values_that_do_not_belong_to_an_old_evaluation(folder: Path, change) -> None:
    old = make_old(folder)
    path = old / "per-user-test.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(CheckpointError, match="its tables do not belong to it"):
        Evaluation.read(old)


# a new run in the place of an old one


@pytest.fixture
def stopped(folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of EASE, while a second fit that shall take its place was interrupted."""

    def stop(self, task) -> None:
        raise Interrupted("stopped in epoch 3")

    with monkeypatch.context() as patch:
        patch.setattr(EASE, "fit", stop)
        with pytest.raises(Interrupted):
            Recommender.from_recipe("ease", seed=9).fit(world, out=folder, overwrite=True)
    return folder


def test_a_run_is_there_until_its_successor_is_whole(stopped: Path, made: Path) -> None:
    assert use(stopped) == use(made)
    assert run.state_of(stopped) == "finished"
    assert run.unfinished(stopped) == stopped / NEXT
    result = CliRunner().invoke(app, ["fit", "--resume", "--out", str(stopped)])
    assert result.exit_code == 0, result.output
    assert Recommender.load(stopped).recipe.seed == 9
    left = {path.name for path in stopped.iterdir()}
    assert left == FILES | {"metrics-valid.json", "per-user-valid.parquet", "targets-valid.parquet"}
    assert run.unfinished(stopped) is None


def test_a_fit_that_fails_leaves_the_run_that_was_there(folder: Path, made: Path, world: Path) -> None:
    with pytest.raises((TextError, GraphLLMRecError)):
        Recommender.from_recipe("text-knn", text={"columns": ["no such column"]}).fit(world, out=folder, overwrite=True)
    assert use(folder) == use(made)
    assert {path.name for path in folder.iterdir()} == {path.name for path in made.iterdir()}


def test_an_unfinished_successor_is_replaced_by_the_next_fit(stopped: Path, world: Path) -> None:
    Recommender.from_recipe("popularity").fit(world, out=stopped, overwrite=True)
    assert Recommender.load(stopped).model.name == "popularity"
    assert not (stopped / NEXT).exists()


def test_a_successor_that_is_whole_is_the_run(stopped: Path, world: Path, tmp_path: Path) -> None:
    """Killed while the files were moved up, one by one."""
    Recommender.from_recipe("popularity").fit(world, out=tmp_path / "new")
    shutil.rmtree(stopped / NEXT)
    shutil.copytree(tmp_path / "new", stopped / NEXT)
    expected = Recommender.load(tmp_path / "new").recommend(users=["u1"])
    moves = [*sorted(FILES - {MANIFEST, "timings.jsonl"}), "timings.jsonl"]
    for name in [None, *moves]:
        if name is not None:
            (stopped / NEXT / name).replace(stopped / name)
        assert Recommender.load(stopped).recommend(users=["u1"]) == expected
        assert run.state_of(stopped) == "finished"
        with pytest.raises(EvaluationError):  # that of the former run is not taken for one of this
            Evaluation.read(stopped)
    run.tidy(stopped)
    assert {path.name for path in stopped.iterdir()} == FILES
    assert Recommender.load(stopped).recommend(users=["u1"]) == expected


def test_only_what_a_run_wrote_is_replaced(folder: Path, world: Path, tmp_path: Path) -> None:
    (folder / "notes.md").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "a.png").write_text("mine")
    (folder / "metrics-of-mine.json").write_text("mine")
    link = tmp_path / "current"
    link.symlink_to(folder, target_is_directory=True)
    Recommender.from_recipe("popularity").fit(world, out=link, overwrite=True)
    assert link.is_symlink()
    assert Recommender.load(folder).model.name == "popularity"
    mine = {"notes.md", "plots", "metrics-of-mine.json"}
    assert {path.name for path in folder.iterdir()} == FILES | mine
    assert (folder / "plots" / "a.png").read_text() == "mine"


def test_a_fit_in_an_empty_folder_keeps_the_folder(world: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "out").mkdir(mode=0o750)
    before = (tmp_path / "out").stat()
    monkeypatch.chdir(tmp_path / "out")
    Recommender.from_recipe("popularity").fit(world, out=".")
    after = (tmp_path / "out").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert {path.name for path in Path().iterdir()} == FILES


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "~run", "a=1", "with space", "-run", "ünï"])
def test_a_run_folder_of_any_name(made: Path, world: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "run1")  # what a pattern would find
    Recommender.from_recipe("popularity").fit(world, out=name)
    again = Recommender.load(name)
    assert again.model.name == "popularity"
    again.evaluate().write(name)
    assert Evaluation.read(name).name == "popularity"
    again.save(f"{name}/copy")
    assert Recommender.load(f"{name}/copy").recommend(users=["u1"]) == again.recommend(users=["u1"])
    result = CliRunner().invoke(app, ["report", "--out", f"{name}.html", "--", name])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("umask", "file", "directory"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_the_umask_decides_who_may_read(ease_run, umask: int, file: int, directory: int) -> None:
    before = os.umask(umask)
    try:
        path = ease_run()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == directory
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {file}


@pytest.fixture
def ease_run(world: Path, tmp_path: Path):
    def fit() -> Path:
        Recommender.from_recipe("popularity").fit(world, out=tmp_path / "run")
        return tmp_path / "run"

    return fit


# one writer at a time


def test_two_fits_in_one_folder(folder: Path, world: Path) -> None:
    with locked(folder):
        for work in (
            lambda: Recommender.from_recipe("popularity").fit(world, out=folder, overwrite=True),
            lambda: Recommender.resume(folder),
            lambda: Recommender.load(folder).evaluate().write(folder),
            lambda: Recommender.load(folder).save(folder, overwrite=True),
            lambda: run.tidy(folder),
        ):
            with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .* is writing to {folder}; wait for"):
                work()
        Recommender.load(folder)  # readers need no lock
    assert not (folder / LOCK).exists()


def test_a_fit_in_another_process_holds_the_lock(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = (
        "import time; from graphllmrec import Recommender; from graphllmrec.models.baselines.popularity import *\n"
        "Popularity.fit = lambda self, task: time.sleep(60)\n"
        f"Recommender.from_recipe('popularity').fit({str(world)!r}, out={str(path)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 120
        while not (path / "timings.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for arguments in (["--resume"], ["popularity", "--data", str(world), "--overwrite"]):
            result = CliRunner().invoke(app, ["fit", *arguments, "--out", str(path)])
            assert result.exit_code == 2
            assert f"process {process.pid} on" in " ".join(result.stderr.split())
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.warns(UserWarning, match=f"process {process.pid} on .* has ended without releasing .* is taken over"):
        Recommender.resume(path)
    assert Recommender.load(path).model.name == "popularity"
    assert not (path / LOCK).exists()


def test_without_flock_a_lock_of_a_process_that_ended_is_taken_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("graphllmrec.lock.fcntl", None)
    with locked(tmp_path), pytest.raises(CheckpointError, match="is writing to"), locked(tmp_path):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = Holder.this_process()
    (tmp_path / LOCK).write_text(json.dumps({"host": mine.host, "pid": ended.pid, "since": mine.since}))
    with locked(tmp_path):
        assert Holder.read(tmp_path / LOCK) is not None
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": ended.pid, "since": mine.since}))
    with pytest.raises(CheckpointError, match=rf"delete {tmp_path / LOCK} if that process has ended"), locked(tmp_path):
        pass


# a full disk


def test_a_full_disk_is_one_sentence_and_the_fit_can_be_resumed(world: Path, tmp_path: Path) -> None:
    """Writes beyond 7,000 bytes fail, in a process of its own: the tables are smaller, the tensors are not."""
    code = (
        "import resource, sys; from graphllmrec.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\nmain()"
    )
    command = [sys.executable, "-c", code]
    arguments = ["fit", "ease", "--data", str(world), "--out", str(tmp_path / "run")]
    ended = subprocess.run([*command, "7000", *arguments], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    said = " ".join(ended.stderr.split())
    assert "cannot write" in said
    assert "model.safetensors: file too large; free some space and try again" in said
    assert run.state_of(tmp_path / "run") == "interrupted"
    Recommender.resume(tmp_path / "run")
    Recommender.load(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_file_that_cannot_be_written(tmp_path: Path, number: int) -> None:
    (tmp_path / "kept.txt").write_text("before")

    def write() -> None:
        with atomic_file(tmp_path / "kept.txt") as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=r"cannot write .*kept\.txt: \w.*; (free some space|choose a folder)"):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept.txt", "before")]
