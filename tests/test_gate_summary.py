"""What is told of a gate: mean and quartiles by training clicks and by context."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphllmrec.evaluation.strata import gate_summary
from graphllmrec.report.plots.training import gate_log, gate_log_figure

GAMMA = torch.tensor([0.9, 0.5, 0.7, 0.1, 0.3, 0.2])
DEGREE = torch.tensor([0.0, 1.0, 3.0, 4.0, 60.0, 5.0])


def test_groups_by_clicks_have_the_mean_and_quartiles_of_their_items() -> None:
    found = gate_summary(GAMMA, DEGREE, {})
    assert list(found) == ["clicks 0", "clicks 1-3", "clicks 4-10", "clicks >50"]  # nobody has 11 to 50
    assert found["clicks 1-3"]["items"] == 2
    assert found["clicks 1-3"]["mean"] == pytest.approx(0.6)
    row = found["clicks 4-10"]
    values = sorted([0.1, 0.2])
    assert [row[key] for key in ("q25", "q50", "q75")] == pytest.approx([values[0], values[0], values[1]])


def test_contexts_weigh_items_by_membership() -> None:
    weight = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.25, 0.25])
    found = gate_summary(GAMMA, DEGREE, {"cold": weight, "nobody": torch.zeros(6)})
    assert "nobody" not in found
    assert found["cold"]["items"] == pytest.approx(2.0)
    assert found["cold"]["mean"] == pytest.approx(float((GAMMA * weight).sum() / 2))
    repeated = np.sort(np.repeat(GAMMA.numpy(), (4 * weight).int().numpy()))  # the same as whole items
    expected = [repeated[int(np.ceil(share * len(repeated))) - 1] for share in (0.25, 0.5, 0.75)]
    assert [found["cold"][key] for key in ("q25", "q50", "q75")] == pytest.approx(expected)


def test_the_gate_is_drawn_from_the_log_lines_that_have_it() -> None:
    entries = [
        {"event": "gate-or-static", "gate": 0.13, "static": 0.12},
        {"event": "epoch", "epoch": 1, "gate": gate_summary(GAMMA, DEGREE, {})},
        {"event": "epoch", "epoch": 2, "gate": gate_summary(GAMMA / 2, DEGREE, {})},
    ]
    assert len(gate_log(entries)) == 2
    svg = gate_log_figure(entries, ["clicks 0", "clicks 1-3"], "a <title>")
    assert svg.startswith('<svg role="img" aria-label="a &lt;title&gt;"')
    assert "clicks 1-3" in svg
