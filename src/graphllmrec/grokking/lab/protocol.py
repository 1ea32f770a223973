"""Score detection rules against the ground truth: recall, false alarms and delay, on runs not used to build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphllmrec.grokking.lab.collection import BUILD, Run
from graphllmrec.grokking.lab.rules import RULES, ObservedRun, Reading, first_detection, observe
from graphllmrec.grokking.lab.trajectory import Curve, Trajectory
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
    delays: tuple[float, ...]  # of hits, from the onset, in units of the distance from memorisation to the event
    leads: tuple[float, ...] = ()  # of hits, to the event, in the same units; below 0 after it
    auroc: float | None = None  # of the largest value in a run: events against runs without; None without either

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
    def lead(self) -> float | None:
        """Median lead time of the hits; None without a hit."""
        return float(np.median(self.leads)) if self.leads else None

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


def score(readings: Sequence[Reading], threshold: float, truths: Sequence[Truth]) -> Score:
    """Score a rule's readings of some runs with this threshold."""
    found, delays, leads = [], [], []
    for reading, truth in zip(readings, truths, strict=True):
        detected = reading.detect(threshold)
        found.append(outcome(truth, detected))
        if found[-1] == "hit":
            assert detected is not None
            assert truth.onset is not None
            assert truth.event is not None
            delays.append((detected - truth.onset) / truth.distance)
            leads.append((truth.event - detected) / truth.distance)
    highest = {
        label: np.array([each.highest for each, truth in zip(readings, truths, strict=True) if truth.label == label])
        for label in ("event", "none")
    }
    events, quiet = len(highest["event"]), len(highest["none"])
    alarms = sum(each in ("early", "false alarm") for each in found)
    return Score(
        events, found.count("hit"), quiet, alarms, events + quiet, tuple(delays), tuple(leads), _auroc(**highest)
    )


def _auroc(event: Curve, none: Curve) -> float | None:
    """Share of pairs in which the run with an event has the larger value; ties count half."""
    if not len(event) or not len(none):
        return None
    return float((event[:, None] > none).mean() + (event[:, None] == none).mean() / 2)


@dataclass(frozen=True)
class RuleScores:
    """The threshold of a rule, chosen on the parts to build on, and its score on every part."""

    threshold: float
    parts: Mapping[str, Score]


def compare(parts: Mapping[str, Sequence[ScoredRun]]) -> dict[str, RuleScores]:
    """Choose the threshold of every rule on the parts to build on, taken together; score it on all parts."""
    truths = {part: [each.truth for each in runs] for part, runs in parts.items()}
    built = [truth for part in BUILD for truth in truths.get(part, [])]
    table = {}
    for name, rule in RULES.items():
        readings = {part: [rule.read(each.trajectory) for each in runs] for part, runs in parts.items()}
        on = [reading for part in BUILD for reading in readings.get(part, [])]
        best = max(rule.thresholds, key=lambda threshold: score(on, threshold, built).utility)
        table[name] = RuleScores(best, {part: score(readings[part], best, truths[part]) for part in parts})
    return table
