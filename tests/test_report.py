"""The HTML report: complete, self-contained, well-formed, and honest about who is better."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
import pytest
from matplotlib.text import Text

import graphllmrec.report
from evaluation_toys import Oracle, Silent, random_split
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.evaluation import evaluate_model, protocol_line
from graphllmrec.report.elements import difference_cell, number_cells
from graphllmrec.report.format import (
    against_text,
    are_best,
    interval,
    interval_text,
    leaders,
    listed,
    number,
    p_value,
    percent,
    relative,
    short,
    signed,
    spread,
)
from graphllmrec.report.plots.look import label_ends, looks, new_figure, shortened, spread_labels
from graphllmrec.report.plots.training import GateTable, curves_by_stage, gate_shares, stage_curves
from graphllmrec.report.render import write_page
from graphllmrec.report.run_report import ReportEntry, write_report
from graphllmrec.report.runs import _gate_notes

SPLIT = random_split(num_users=150)
DEGREE = SPLIT.item_degree()
GATE = GateTable(
    DEGREE,
    (1 / (1 + DEGREE)).astype(np.float32),
    {"cold/tail": (DEGREE < 3).astype(np.float32), "warm/head": (DEGREE >= 3).astype(np.float32)},
)
CURVES = [{"event": "stage", "name": "clicks"}] + [
    {"event": "epoch", "epoch": epoch, "loss": 1 / epoch, "ndcg@20": 0.1 * epoch} for epoch in range(1, 6)
]


def entries() -> list[ReportEntry]:
    evaluations = [
        evaluate_model(Oracle(SPLIT, noise, seed, name), SPLIT)
        for name, noise, seed in (("weak <b>", 1.0, 2), ("strong", 0.3, 1), ("twin", 1.0, 3))
    ]
    return [
        ReportEntry("weak <b>", evaluations[0], seconds=0.5),
        ReportEntry("strong", evaluations[1], CURVES, GATE, 61.25),
        ReportEntry("twin", evaluations[2]),
    ]


class Outline(HTMLParser):
    """Checks that elements are closed in order, and keeps ids, references and visible text."""

    EMPTY = frozenset({"meta", "br", "circle", "line", "path", "use", "rect", "clippath"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        self.keep(attrs)

    def handle_startendtag(self, tag, attrs):
        self.keep(attrs)

    def handle_endtag(self, tag):
        while self.open[-1] != tag and self.open[-1] in self.EMPTY:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def keep(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.references.append(value)
            self.references += [f"#{key}" for key in re.findall(r"url\(#(.+?)\)", value or "")]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "sub" / "report.html"
    write_report(path, "Beauty & co", entries(), notes=["tuned on <validation> only"], baseline="weak <b>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # nothing temporary is left
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_it_is_well_formed_and_needs_nothing_from_outside(page, outline):
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {reference.removeprefix("#") for reference in outline.references} <= set(outline.ids)
    assert "<script" not in page
    assert not re.search(r"(src|href)=['\"]?https?:|@import|url\(['\"]?http", page)


def test_names_and_notes_are_escaped(page):
    assert "weak <b>" not in page
    assert "weak &lt;b&gt;" in page
    assert "Beauty &amp; co" in page
    assert "tuned on &lt;validation&gt; only" in page


def test_the_verdict_names_winner_interval_and_significance(outline):
    strong = entries()[1].evaluation
    low, high = strong.overall_ci["ndcg@20"]
    value = strong.overall["ndcg@20"]
    assert f"strong ranks best: ndcg@20 {value:.4f} (95 % interval {low:.4f} to {high:.4f})" in outline.text
    assert "against weak <b> (significant, p<.001, Holm-corrected)" in outline.text
    assert f"For {100 * strong.overall['hr@20']:.0f} of 100 users" in outline.text


def test_every_model_value_and_stratum_is_there_with_its_protocol(page, outline):
    rows = entries()
    for row in rows:
        assert f"{row.evaluation.overall['recall@20']:.4f}" in outline.text
        for stratum in row.evaluation.strata["item_degree"].values():
            if stratum["users"]:
                assert f"{stratum['ndcg@20']:.4f}" in outline.text
    assert "61.2" in outline.text
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 6  # two of strata, gate, contexts, metric and loss by epoch
    assert all("<svg role=" in figure and "<h3>" in figure for figure in figures)
    assert page.count(protocol_line(rows[0].evaluation.protocol)) == 1  # once for all, at the top
    for said in ("all items ranked, training items masked", "Vertical bars: 95 % intervals", "only the course can be"):
        assert outline.text.count(said) == 1  # above the figures of a section, not below each of them


def test_same_entries_same_bytes(page, tmp_path):
    write_report(tmp_path / "again.html", "Beauty & co", entries(), notes=["tuned on <validation> only"])
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page  # the first entry is the default baseline


def test_one_model_alone_is_not_compared(tmp_path):
    write_report(tmp_path / "one.html", "One", [entries()[1]])
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "<strong>strong</strong> reaches ndcg@20" in text
    assert "Holm" not in text
    assert "baseline" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_a_model_that_is_not_better_is_not_praised(tmp_path):
    weak, _, twin = entries()
    write_report(tmp_path / "two.html", "Two", [weak, twin])
    text = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "(not significant, p" in text or "and it is the baseline" in text
    assert 'class="good"' not in text


def test_entries_that_cannot_be_on_one_page(tmp_path):
    path = Path(tmp_path / "no.html")
    weak, strong, _ = entries()
    with pytest.raises(EvaluationError, match="entries with different names; got none"):
        write_report(path, "No", [])
    with pytest.raises(EvaluationError, match="entries with different names; got strong, strong"):
        write_report(path, "No", [strong, strong])
    with pytest.raises(EvaluationError, match="no evaluation named 'ease' to compare with"):
        write_report(path, "No", [weak, strong], baseline="ease")
    other = ReportEntry("valid", evaluate_model(Oracle(SPLIT, 1.0), SPLIT, "valid"))
    with pytest.raises(EvaluationError, match="cannot be compared"):
        write_report(path, "No", [weak, other])
    assert not path.exists()


def test_a_model_keeps_its_look_and_the_baseline_is_apart():
    many = looks([f"m{place}" for place in range(14)], baseline="m3", best="m5")
    assert many["m3"].dashed
    assert sum(look.dashed for look in many.values()) == 1
    assert len({(look.colour, look.marker) for look in many.values()}) == 14
    assert max(many, key=lambda name: many[name].width) == "m5"


def test_labels_are_moved_apart_as_little_as_needed():
    assert spread_labels([0.1, 0.5, 0.9], 0.05) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_labels([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    places = spread_labels(np.sort(np.random.default_rng(0).random(12)), 0.06)
    assert np.diff(places).min() >= 0.06 - 1e-9


def test_labels_stay_beside_the_axis_where_there_is_room():
    assert spread_labels([0.0, 0.0, 0.0, 0.5], 0.1) == pytest.approx([0.0, 0.1, 0.2, 0.5])
    assert spread_labels([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert spread_labels([0.5, 0.5, 0.5], 0.6) == pytest.approx([0.0, 0.6, 1.2])


def labelled(ends):
    """Where the names at the ends of lines and their leaders are drawn, in pixels, bottom up; and the figure."""
    figure, axes = new_figure()
    axes.set_ylim(0, 1)
    label_ends(axes, ends, looks(list(ends)))
    figure.draw_without_rendering()
    names = sorted(axes.texts, key=lambda label: label.get_position()[1])
    boxes = [label.get_window_extent() for label in names]
    leaders = [label.arrow_patch.get_window_extent() for label in names]
    # an annotation's own box includes its leader
    texts = [Text.get_window_extent(label) for label in names]
    return figure, texts, leaders, boxes


@pytest.mark.parametrize("many", [3, 8, 25])
def test_names_of_lines_that_end_at_0_do_not_cover_each_other(many):
    figure, texts, leaders, boxes = labelled({f"model-{place}": 0.0 for place in range(many)})
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(texts))
    assert figure.bbox.y0 <= min(box.y0 for box in boxes)
    assert max(box.y1 for box in boxes) <= figure.bbox.y1 + 1
    assert all(leader.x1 <= text.x0 + 1 for leader, text in zip(leaders, texts, strict=True))  # crosses no name


def test_a_long_name_stays_within_the_figure_and_keeps_its_end():
    long = "runs/of/last/week/lightgcn-with-many-layers"
    figure, texts, *_ = labelled({"ease": 0.2, long: 0.6, long + "-2": 0.7})
    assert max(text.x1 for text in texts) <= figure.bbox.x1 + 1
    assert shortened("ease") == "ease"
    assert shortened(long).startswith("…")
    assert long.endswith(shortened(long)[1:])
    assert shortened(long) != shortened(long + "-2")


def test_epochs_that_start_again_in_a_later_stage_are_counted_through():
    stages = [(2, 0.1), (4, 0.2), (5, None), (1, None), (2, 0.3)]  # evaluated every second epoch; stage two starts at 1
    log = [{"epoch": epoch} | ({"ndcg@20": value} if value else {}) for epoch, value in stages]
    first, second = stage_curves(log, "ndcg@20")
    assert (first.epochs, first.values) == ([2, 4], [0.1, 0.2])
    assert (second.epochs, second.values) == ([7], [0.3])


def test_stages_with_different_losses_are_different_curves():
    log = [{"event": "epoch", "stage": "align", "epoch": epoch, "loss": 5.0 - epoch} for epoch in (1, 2)]
    log += [{"event": "epoch", "stage": "rank", "epoch": epoch, "loss": 8.0 - epoch} for epoch in (1, 2, 3)]
    log += [{"event": "epoch", "stage": "gate-fold-1", "epoch": 1, "loss": 1.0}]
    log += [{"event": "grokking", "stage": "rank", "epoch": 9, "branch": "text", "kind": "generalising", "loss": 2.0}]
    found = [(curve.epochs, curve.values) for curve in stage_curves(log, "loss")]
    assert found == [([1, 2], [4.0, 3.0]), ([3, 4, 5], [7.0, 6.0, 5.0])]
    assert stage_curves(log, "ndcg@20") == []


def staged_log(*stages):
    return [
        {"event": "epoch", "stage": stage, "epoch": epoch, "loss": 5.0 - epoch} for stage in stages for epoch in (1, 2)
    ]


def test_stages_of_one_training_have_figures_of_their_own(tmp_path):
    logs = {"hybrid": staged_log("sign", "gate"), "sign": staged_log("sign"), "graph": staged_log("graph")}
    found = curves_by_stage(logs, "loss")
    assert {stage: list(group) for stage, group in found.items()} == {
        "": ["graph"],
        "sign": ["hybrid", "sign"],
        "gate": ["hybrid"],
    }
    assert found["gate"]["hybrid"].own_epochs == [1, 2]
    rows = entries()
    page = tmp_path / "a.html"
    write_report(
        page, "A", [ReportEntry(n, row.evaluation, log) for (n, log), row in zip(logs.items(), rows, strict=True)]
    )
    titles = re.findall(r"<h3>(Loss by epoch.*?)</h3>", page.read_text(encoding="utf-8"))
    assert titles == ["Loss by epoch", "Loss by epoch, sign", "Loss by epoch, gate"]


def test_stages_without_a_name_are_numbered():
    log = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 1, 2)]
    assert list(curves_by_stage({"old": log}, "loss")) == ["stage 1", "stage 2"]


def test_a_curve_that_repeats_another_is_dashed_on_it(tmp_path):
    weak, strong, _ = entries()
    for other, dashed in ((CURVES, True), (CURVES[:-1], False)):
        rows = [ReportEntry("a", weak.evaluation, CURVES), ReportEntry("b", strong.evaluation, other)]
        write_report(tmp_path / "a.html", "A", rows)
        loss = (tmp_path / "a.html").read_text(encoding="utf-8").split("<h3>Loss by epoch</h3>")[1]
        assert ("stroke-dasharray" in loss.split("</figure>")[0]) == dashed


def branch_log(event=None):
    """Three validations of a model with two branches; the text is given a share of the gate from the second on."""
    lines = [
        {
            "event": "epoch", "stage": "recmind", "epoch": epoch, "ndcg@20": 0.1,
            "branches": {
                name: {"train": {"loss": 1.0, "ndcg@20": 0.9}, "valid": {"loss": 2.0, "ndcg@20": level}}
                for name, level in (("graph", 0.1), ("text", 0.1 * epoch), ("fused", 0.2))
            },
            "share": {"graph": 0.0, "text": 0.5 if event and epoch else 0.0},
        }
        for epoch in range(3)
    ]  # fmt: skip
    return [*lines, *([event] if event else [])]


def test_branches_are_drawn_by_part_and_an_event_is_told(tmp_path):
    _, strong, _ = entries()
    event = {"event": "grokking", "stage": "recmind", "epoch": 1, "branch": "text", "kind": "generalising"}
    memorised = event | {"kind": "memorised"}
    for told, parts in ((None, 2), (memorised, 3), (event, 3)):
        write_report(tmp_path / "a.html", "A", [ReportEntry("m", strong.evaluation, branch_log(told))])
        text = (tmp_path / "a.html").read_text(encoding="utf-8")
        assert sum(title in text for title in ("Branches on validation, m", "Branches on training, m")) == 2
        assert (text.count("<h3>Gate share handed over, m</h3>") == 1) == (parts == 3)
        assert ("text: generalising, detected at epoch 1." in text) == (told is event)
        assert ("No branch generalised late" in text) == (told is not event)


def test_shares_of_the_gate_are_read_from_old_and_new_logs():
    assert gate_shares({"prior": {"text": 0.5}}) == gate_shares({"share": {"text": 0.5}}) == {"text": 0.5}
    assert gate_shares({}) == {}


def test_models_with_the_same_contexts_share_a_figure(tmp_path):
    weak, strong, twin = entries()
    other = GateTable(DEGREE, GATE.gamma, {"cold": np.ones(len(DEGREE), dtype=np.float32)})
    rows = [
        ReportEntry(row.name, row.evaluation, [], gate) for row, gate in ((strong, GATE), (twin, GATE), (weak, other))
    ]
    write_report(tmp_path / "a.html", "A", rows)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h3>Contexts by training clicks, (.*?)</h3>", text)
    assert titles == ["strong and twin", "weak &lt;b&gt;"]


def test_contexts_of_which_only_some_are_the_same_are_not_shared():
    more = GateTable(DEGREE, GATE.gamma, {**GATE.contexts, "new": (DEGREE == 0).astype(np.float32)})
    assert GATE.shares_contexts(GateTable(DEGREE, 1 - GATE.gamma, dict(GATE.contexts)))
    assert not GATE.shares_contexts(more)
    assert not more.shares_contexts(GATE)


def gate_lines(level):
    summary = {"mean": level, "q25": level - 0.1, "q50": level, "q75": level + 0.1}
    gate = {"clicks 0": summary, "clicks >50": summary, "cold/tail": summary}
    return [{"event": "epoch", "stage": "gate", "epoch": epoch, "loss": 1.0, "gate": gate} for epoch in range(1, 50)]


def test_models_with_the_same_gate_over_training_share_its_figures(tmp_path):
    weak, strong, twin = entries()
    logs = {"hybrid": gate_lines(0.5), "again": gate_lines(0.5), "other": gate_lines(0.3)}
    rows = [
        ReportEntry(name, row.evaluation, log, GATE)
        for (name, log), row in zip(logs.items(), (weak, strong, twin), strict=True)
    ]
    write_report(tmp_path / "a.html", "A", rows)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    parts = [f"{what}, {who}" for who in ("hybrid and again", "other") for what in ("clicks", "context")]
    assert re.findall(r"<h3>Gate over training by (.*?)</h3>", text) == parts
    assert re.findall(r"<h3>Contexts by training clicks, (.*?)</h3>", text) == ["hybrid, again and other"]
    assert text.count("Band: the middle half") == 1


# nothing is called best for nothing


def test_where_every_model_has_0_none_is_best(tmp_path):
    split = random_split(num_users=80, num_items=200)
    rows = [ReportEntry(name, evaluate_model(Silent(split, name), split)) for name in ("popularity", "ease")]
    write_report(tmp_path / "a.html", "A", rows)
    body = (tmp_path / "a.html").read_text(encoding="utf-8").split("<body>")[1]
    assert "No test item of any user is among the first 20 of 200 items: ndcg@20 is 0 for every model." in body
    assert "best" not in body.split("<h2>Overall</h2>")[0]
    assert "<td><b>" not in body
    assert "both 0" in body
    assert "1.000" not in body.split("<h2>Overall</h2>")[1].split("gini: 0")[0]  # p says nothing
    assert "0.0000–0.0000" not in body


def test_where_the_rarest_items_are_found_by_no_model_none_is_best_there(tmp_path):
    split = random_split(num_users=300, num_items=1_000)
    rare = split.item_degree() <= 3
    rows = []
    for name, noise in (("popularity", 0.2), ("ease", 0.1)):
        model = Oracle(split, noise, name=name)
        model.matrix[:, rare] = -9.0
        rows.append(ReportEntry(name, evaluate_model(model, split)))
    write_report(tmp_path / "a.html", "A", rows)
    said = (tmp_path / "a.html").read_text(encoding="utf-8").split("<h2>Overall</h2>")[0]
    assert re.search(r"where that item had (no training click|1-3 training clicks), for none\.", said)
    assert "best there" not in said


def test_models_that_are_equal_are_both_named(tmp_path):
    weak, strong, _ = entries()
    rows = [weak, ReportEntry("a", strong.evaluation), ReportEntry("b", strong.evaluation)]
    write_report(tmp_path / "a.html", "A", rows)
    assert "<strong>a and b</strong> rank best, all with ndcg@20" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_who_leads():
    assert leaders({"a": 0.1, "b": 0.3, "c": 0.3}) == ["b", "c"]
    assert leaders({"a": 0.0, "b": 0.0}) == leaders({}) == []
    assert are_best([0.0, 0.0]) == are_best([0.2, 0.2]) == [False, False]
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert against_text(0.08, 0.01, "ease") == "+8.0 % against ease"
    assert against_text(None, 0.01, "ease") == "against 0.0000 of ease"


def test_the_fixed_column_has_nothing_beside_it(page):
    [rule] = re.findall(r"^\.scroll \{(.*?)\}", page, flags=re.MULTILINE)
    assert "padding" not in rule  # figures that scroll would show between the edge and the column
    assert "tr.heading td:first-child { max-width: 0;" in page  # nor is the column as wide as a heading


def test_the_rules_of_a_table_go_through_on_a_phone(page):
    phone = page.split("@media (max-width: 560px)")[1].split("</style>")[0]
    assert "box-shadow" not in page  # it is drawn cell by cell, and ends above every rule
    assert "border-right: 1px solid var(--grid)" in phone
    [height] = re.findall(r"^th, td \{.*?line-height: (.*?);", page, flags=re.MULTILINE)
    assert re.fullmatch(r"\d+px", height)  # fixed cells are placed at whole pixels, so rows must be


def test_a_long_name_leaves_room_for_the_figures_on_a_phone(page):
    [rule] = re.findall(r"^td:first-child \{(.*?)\}", page, flags=re.MULTILINE)
    assert "overflow-wrap: anywhere" in rule
    assert re.search(r"max-width: min\([1-4]\dvw", rule)


# parts of pages


def test_every_text_from_data_is_escaped(tmp_path):
    bad = "<script>alert('$x_{&')</script>"
    evaluation, other = (evaluate_model(Oracle(SPLIT, noise, 1, bad), SPLIT) for noise in (0.3, 1.0))
    gate = GateTable(DEGREE, GATE.gamma, {f"{bad}/{name}": values for name, values in GATE.contexts.items()})
    event = {"event": "grokking", "stage": bad, "epoch": 1, "branch": bad, "kind": "generalising"}
    log = [entry | {"branches": {bad: entry["branches"]["text"]}, "prior": {bad: 0.5}} for entry in branch_log()]
    summary = {"mean": 0.5, "q25": 0.4, "q50": 0.5, "q75": 0.6}
    log = [entry | {"gate": {bad: summary, f"clicks {bad}": summary}} for entry in log]
    rows = [ReportEntry(bad, evaluation, [*log, event], gate), ReportEntry(bad + "2", other)]
    write_report(tmp_path / "a.html", bad, rows, notes=[bad])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    parser = Outline()
    parser.feed(text)
    assert parser.open == []


def test_a_name_that_the_context_lacks_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        write_page(tmp_path / "a.html", "lab.html.j2")
    assert list(tmp_path.iterdir()) == []


def test_the_best_value_is_bold_only_where_there_is_a_best_one():
    assert [cell.best for cell in number_cells([0.1, 0.3, 0.2])] == [False, True, False]
    assert [cell.best for cell in number_cells([0.3, 0.3, 0.2])] == [True, True, False]
    for values in ([0.0, 0.0], [0.2, 0.2], [0.4], []):
        assert not any(cell.best for cell in number_cells(values))


def test_numbers_as_text():
    assert [percent(value) for value in (0.08, -0.5, 12.0)] == ["+8.0 %", "−50.0 %", "×13.0"]
    assert percent(-0.034, 0) == "−3 %"
    assert [percent(value) for value in (0.0, -0.0004, 0.0006)] == ["0.0 %", "0.0 %", "+0.1 %"]
    assert [number(0.07951), short(0.07951), short(-0.0042, "+"), short(1.0)] == ["0.0795", ".0795", "-.0042", "1.0000"]
    assert [signed(value) for value in (0.0042, -0.0042, -0.00001, 0.0)] == ["+0.0042", "−0.0042", "0", "0"]
    assert [spread(value) for value in (None, 0.0, 0.0012)] == ["", "±0", "±0.0012"]
    assert [short(value, "+") for value in (0.0, -0.00001, 0.00006)] == ["0", "0", "+.0001"]
    assert [interval(0.1, 0.25), interval(0.0, 0.0)] == ["0.1000–0.2500", ""]
    assert [interval_text(0.1, 0.25), interval_text(0.0, 0.0)] == [" (95 % interval 0.1000 to 0.2500)", ""]
    assert [p_value(p) for p in (0.0002, 0.034)] == ["<.001", ".034"]


def test_a_difference_from_zero_is_said_in_words():
    assert relative(None, 0.1) == "from 0"
    assert relative(None, 0.0) == "both 0"
    assert [relative(0.0, 0.0), relative(1e-17, 1e-17)] == ["equal", "equal"]  # rounding is no difference
    assert difference_cell(0.0, 0.0, 1.0).note == ""  # "p 1.000" says nothing of models that are equal
    assert (difference_cell(None, 0.0, 1.0).text, difference_cell(None, 0.0, 1.0).note) == ("both 0", "")
    assert difference_cell(None, 0.1, 0.001).note == "p .001"
    assert difference_cell(None, 0.0004, 1.0).note == "(not significant)"  # "from 0 p 1.000" says nothing
    kinds = [difference_cell(share, share, p).kind for share, p in ((0.1, 0.01), (-0.1, 0.01), (0.1, 0.2))]
    assert kinds == ["good", "bad", "same"]


def test_the_presentation_knows_nothing_of_studies_and_the_lab():
    files = Path(graphllmrec.report.__file__).parent.rglob("*.py")
    found = [path for path in files if re.search(r"graphllmrec\.(study|cli|grokking\.lab)", path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("users", "columns", "note"),
    [
        (10_000, 5_000, []),
        (8_897, 5_000, ["the gate was fitted on 8,897 of 10,000 validation users."]),
        (10_000, 3_251, ["the gate was fitted on 10,000 of 10,000 validation users, with 3,251 of 5,000 items each, a "
                         "sample of which stands for the rest."]),
    ],
)  # fmt: skip
def test_what_a_large_catalogue_left_out_of_the_gate_is_said(users, columns, note):
    event = {"event": "gate-users", "users": users, "of": 10_000, "columns": columns, "items": 5_000, "gb": 1.2}
    before = event | {"users": 3}  # of a fit that was started again
    assert _gate_notes([before, {"event": "epoch"}, event, {"event": "cold-lift"}]) == note
    assert _gate_notes([{"event": "cold-lift"}]) == []
