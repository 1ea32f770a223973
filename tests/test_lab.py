"""The grokking lab: ground truth, scores of rules, and real small training runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from graphllmrec.cli import app
from graphllmrec.errors import CheckpointError
from graphllmrec.grokking.lab import runner
from graphllmrec.grokking.lab.collection import PARTS, Run, collection
from graphllmrec.grokking.lab.engine import POINTS, Problem, Training, effective_rank, train_problem
from graphllmrec.grokking.lab.families import digits, linear, permutations, transformer
from graphllmrec.grokking.lab.protocol import ScoredRun, compare, outcome, score
from graphllmrec.grokking.lab.rules import RULES, Reading, find_stretch, observe
from graphllmrec.grokking.lab.tasks import completion, modular, parity, sparse, tastes, teacher
from graphllmrec.grokking.lab.trajectory import CURVES, Trajectory, read_trajectories, write_trajectories
from graphllmrec.grokking.lab.truth import Truth, find_truth, levels

LENGTH, EVERY = 400, 10


def ramp(start: float, end: float, high: float = 1.0) -> np.ndarray:
    return high * np.clip((np.arange(LENGTH) - start) / (end - start), 0, 1)


def build_run(train: np.ndarray, valid: np.ndarray) -> Trajectory:
    """A run with these levels: losses with chance level 3, accuracies with chance level .2."""
    curves = {f"{part}_loss": 3 * (1 - level) for part, level in (("train", train), ("valid", valid))}
    curves |= {f"{part}_metric": 0.2 + 0.8 * level for part, level in (("train", train), ("valid", valid))}
    flat = np.ones(LENGTH)
    curves |= {"weight_norm": flat, "effective_rank": flat, "gradient_norm": flat}
    return Trajectory("made", 0, {}, np.arange(LENGTH) * EVERY, curves, 3.0, 0.2)


MEMORY = ramp(0, 20)  # reaches .9 at 18


# ground truth


def test_a_late_rise_is_an_event_with_the_steps_of_the_definition() -> None:
    truth = find_truth(build_run(MEMORY, ramp(100, 200, high=0.8)))
    assert (truth.label, truth.memorised, truth.collapse) == ("event", 180, None)
    assert truth.rise == pytest.approx(0.8)
    assert truth.onset == 1090  # the last point below a tenth of the rise, reached at 1,100
    assert truth.event == 1500
    assert truth.distance == 1320


@pytest.mark.parametrize(
    ("train", "valid", "label"),
    [
        (ramp(0, 400, high=0.8), ramp(200, 300), "none"),  # not memorised
        (MEMORY, ramp(0, 25), "none"),  # half of it comes before 1.5 T_m
        (MEMORY, ramp(100, 200, high=0.09), "none"),
        (MEMORY, ramp(100, 200, high=0.2), "unclear"),
        (MEMORY, ramp(18, 42), "unclear"),  # half at 1.7 T_m
        (MEMORY, ramp(18, 60), "event"),
        (MEMORY - ramp(100, 110, high=0.2), ramp(100, 200), "unclear"),  # not memorised any more
    ],
)
def test_the_label_is_event_none_or_unclear(train: np.ndarray, valid: np.ndarray, label: str) -> None:
    assert find_truth(build_run(train, valid)).label == label


def test_a_collapse_is_a_fall_below_half_of_the_rise_that_lasts() -> None:
    falls = ramp(100, 200) - ramp(300, 320)
    assert find_truth(build_run(MEMORY, falls)).collapse == 3110  # the first point below a half
    blip = ramp(100, 200) - 0.9 * ((np.arange(LENGTH) >= 300) & (np.arange(LENGTH) < 310))
    assert find_truth(build_run(MEMORY, blip)).collapse is None


def test_levels_are_the_mean_of_loss_and_metric_between_chance_and_perfect() -> None:
    run = build_run(MEMORY, ramp(100, 200))
    np.testing.assert_allclose(levels(run, "valid"), ramp(100, 200), atol=1e-12)
    worse = build_run(MEMORY, ramp(100, 200) - 0.5)  # below chance is chance
    np.testing.assert_allclose(levels(worse, "valid"), np.maximum(ramp(100, 200) - 0.5, 0), atol=1e-12)


# scores of rules

EVENT = Truth("event", memorised=100, onset=900, event=1100)


@pytest.mark.parametrize(
    ("truth", "detected", "expected"),
    [
        (EVENT, 950, "hit"), (EVENT, 800, "hit"), (EVENT, 799, "early"), (EVENT, 1200, "hit"), (EVENT, 1201, "late"),
        (EVENT, None, "missed"), (Truth("none"), None, "quiet"), (Truth("none"), 5, "false alarm"),
        (Truth("unclear"), 5, "unclear"),
    ],
)  # fmt: skip
def test_outcomes(truth: Truth, detected: int | None, expected: str) -> None:
    assert outcome(truth, detected) == expected


def test_a_score_counts_hits_alarms_and_delays() -> None:
    truths = [EVENT, EVENT, EVENT, Truth("none"), Truth("none"), Truth("unclear")]
    answers = [950, 500, None, None, 10, 10]
    readings = [Reading(np.array([step or 0]), np.array([float(step is not None)])) for step in answers]
    found = score(readings, 1.0, truths)
    assert (found.events, found.hits, found.quiet, found.false_alarms, found.runs) == (3, 1, 2, 2, 5)
    assert found.delay == pytest.approx(50 / 1000)
    assert found.lead == pytest.approx(150 / 1000)
    assert found.auroc == pytest.approx((1 + 1 + 3 * 0.5) / 6)  # pairs of the three events with the two other runs
    assert found.recall == pytest.approx(1 / 3)
    assert found.alarms_per_run == pytest.approx(2 / 5)


def test_thresholds_are_chosen_on_the_first_part_and_scored_on_the_second() -> None:
    [some, *_] = collection("build")
    build = [ScoredRun.of(some, build_run(MEMORY, valid)) for valid in (ramp(100, 200), ramp(100, 200, high=0.04))]
    held_out = [ScoredRun.of(some, build_run(MEMORY, valid)) for valid in (ramp(150, 220), ramp(100, 200, high=0.03))]
    table = compare({"build": build, "held-out": held_out})
    assert set(table) == set(RULES)
    for name in ("detector", "points, no wait", "gap", "lift since memorisation"):
        first, second = table[name].parts.values()
        assert (first.recall, first.false_alarms, second.recall, second.false_alarms) == (1, 0, 1, 0), name
    assert table["points, no wait"].threshold == 0.05  # the smallest that is above the second run
    assert table["+2 points, no wait"].parts["build"].false_alarms == 1


# rules


def test_a_rule_with_the_wait_reads_no_point_before_twice_the_step_of_memorisation() -> None:
    run = build_run(MEMORY, ramp(18, 60))
    assert find_stretch(run, wait=True).first == 36
    assert find_stretch(run, wait=False).first == 28
    for name, rule in RULES.items():
        assert rule.read(run).step[0] == (360 if rule.wait else 280), name
        assert len(rule.read(run).step) == len(rule.read(run).values), name
        nothing = rule.read(build_run(MEMORY * 0.5, ramp(18, 60)))
        assert (len(nothing.step), nothing.highest, nothing.detect(0.1)) == (0, 0.0, None), name


@pytest.mark.parametrize("name", [name for name in RULES if "offline" not in name and name != "detector"])
def test_a_statistic_depends_on_the_past_only(name: str) -> None:
    valid = ramp(100, 200)
    changed = np.where(np.arange(LENGTH) < 150, valid, 0.2)
    first, second = (RULES[name].read(build_run(MEMORY, values)) for values in (valid, changed))
    until = first.step < 150 * EVERY
    np.testing.assert_allclose(first.values[until], second.values[until], atol=1e-9)


def test_the_lift_rules_measure_above_three_means() -> None:
    run = build_run(MEMORY, 0.2 + 0.5 * (np.arange(LENGTH) >= 100))  # memorised at 18, end of the wait at 36
    lifts = {name: RULES[name].read(run).values for name in RULES if name.startswith("lift")}
    assert lifts["lift above the wait"][100 - 36] == pytest.approx(0.5)
    assert lifts["lift since the wait"][100 - 36] == pytest.approx(0.5 * 64 / 65)
    assert lifts["lift since memorisation"][100 - 36] == pytest.approx(0.5 * 82 / 83)


def test_the_residual_of_a_linear_recurrence_is_zero_until_it_breaks() -> None:
    wave = 0.5 + 0.1 * np.sin(0.3 * np.arange(LENGTH)) + 0.3 * (np.arange(LENGTH) >= 200)
    reading = RULES["DMD residual"].read(build_run(MEMORY, wave))
    assert reading.values[reading.step < 2000].max() < 2e-3
    assert reading.values[reading.step >= 2000].max() > 2e-2


# real training runs


def test_matrix_completion_generalises_late_with_weight_decay_and_never_without() -> None:
    settings: dict[str, Any] = {"n": 20, "share": 0.6, "start": 3.0}
    late = completion(0, Training(1600, 0.03, 0.1, "sgd"), **settings)
    never = completion(0, Training(1600, 0.03, 0.0, "sgd"), **settings)
    truth = find_truth(late)
    assert (truth.label, find_truth(never).label) == ("event", "none")
    assert find_truth(never).memorised is not None
    found = [event for event in observe(late).events if event.kind == "generalising"]
    assert outcome(truth, found[0].detected) == "hit"
    assert observe(never).states[-1] == "plateau"
    assert late.curves["effective_rank"][-1] < 4 < late.curves["effective_rank"][0]


EVERY_TASK = (modular, completion, tastes, parity, teacher, sparse, digits, permutations, transformer, linear)


@pytest.mark.parametrize("task", EVERY_TASK)
def test_every_task_is_a_function_of_its_seed(task: Any) -> None:
    first, again, other = (task(seed, Training(20, 1e-3, 0.1)) for seed in (1, 1, 2))
    for name in CURVES:
        assert first.curves[name].tolist() == again.curves[name].tolist()
        assert np.isfinite(first.curves[name]).all()
    assert first.curves["train_loss"].tolist() != other.curves["train_loss"].tolist()
    assert 0 <= first.chance_metric < 1
    assert first.curves["train_loss"][-1] < first.curves["train_loss"][0]


def test_the_parts_share_no_seed_and_every_run_has_settings_its_task_knows() -> None:
    build, held_out, new, second_build, second_held_out = (collection(part) for part in PARTS)
    assert len(build) + len(held_out) >= 200
    assert not {run.task for run in new} & {run.task for run in (*build, *held_out)}
    assert not {run.seed for run in build} & {run.seed for run in held_out}
    assert not {repr((run.task, run.settings, run.training)) for run in build if run.kind == "late"} & {
        repr((run.task, run.settings, run.training)) for run in held_out
    }
    later = {run.task for run in second_build}, {run.task for run in second_held_out}
    assert not later[0] & later[1]
    assert not (later[0] | later[1]) & {run.task for run in (*build, *held_out, *new)}
    for run in (*build, *held_out, *new, *second_build, *second_held_out):
        assert set(run.settings) <= set(TASK_SETTINGS[run.task].__kwdefaults__), run


TASK_SETTINGS = {each.__name__: each for each in EVERY_TASK}


# the engine


def line(weight: torch.Tensor) -> Problem:
    """A problem whose loss is the sum of a weight."""
    return Problem([weight], lambda _: weight.sum(), lambda _: (1.0, 0.0), 1.0, 0.0, lambda: weight)


def test_a_trajectory_has_points_evenly_spaced_from_the_start() -> None:
    run = train_problem("line", 0, {}, line(torch.ones(2, 2, requires_grad=True)), Training(4 * POINTS, 1e-3))
    assert run.step.tolist() == list(range(0, 4 * POINTS + 1, 4))
    assert run.curves["gradient_norm"][0] == pytest.approx(2.0)
    assert run.curves["weight_norm"][0] == pytest.approx(2.0)


def test_the_step_size_drops_to_a_tenth() -> None:
    weight = torch.zeros(1, 1, requires_grad=True)
    train_problem("line", 0, {}, line(weight), Training(10, 0.1, optimizer="sgd", drops=(0.5,)))
    assert float(weight.detach()) == pytest.approx(-(5 * 0.1 + 6 * 0.01))


def test_orthograd_steps_are_orthogonal_to_the_weights_at_full_length() -> None:
    weight = torch.tensor([[3.0, 4.0]], requires_grad=True)
    train_problem("line", 0, {}, line(weight), Training(0, 1.0, optimizer="sgd", orthograd=True))
    step = weight.detach() - torch.tensor([[3.0, 4.0]])
    assert float((step * torch.tensor([[3.0, 4.0]])).sum()) == pytest.approx(0.0, abs=1e-5)
    assert float(step.norm()) == pytest.approx(2**0.5, abs=1e-5)


def test_the_effective_rank_counts_equal_singular_values() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.ones(4, 4)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.zeros(3, 3)) == 0.0
    share = np.array([3, 1]) / 4
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(float(np.exp(-share @ np.log(share))))


# files


def test_trajectories_are_kept_in_single_precision(tmp_path: Path) -> None:
    runs = [build_run(MEMORY, ramp(100, 200)), completion(3, Training(30, 0.01, 0.1, "sgd"), n=6)]
    write_trajectories(tmp_path / "runs.parquet", runs)
    for run, read in zip(runs, read_trajectories(tmp_path / "runs.parquet"), strict=True):
        assert (read.task, read.seed, read.settings, read.name) == (run.task, run.seed, run.settings, run.name)
        assert (read.chance_loss, read.chance_metric) == (run.chance_loss, run.chance_metric)
        assert read.step.tolist() == run.step.tolist()
        for name in CURVES:
            np.testing.assert_array_equal(read.curves[name], run.curves[name].astype(np.float32))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").write_text("steps")
    with pytest.raises(CheckpointError, match="holds no trajectories"):
        read_trajectories(tmp_path / "runs.parquet")


# the command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """A collection of three runs per part, each of a second or less."""
    settings = {"n": 20, "share": 0.6, "start": 3.0}

    def runs(part: Any) -> list[Run]:
        seed = PARTS.index(part)
        late, never = (Training(1600, 0.03, decay, "sgd") for decay in (0.1, 0.0))
        return [
            Run(part, "late", "completion", seed, late, settings),
            Run(part, "late", "completion", seed + 10, late, settings),
            Run(part, "no decay", "completion", seed, never, settings),
        ]

    monkeypatch.setattr(runner, "collection", runs)
    return runs("build")


def test_the_lab_trains_runs_scores_rules_and_draws(few: list[Run], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["grok-lab", "--all", "--out", str(tmp_path / "lab"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["outcomes"] == {"hit": 10, "quiet": 5}
    assert set(found["rules"]) == set(RULES)
    assert found["rules"]["detector"]["held-out"]["recall"] == 1.0
    page = (tmp_path / "lab" / "index.html").read_text()
    assert page.count("<svg") == 10  # one run of every part and kind
    assert page.count(">generalising</text>") == 5  # an event of every run that comes late
    assert not re.search(r"<script|(src|href)=['\"]?https?:", page)
    kept = read_trajectories(tmp_path / "lab" / "trajectories-all-held-out.parquet")
    assert [run.seed for run in kept] == [1, 11, 1]
    assert len(json.loads((tmp_path / "lab" / "lab.json").read_text())["runs"]) == 15


def test_existing_runs_are_not_trained_again(few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CliRunner().invoke(app, ["grok-lab", "--out", str(tmp_path)])
    assert "2 runs: 1 hit, 1 quiet. Open" in first.stdout
    monkeypatch.setattr(Run, "train", lambda _: pytest.fail("trained again"))
    again = CliRunner().invoke(app, ["grok-lab", "--out", str(tmp_path)])
    assert again.exit_code == 0
    assert again.stdout == first.stdout


def test_a_folder_with_other_runs_is_refused(few: list[Run], tmp_path: Path) -> None:
    write_trajectories(tmp_path / "trajectories-quick-build.parquet", [build_run(MEMORY, MEMORY)] * 2)
    result = CliRunner().invoke(app, ["grok-lab", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds other runs" in result.stderr


def test_scoring_without_ruptures_names_the_package_before_training(
    few: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "train", lambda _: pytest.fail("trained"))
    monkeypatch.setitem(sys.modules, "ruptures", None)
    result = CliRunner().invoke(app, ["grok-lab", "--all", "--out", str(tmp_path / "lab")])
    assert result.exit_code == 2
    assert 'pip install "graphllmrec[lab]"' in result.stderr


def test_a_score_without_events_has_no_recall_and_no_delay() -> None:
    found = score([Reading(np.array([5]), np.array([0.0]))], 1.0, [Truth("none")])
    assert (found.recall, found.delay, found.lead, found.auroc, found.alarms_per_run) == (None, None, None, None, 0)


@pytest.mark.parametrize("part", ["held-out", "new task", "second held-out"])
def test_the_detector_reaches_its_published_figures_on_runs_not_used_to_build_it(part: Any) -> None:
    folder = Path(__file__).parents[1] / "benchmarks" / "results" / "grok-lab"
    made = read_trajectories(folder / f"trajectories-all-{part.replace(' ', '-')}.parquet")
    runs = [ScoredRun.of(run, each) for run, each in zip(collection(part), made, strict=True)]
    published = json.loads((folder / "lab.json").read_text())["rules"]
    for name in ("detector", "+.1 after the wait"):
        rule = RULES[name]
        found = score([rule.read(each) for each in made], rule.thresholds[0], [each.truth for each in runs])
        assert published[name][part]["hits"] == found.hits
        assert published[name][part]["false_alarms"] == found.false_alarms
        assert published[name][part]["median_delay"] == pytest.approx(found.delay)
        assert found.recall is not None
        assert found.alarms_per_run is not None
        assert found.delay is not None
        assert found.recall >= 0.95
        assert found.alarms_per_run <= 0.025
        assert found.delay <= 0.1
