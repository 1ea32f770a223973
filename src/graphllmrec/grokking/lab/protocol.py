"""How well rules detect grokking: recall, false alarms, delay, on runs that were not used to build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphllmrec.grokking.lab.collection import Run
from graphllmrec.grokking.lab.rules import RULES, Rule, Watched, first_event, watch
from graphllmrec.grokking.lab.trajectory import Trajectory
from graphllmrec.grokking.lab.truth import Truth, truth_of

_ALARM = 5.0  # what a false alarm per run costs against recall, when a threshold is chosen


@dataclass(frozen=True)
class Score:
    """A rule's outcome on some runs."""

    events: int
    hits: int
    quiet: int  # runs without an event
    false_alarms: int  # in quiet runs, and in runs with an event before its time
    runs: int  # without the unclear ones
    delays: tuple[float, ...]  # of hits, in distances from memorisation to the event

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
    def worth(self) -> float:
        """Recall, less _ALARM per false alarm per run: what thresholds are chosen by."""
        return (self.recall or 0.0) - _ALARM * (self.alarms_per_run or 0.0)


@dataclass(frozen=True)
class Judged:
    """A run of the collection with what it shows, and what the detector said of it."""

    run: Run
    made: Trajectory
    truth: Truth
    seen: Watched

    @staticmethod
    def of(run: Run, made: Trajectory) -> Judged:
        """Judge one."""
        return Judged(run, made, truth_of(made), watch(made))

    @property
    def outcome(self) -> str:
        """See `outcome`."""
        return outcome(self.truth, first_event(self.seen))


def outcome(truth: Truth, detected: int | None) -> str:
    """ "hit", "missed", "late", "early", "false alarm", "quiet", or "unclear"."""
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
    """Judge a rule with this threshold."""
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
    """A rule with the threshold that was chosen on the build part, and how it does on every part."""

    threshold: float
    parts: Mapping[str, Score]


def compare(parts: Mapping[str, Sequence[Judged]]) -> dict[str, RuleScores]:
    """Every rule's threshold, chosen on the part "build", and its scores on all of them."""
    shown = {part: ([each.made for each in runs], [each.truth for each in runs]) for part, runs in parts.items()}
    table = {}
    for name, (rule, thresholds) in RULES.items():
        tried = {threshold: score(rule, threshold, *shown["build"]) for threshold in thresholds}
        best = max(tried, key=lambda threshold: tried[threshold].worth)
        others = {part: score(rule, best, *runs) for part, runs in shown.items() if part != "build"}
        table[name] = RuleScores(best, {"build": tried[best]} | others)
    return table
