"""The fusion experiment of the lab at small size: variants, paired tests, and runs without an event."""

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
from graphllmrec.grokking.lab.fusion import (
    STATIC,
    Curves,
    NoEventRun,
    compare_variants,
    train_fusion,
    train_no_event,
    train_variants,
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred steps of a tenth of the items."""
    for name, value in (
        ("_STEPS", 100),
        ("_EVERY", 20),
        ("_USERS", 16),
        ("_CLICKED", 12),
        ("_NEW", 4),
        ("_EMBEDDING_DIM", 8),
    ):
        monkeypatch.setattr(fusion, name, value)


def test_curves_are_a_function_of_the_seed_and_have_a_point_per_measurement() -> None:
    first, again, other = train_fusion(1), train_fusion(1), train_fusion(2)
    assert first.digest == again.digest != other.digest
    assert first.step == list(range(0, 101, 20))
    for curve in (first.valid, first.test, first.gate, *first.branches.values()):
        assert curve.shape == (6,)
        assert ((curve >= 0) & (curve <= 1)).all()
    assert first.area == pytest.approx(first.test.mean())
    assert first.final == first.test[-1]


def test_new_items_are_ranked_by_text_alone_at_any_weight() -> None:
    net = fusion._Net(0, "late", 0.3)
    assert not net.known[:, 12:].any()
    for static in (None, 0.1):
        gamma = net.gamma(static)
        assert gamma[12:].tolist() == [1.0] * 4
        expected = 0.1 if static else torch.sigmoid(net.gate[0] + net.gate[1] * net.clicks[:12])
        torch.testing.assert_close(gamma[:12], torch.as_tensor(expected).expand(12))


def test_a_positive_shift_raises_the_weight_of_the_text() -> None:
    net = fusion._Net(0, "late", 0.3)
    before = net.gamma(None)[:12]
    net.shift.fill_(0.5)
    torch.testing.assert_close(net.gamma(None)[:12], before + 0.5 * (1 - before))
    assert float(net.gamma(0.2)[0]) == pytest.approx(0.2)  # a static weight stays


def test_static_weights_are_chosen_on_validation() -> None:
    found = train_variants(3)
    static = {weight: train_fusion(3, static=weight) for weight in STATIC}
    best_area = max(STATIC, key=lambda weight: static[weight].valid.mean())
    best_final = max(STATIC, key=lambda weight: static[weight].valid[-1])
    assert found["static, best on the way"].digest == static[best_area].digest
    assert found["static, best in the end"].digest == static[best_final].digest
    assert found["gate"].digest == train_fusion(3, init=best_area).digest
    assert list(found)[3:] == ["gate, grokking", "gate, ratio", "gate, late"]


@pytest.mark.parametrize("world", ["no decay", "small start"])
def test_without_an_event_the_schedule_changes_nothing(world: fusion.World) -> None:
    assert train_no_event(0, world) == NoEventRun(detected=False, identical=True)


def test_a_schedule_that_shifts_the_gate_changes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train_fusion(0)
    monkeypatch.setattr(fusion, "build_gate_schedule", lambda *_: lambda _moment: {"text": 0.5, "graph": 0.0})
    shifted = train_fusion(0)
    assert shifted.digest != plain.digest
    assert shifted.gate[1:].mean() > plain.gate[1:].mean() + 0.1


def curves(values: list[float]) -> Curves:
    curve = np.array(values)
    return Curves([0, 1], curve, curve, {}, curve, [], "")


def test_differences_are_paired_and_tested_by_all_flips_of_their_signs() -> None:
    ours, theirs = [0.9, 0.8, 0.95, 0.7, 0.85], [0.8, 0.75, 0.97, 0.6, 0.8]
    runs = [{"gate, grokking": curves([x, x]), "gate": curves([y, y])} for x, y in zip(ours, theirs, strict=True)]
    rows = {row["name"]: row for row in compare_variants(range(5), runs)}
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
