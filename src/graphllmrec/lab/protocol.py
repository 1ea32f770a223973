"""How well rules detect grokking: recall, false alarms, delay, on runs that were not used to build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphllmrec.lab.rules import RULES, Rule
from graphllmrec.lab.trajectory import Trajectory
from graphllmrec.lab.truth import Truth, truth_of

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
    def recall(self) -> float:
        """Share of events that were hit."""
        return self.hits / self.events if self.events else float("nan")

    @property
    def alarms_per_run(self) -> float:
        """False alarms per run."""
        return self.false_alarms / self.runs if self.runs else float("nan")

    @property
    def delay(self) -> float:
        """Median delay of the hits."""
        return float(np.median(self.delays)) if self.delays else float("nan")


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


def compare(build: Sequence[Trajectory], held_out: Sequence[Trajectory]) -> Mapping[str, tuple[float, Score, Score]]:
    """Every rule's threshold, chosen on `build`, and its scores on both parts."""
    known = [truth_of(run) for run in build], [truth_of(run) for run in held_out]
    table = {}
    for name, (rule, thresholds) in RULES.items():
        tried = {threshold: score(rule, threshold, build, known[0]) for threshold in thresholds}
        best = max(tried, key=lambda threshold: tried[threshold].recall - _ALARM * tried[threshold].alarms_per_run)
        table[name] = (best, tried[best], score(rule, best, held_out, known[1]))
    return table
