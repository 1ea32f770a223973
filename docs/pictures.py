"""The pictures of the documentation, drawn from committed figures.

    python docs/pictures.py                        # strata.svg and decision.svg, into docs/images
    python docs/pictures.py --gate runs/hybrid     # gate.svg too, from a fitted run of the hybrid

Every picture has a light and a dark form; a style sheet in the file chooses by the reader's setting.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
STUDY = Path(__file__).parent.parent / "benchmarks" / "results" / "study-fusion.json"
SHOWN = {"ease": "#7a869a", "z-sum": "#2a9d8f", "sign": "#e9a13b", "hybrid": "#d1495b"}
STRATA = ("0", "1-3", "4-10", "11-50", ">50")
STYLE = """<style>
text { font-family: system-ui, sans-serif; font-size: 14px; fill: #1f2430; }
.small { font-size: 12px; } .bold { font-weight: 600; }
.axis, .arrow { stroke: #5c6370; fill: none; stroke-width: 1.5; } .grid { stroke: #5c637040; }
.question { fill: #e8eaf6; stroke: #3f51b5; stroke-width: 1.5; }
.answer { fill: #fff3e6; stroke: #d1662f; stroke-width: 1.5; }
.head { fill: #5c6370; } .ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8ee; } .axis, .arrow { stroke: #a5adba; } .grid { stroke: #a5adba40; }
  .head { fill: #a5adba; } .ground { fill: #1e2129; }
  .question { fill: #262c4a; stroke: #8c9eff; } .answer { fill: #43291a; stroke: #ffab7a; }
}
</style>"""


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """One picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            STYLE,
            '<rect width="100%" height="100%" class="ground"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(said)}</text>'


def bars(
    title: str, groups: dict[str, list[float]], labels: tuple[str, ...], colours: dict[str, str], axis: str
) -> str:
    """Grouped bars: one group per label, one bar per key of `groups`."""
    width, left, top, high = 720, 56, 56, 220
    largest = max(max(values) for values in groups.values())
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if largest / step <= 6)
    ceiling = step * (int(largest / step) + 1)
    parts = []
    for place, (name, colour) in enumerate(colours.items()):
        parts.append(f'<rect x="{left + 130 * place}" y="14" width="14" height="14" fill="{colour}"/>')
        parts.append(text(left + 20 + 130 * place, 26, name, anchor="start"))
    for number in range(int(ceiling / step) + 1):
        y = top + high * (1 - number * step / ceiling)
        parts.append(f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(text(left - 8, y + 4, f"{number * step:.2f}".removeprefix("0"), "small", "end"))
    wide = (width - 8 - left) / len(labels)
    bar = wide * 0.8 / len(groups)
    for at, label in enumerate(labels):
        for place, (name, values) in enumerate(groups.items()):
            tall = high * values[at] / ceiling
            x = left + at * wide + wide * 0.1 + place * bar
            said = f"{name}, {label}: {values[at]:.4f}"
            parts.append(
                f'<rect x="{x:.1f}" y="{top + high - tall:.1f}" width="{bar - 2:.1f}" height="{max(tall, 1):.1f}" '
                f'fill="{colours[name]}"><title>{escape(said)}</title></rect>'
            )
        parts.append(text(left + (at + 0.5) * wide, top + high + 20, label))
    parts.append(text(left + (width - 8 - left) / 2, top + high + 42, axis, "small"))
    return svg(width, top + high + 56, title, parts)


def strata() -> str:
    """NDCG@20 by training clicks of the target item, four recipes on amazon-scientific."""
    entries = {
        entry["label"]: [entry["strata"]["item_degree"][key]["ndcg@20"]["mean"] for key in STRATA]
        for entry in json.loads(STUDY.read_text(encoding="utf-8"))["entries"]
        if entry["data"] == "amazon-scientific" and entry["label"] in SHOWN
    }
    groups = {name: entries[name] for name in SHOWN}
    return bars("NDCG@20 by training clicks", groups, STRATA, SHOWN, "training clicks of the target item; NDCG@20")


def gate(run: Path) -> str:
    """Mean gate of the items of a fitted run, by their training clicks."""
    import numpy as np

    from graphllmrec import Recommender

    fitted = Recommender.load(run)
    values = fitted.model.gate_values()[0].numpy()  # type: ignore[attr-defined]
    degree = np.bincount(fitted.split.train.item, minlength=fitted.split.num_items)
    edges = ((0, 0), (1, 3), (4, 10), (11, 50), (51, int(degree.max())))
    means = [float(values[(degree >= low) & (degree <= high)].mean()) for low, high in edges]
    return bars("The gate by training clicks", {"gate": means}, STRATA, {"gate": "#d1495b"},
                "training clicks of the item; mean weight of the text branch (0 to 1)")  # fmt: skip


def decision() -> str:
    """The chart of docs/tutorials/choosing-a-model.md."""
    rows = [  # question, what to do when the answer is no; yes leads down
        (["Do the items have text?"], "no", [["no new items to rank:"], ["lightgcn-fast, ials", "or ease"]]),
        (["Do the clicks have an order", "(timestamp or position)?"], "no", [["not ordered:"], ["textgcn or recmind"]]),
        (["Is there time to train", "(minutes to an hour)?"], "no", [["nothing is trained:"], ["z-sum"]]),
        (["Must it be one single model?"], "yes", [["one trained model:"], ["sign"]]),
    ]  # fmt: skip
    parts = [
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto">'
        '<path d="M0,0 L9,4.5 L0,9 z" class="head"/></marker></defs>'
    ]
    y, gap, tall = 10, 100, 60
    for number, (question, aside, answer) in enumerate(rows):
        middle = y + tall / 2
        parts.append(f'<rect x="10" y="{y}" width="270" height="{tall}" rx="10" class="question"/>')
        for line, said in enumerate(question):
            parts.append(text(145, middle + 5 + 18 * line - 9 * (len(question) - 1), said))
        parts.append(f'<path d="M280,{middle} H372" class="arrow" marker-end="url(#tip)"/>')
        parts.append(text(322, middle - 8, aside, "small"))
        parts.append(f'<rect x="376" y="{y}" width="214" height="{tall}" rx="10" class="answer"/>')
        lines = [(said, "small") for said in answer[0]] + [(said, "bold") for said in answer[1]]
        for line, (said, kind) in enumerate(lines):
            parts.append(text(483, middle + 5 + 18 * line - 9 * (len(lines) - 1), said, kind))
        parts.append(f'<path d="M145,{y + tall} V{y + gap - 4}" class="arrow" marker-end="url(#tip)"/>')
        parts.append(text(154, y + tall + 24, "no" if aside == "yes" else "yes", "small", "start"))
        y += gap
        assert number < len(rows)
    parts.append(f'<rect x="10" y="{y}" width="270" height="{tall}" rx="10" class="answer"/>')
    parts.append(text(145, y + 26, "the most accurate one:", "small"))
    parts.append(text(145, y + 46, "hybrid", "bold"))
    return svg(600, y + tall + 10, "Which recipe to start with", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gate", type=Path, metavar="RUN", help="a fitted run of the hybrid; draws gate.svg from it")
    wanted = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    pictures = {"strata.svg": strata(), "decision.svg": decision()}
    if wanted.gate is not None:
        pictures["gate.svg"] = gate(wanted.gate)
    for name, drawn in pictures.items():
        (IMAGES / name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
