"""The fusion experiment of the lab, small: what is compared, how, and what must not change."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from graphllmrec.cli import app
from graphllmrec.grokking.lab import fusion
from graphllmrec.grokking.lab.fusion import STATIC, Course, Quiet, compare_courses, courses, follow, quiet


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred steps of a tenth of the items."""
    for name, value in (("_STEPS", 100), ("_EVERY", 20), ("_USERS", 16), ("_CLICKED", 12), ("_NEW", 4), ("_DIMS", 8)):
        monkeypatch.setattr(fusion, name, value)


def test_a_course_is_a_function_of_its_seed_and_has_a_point_per_measurement() -> None:
    first, again, other = follow(1), follow(1), follow(2)
    assert first.digest == again.digest != other.digest
    assert first.step == list(range(0, 101, 20))
    for curve in (first.valid, first.test, first.gate, *first.branches.values()):
        assert curve.shape == (6,)
        assert ((curve >= 0) & (curve <= 1)).all()
    assert first.area == pytest.approx(first.test.mean())
    assert first.final == first.test[-1]


def test_new_items_are_ranked_by_words_alone_whatever_the_weight() -> None:
    net = fusion._Net(0, "late", 0.3)
    assert not net.known[:, 12:].any()
    for static in (None, 0.1):
        gamma = net.gamma(static)
        assert gamma[12:].tolist() == [1.0] * 4
        expected = 0.1 if static else torch.sigmoid(net.gate[0] + net.gate[1] * net.clicks[:12])
        torch.testing.assert_close(gamma[:12], torch.as_tensor(expected).expand(12))


def test_a_gate_that_was_moved_gives_the_text_more() -> None:
    net = fusion._Net(0, "late", 0.3)
    before = net.gamma(None)[:12]
    net.moved.fill_(0.5)
    torch.testing.assert_close(net.gamma(None)[:12], before + 0.5 * (1 - before))
    assert float(net.gamma(0.2)[0]) == pytest.approx(0.2)  # a static weight stays


def test_static_weights_are_chosen_on_validation() -> None:
    found = courses(3)
    static = {weight: follow(3, static=weight) for weight in STATIC}
    on_the_way = max(STATIC, key=lambda weight: static[weight].valid.mean())
    in_the_end = max(STATIC, key=lambda weight: static[weight].valid[-1])
    assert found["static, best on the way"].digest == static[on_the_way].digest
    assert found["static, best in the end"].digest == static[in_the_end].digest
    assert found["gate"].digest == follow(3, first=on_the_way).digest
    assert list(found)[3:] == ["gate, grokking", "gate, ratio", "gate, late"]


@pytest.mark.parametrize("world", ["no decay", "small start"])
def test_without_an_event_the_control_changes_nothing(world: fusion.World) -> None:
    assert quiet(0, world) == Quiet(told=False, identical=True)


def test_a_control_that_moves_the_gate_changes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = follow(0)
    monkeypatch.setattr(fusion, "build_gate_schedule", lambda *_: lambda _moment: {"text": 0.5, "graph": 0.0})
    moved = follow(0)
    assert moved.digest != plain.digest
    assert moved.gate[1:].mean() > plain.gate[1:].mean() + 0.1


def course(values: list[float]) -> Course:
    curve = np.array(values)
    return Course([0, 1], curve, curve, {}, curve, [], "")


def test_differences_are_paired_and_tested_by_all_flips_of_their_signs() -> None:
    ours, theirs = [0.9, 0.8, 0.95, 0.7, 0.85], [0.8, 0.75, 0.97, 0.6, 0.8]
    runs = [{"gate, grokking": course([x, x]), "gate": course([y, y])} for x, y in zip(ours, theirs, strict=True)]
    rows = {row["name"]: row for row in compare_courses(range(5), runs)}
    assert "p" not in rows["gate, grokking"]["area"]
    found, differences = rows["gate"]["final"], np.array(ours) - theirs
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["mean"] == pytest.approx(np.mean(theirs))
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=5)]
    assert found["p"] == pytest.approx(np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12))


def test_the_command_writes_table_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphllmrec.grokking.lab.runner.run_fusion.__defaults__", (2,))
    result = CliRunner().invoke(app, ["grok-lab", "--fusion", "--out", str(tmp_path / "lab"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [row["name"] for row in found["table"]][-4:] == ["gate", "gate, grokking", "gate, ratio", "gate, late"]
    same = {"told": False, "identical": True}
    assert found["without an event"] == {"no decay": [same, same], "small start": [same, same]}
    assert json.loads((tmp_path / "lab" / "fusion.json").read_text())["table"] == found["table"]
    page = (tmp_path / "lab" / "fusion.html").read_text()
    assert page.count("<svg") == 3
    assert page.count("no event is detected in 2 of 2 runs") == 2
    assert page.count("and in 2 of these all weights are identical to the last bit") == 2
    assert not re.search(r"<script|(src|href)=['\"]?https?:", page)
