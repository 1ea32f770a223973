"""Branches followed in training: what is measured, what stopping waits for, what a resumed run remembers."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from graphllmrec.data.split import Split
from graphllmrec.errors import Interrupted
from graphllmrec.grokking.gate_schedule import Snapshot
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, SilentLogger, Task
from graphllmrec.train import validation
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.loop import TrainingStage, train
from graphllmrec.train.monitor import BranchMonitor
from tiny import ITEMS, SPLIT, TASK, TRAIN, WALKS
from toy_training import CONFIG, EXAMPLES, STEPS, Run, send

# what is measured

WEIGHTS = np.random.default_rng(1).normal(size=(ITEMS, ITEMS))


def walked(queries: Queries) -> torch.Tensor:
    """Scores (B, num_items) from the items of the history; those of nobody's history are 0."""
    rows = [WEIGHTS[queries.histories[row]].sum(0) for row in range(len(queries))]
    return torch.from_numpy(np.array(rows)).float()


def expected(histories: list[np.ndarray], wanted: list[int]) -> tuple[float, float]:
    """Cross-entropy and NDCG@20 by hand: known items are out, but for the wanted one."""
    losses, gains = [], []
    for history, item in zip(histories, wanted, strict=True):
        scores = WEIGHTS[history].sum(0)
        open_ = [other for other in range(ITEMS) if other == item or other not in history]
        losses.append(math.log(sum(math.exp(scores[other] - scores[item]) for other in open_)))
        rank = sum(scores[other] >= scores[item] for other in open_)
        gains.append(1 / math.log2(rank + 1) if rank <= 20 else 0.0)
    return float(np.mean(losses)), float(np.mean(gains))


def watch(split: Split = SPLIT, **settings: Any) -> BranchMonitor:
    branches = settings.pop("branches", {"walk": walked})
    values = {"seed": 0, "users": 100, "learning_rate": 0.01, "weight_decay": 0.1} | settings
    return BranchMonitor(split, branches, **values)


def test_branches_are_asked_for_a_click_they_have_learned_and_for_one_they_have_not() -> None:
    figures, events = watch().look(0, 100)
    found = figures["branches"]["walk"]
    long_enough = [walk for walk in TRAIN if len(walk) > 1]
    for part, histories, wanted in (
        ("train", [walk[:-1] for walk in long_enough], [int(walk[-1]) for walk in long_enough]),
        ("valid", TRAIN, [int(walk[-2]) for walk in WALKS]),
    ):
        loss, gain = expected(histories, wanted)
        assert found[part]["loss"] == pytest.approx(loss, rel=1e-5)
        assert found[part]["ndcg@20"] == pytest.approx(gain, rel=1e-5)
    assert events == []
    assert figures["states"] == {"walk": "baseline"}


def test_whoever_scores_all_alike_knows_nothing() -> None:
    flat = watch(branches={"flat": lambda queries: torch.zeros(len(queries), ITEMS)})
    found = flat.look(0, 100)[0]["branches"]["flat"]["valid"]
    assert found["ndcg@20"] < 0.5  # the last of at most nine, not the first


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    some = [watch(users=5, seed=seed).look(0, 100)[0]["branches"]["walk"] for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]


# what happens

LATE = 40


@dataclass
class Story:
    """Scores of a branch that knows its training clicks from update 3, and validation clicks from update `late` on."""

    late: int = LATE
    now: int = -1
    asked: int = field(default=0)

    def __call__(self, queries: Queries) -> torch.Tensor:
        scores = torch.zeros(len(queries), ITEMS)
        training = self.asked % 2 == 0  # "train" is asked first
        self.asked += 1
        for row, user in enumerate(queries.users.tolist()):
            right = (training and self.now >= 3) or (not training and self.now >= self.late)
            item = TRAIN[user][-1] if training else WALKS[user][-2]
            scores[row, item] = 20.0 if right else -20.0
        return scores


def shown(watch_: BranchMonitor, story: Story, updates: int) -> list[dict[str, Any]]:
    events = []
    for story.now in range(updates):
        events += watch_.look(story.now * 10, 1000)[1]
    return events


def test_events_are_reported_and_shares_go_to_the_gate() -> None:
    story, moved = Story(), []

    def schedule(snapshot: Snapshot) -> dict[str, float]:
        return {"late": snapshot.detector.lift("late")}

    follows = watch(branches={"late": story}, gate_schedule=schedule, move=lambda shares: moved.append(dict(shares)))
    events = shown(follows, story, 60)
    assert [event["kind"] for event in events] == ["memorised", "generalising"]
    assert events[1]["branch"] == "late"
    assert LATE * 10 <= events[1]["detected"] <= (LATE + 5) * 10
    assert len(moved) == 60
    assert moved[LATE - 1] == {"late": 0.0}
    assert 0.75 < moved[-1]["late"] < 1.0  # the last of nine items has an NDCG, too


def test_stopping_waits_while_an_event_is_plausible_or_under_way() -> None:
    story = Story()
    follows = watch(branches={"late": story}, learning_rate=0.1, weight_decay=0.1)  # 1 / (lr wd) = 100 steps
    shown(follows, story, 20)
    memorised = next(iter(follows.detector._branches.values())).memorised
    reason = follows.waits(190, 1000)
    assert reason == {"branch": "late", "state": "plateau", "until": memorised + 500}
    assert follows.waits(memorised + 500, 1000) is None
    assert follows.waits(190, 200) == reason | {"until": 200}
    assert follows.waits(190, memorised + 10) is None  # not even the earliest event comes within the budget
    shown_on = Story(now=20)
    follows.branches = {"late": shown_on}
    for shown_on.now in range(20, LATE + 6):
        follows.look(shown_on.now * 10, 1000)
    assert follows.waits((LATE + 6) * 10, 1000) == {"branch": "late", "state": "generalising", "until": 1000}


def test_without_decay_nothing_is_waited_for() -> None:
    story = Story()
    follows = watch(branches={"late": story}, weight_decay=0.0)
    shown(follows, story, 20)
    assert follows.waits(200, 1000) is None


def test_what_was_measured_before_is_remembered() -> None:
    first, second = Story(), Story()
    whole, resumed = (watch(branches={"late": story}) for story in (first, second))
    kept = []
    for first.now in range(60):
        figures, _ = whole.look(first.now * 10, 1000)
        kept.append(figures)
    for place, figures in enumerate(kept[:30]):
        resumed.recall(place * 10, 1000, figures)
    events = []
    for second.now in range(30, 60):
        events += resumed.look(second.now * 10, 1000)[1]
    assert [event["kind"] for event in events] == ["generalising"]
    assert resumed.detector.event("late") == whole.detector.event("late")


@pytest.mark.parametrize(
    "name",
    [
        "lightgcn",
        "lightgcn-history",
        "lightgcn-softmax",
        "lightgcn-sampled",
        "sign",
        "graphsage",
        "alpharec",
        "alphafuse",
    ],
)
def test_models_of_one_piece_are_one_branch(name: str) -> None:
    """Asked for, their curve is in the log; the weights are the same."""
    notes, saved = _Logged(), []
    for users in (0, 5):
        model = build(name, {"epochs": 2, "validate_every": 1, "monitor_users": users})
        model.fit(replace(TASK, logger=notes if users else SilentLogger()))
        saved.append(save(model.state()))
    assert saved[0] == saved[1]
    epochs = [entry for entry in notes.logged if "branches" in entry]
    assert len(epochs) >= 3
    assert all(list(entry["branches"]) == [name] for entry in epochs)
    assert not any("share" in entry for entry in epochs)


@pytest.mark.parametrize("clicks", [1, 2])
def test_branches_are_monitored_where_a_user_has_two_training_clicks(clicks: int) -> None:
    """One is the history, the other the click that has been learned."""
    place = np.concatenate([np.arange(len(walk)) for walk in TRAIN])
    split = replace(SPLIT, train=SPLIT.train.where(place < clicks))
    model = build("alphafuse", {"monitor_users": 5})
    assert (validation.branch_monitor(model, Task(split), model.config) is not None) == (clicks > 1)


@pytest.mark.parametrize("stage", [None, "second"])
def test_a_stage_is_named_after_the_model_or_as_it_says(stage: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(validation, "train", lambda made, task: names.append(made.name))
    module = torch.nn.Linear(1, 1)
    validation.train_model(build("sign", {}), TASK, module, 3, lambda rows, at: module.weight.sum(), list, stage=stage)
    assert names == [stage or "sign"]


class _Logged(SilentLogger):
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, event: str, **values: Any) -> None:
        self.logged.append({"event": event, **values})


# in the loop


class Script:
    """A watch of its own: branch "a" moves the toy's buffer, and asks to wait until a step."""

    def __init__(self, run: Run, until: int = 0) -> None:
        self.run, self.until, self.seen = run, until, []

    def look(self, step: int, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        self.seen.append(step)
        self.run.module.seen.fill_(float(len(self.seen)))
        event = {"kind": "generalising", "branch": "a"}
        return {"branches": {"a": len(self.seen)}}, [event] if len(self.seen) == 3 else []

    def recall(self, step: int, steps: int, figures: dict[str, Any]) -> None:
        self.seen.append(step)
        assert figures["branches"] == {"a": len(self.seen)}

    def waits(self, step: int, steps: int) -> dict[str, Any] | None:
        return {"branch": "a", "until": self.until} if step < self.until else None


def followed(run: Run, folder: Path | None = None, until: int = 0) -> Script:
    script = Script(run, until)
    stage = TrainingStage("toy", run.module, EXAMPLES, run.loss, run.validate, run.config, metric="fit", monitor=script)
    checkpoints = Checkpoints(folder, every=0) if folder is not None else None
    train(stage, Task(SPLIT, None, run.seed, run.notes, checkpoints))
    return script


def test_patience_is_extended_and_the_log_says_why_once() -> None:
    settings = CONFIG.model_copy(update={"epochs": 12, "patience": 2})
    worse = {"metric": lambda toy: -float(toy.weight.norm())}  # the untrained one is the best
    assert len(followed(Run(settings, **worse)).seen) == 1 + 2
    run = Run(settings, **worse)
    script = followed(run, until=6 * STEPS)
    assert len(script.seen) == 1 + 6
    said = [entry for entry in run.notes.logged if entry["event"] == "waiting"]
    assert said == [{"event": "waiting", "stage": "toy", "epoch": 2, "branch": "a", "until": 6 * STEPS}]


def test_steps_are_those_of_the_optimiser_and_events_are_logged() -> None:
    run = Run()
    assert followed(run).seen == [STEPS * epoch for epoch in range(6)]
    [event] = [entry for entry in run.notes.logged if entry["event"] == "grokking"]
    assert event == {"event": "grokking", "stage": "toy", "epoch": 2, "kind": "generalising", "branch": "a"}


def test_the_weights_that_are_kept_are_those_that_were_measured() -> None:
    run = Run(CONFIG.model_copy(update={"epochs": 1}))
    followed(run)
    assert float(run.module.seen) == 1 + EXAMPLES  # moved to 1 after epoch 0, plus one epoch; not to 2 after it


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1, 3 * STEPS + 2])
def test_an_interrupted_run_goes_on_with_the_same_gate(tmp_path: Path, step: int) -> None:
    whole = Run()
    followed(whole)
    stopped = Run(at_step=send(signal.SIGTERM, step))
    with pytest.raises(Interrupted):
        followed(stopped, tmp_path)
    resumed = Run()
    followed(resumed, tmp_path)
    assert resumed.bytes == whole.bytes
    assert resumed.notes.logged == whole.notes.logged
