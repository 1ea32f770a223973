"""Score detection rules against the ground truth: recall, false alarms and delay, on runs not used to build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphllmrec.grokking.lab.collection import Run
from graphllmrec.grokking.lab.rules import RULES, ObservedRun, Rule, first_detection, observe
from graphllmrec.grokking.lab.trajectory import Trajectory
from graphllmrec.grokking.lab.truth import Truth, find_truth

_ALARM_COST = 5.0  # of one false alarm per run, in units of recall


@dataclass(frozen=True)
class Score:
    """Counts of a rule over some runs."""

    events: int
    hits: int
    quiet: int  # runs without an event
    false_alarms: int  # detections in runs without an event, and detections before the time of a hit
    runs: int  # without unclear runs
    delays: tuple[float, ...]  # of hits, in units of the distance from memorisation to the event

    @property
    def recall(self) -> float | None:
        """Share of events that were hit; None without an event."""
        return self.hits / self.events if self.events else None

    @property
    def alarms_per_run(self) -> float | None:
        """False alarms per run; None without a run."""
        return self.false_alarms / self.runs if self.runs else None

    @property
    def delay(self) -> float | None:
        """Median delay of the hits; None without a hit."""
        return float(np.median(self.delays)) if self.delays else None

    @property
    def utility(self) -> float:
        """Recall - _ALARM_COST · false alarms per run: the criterion for choosing thresholds."""
        return (self.recall or 0.0) - _ALARM_COST * (self.alarms_per_run or 0.0)


@dataclass(frozen=True)
class ScoredRun:
    """A run of the collection with its curves, its ground truth and the output of the detector."""

    run: Run
    trajectory: Trajectory
    truth: Truth
    observed: ObservedRun

    @staticmethod
    def of(run: Run, trajectory: Trajectory) -> ScoredRun:
        """Add ground truth and detector output to the curves of a run."""
        return ScoredRun(run, trajectory, find_truth(trajectory), observe(trajectory))

    @property
    def outcome(self) -> str:
        """Outcome of the detector (see the function `outcome`)."""
        return outcome(self.truth, first_detection(self.observed))


def outcome(truth: Truth, detected: int | None) -> str:
    """ "hit", "missed", "late" or "early" with an event, "false alarm" or "quiet" without one; or "unclear"."""
    if truth.label == "unclear":
        return "unclear"
    if truth.label == "none":
        return "quiet" if detected is None else "false alarm"
    assert truth.onset is not None
    assert truth.event is not None
    if detected is None:
        return "missed"
    if detected < truth.onset - truth.distance / 10:
        return "early"
    return "hit" if detected <= truth.event + truth.distance / 10 else "late"


def score(rule: Rule, threshold: float, runs: Sequence[Trajectory], truths: Sequence[Truth]) -> Score:
    """Score a rule with this threshold."""
    found, delays = [], []
    for run, truth in zip(runs, truths, strict=True):
        detected = rule(run, threshold)
        found.append(outcome(truth, detected))
        if found[-1] == "hit":
            assert detected is not None
            assert truth.onset is not None
            delays.append((detected - truth.onset) / truth.distance)
    events = sum(truth.label == "event" for truth in truths)
    quiet = sum(truth.label == "none" for truth in truths)
    alarms = sum(each in ("early", "false alarm") for each in found)
    return Score(events, found.count("hit"), quiet, alarms, events + quiet, tuple(delays))


@dataclass(frozen=True)
class RuleScores:
    """The threshold of a rule, chosen on the part "build", and its score on every part."""

    threshold: float
    parts: Mapping[str, Score]


def compare(parts: Mapping[str, Sequence[ScoredRun]]) -> dict[str, RuleScores]:
    """Choose the threshold of every rule on the part "build"; score it on all parts."""
    curves = {part: ([each.trajectory for each in runs], [each.truth for each in runs]) for part, runs in parts.items()}
    table = {}
    for name, (rule, thresholds) in RULES.items():
        tried = {threshold: score(rule, threshold, *curves["build"]) for threshold in thresholds}
        best = max(tried, key=lambda threshold: tried[threshold].utility)
        others = {part: score(rule, best, *runs) for part, runs in curves.items() if part != "build"}
        table[name] = RuleScores(best, {"build": tried[best]} | others)
    return table
