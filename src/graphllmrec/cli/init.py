"""`graphllmrec init`: looks at a data folder and writes the recipe it proposes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphllmrec.cli.common import Json, print_json, say

if TYPE_CHECKING:
    from graphllmrec.data.tables import Dataset
    from graphllmrec.proposal import Proposal


def init(
    data: Annotated[Path, typer.Argument(help="A data folder, or a table of interactions.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The recipe file to write.")] = Path("recipe.toml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --out names.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a data folder, say what was understood, and write a recipe for it with reasons and the expected cost."""
    from graphllmrec.data.read import load_data
    from graphllmrec.errors import RecipeError
    from graphllmrec.io import write_text
    from graphllmrec.proposal import propose

    if out.exists() and not overwrite:
        raise RecipeError(["there is such a file; choose another --out, or add --overwrite"], str(out))
    dataset = load_data(data)
    proposal = propose(dataset)
    write_text(out, proposal.to_toml())
    if as_json:
        print_json({"data": str(data), "out": str(out), **proposal.values()})
        return
    _print(data, out, dataset, proposal)


def _print(data: Path, out: Path, dataset: Dataset, proposal: Proposal) -> None:
    import shlex

    from rich.console import Console

    from graphllmrec.data.stats import columns_table, figures_table
    from graphllmrec.text.language import text_lines

    if data.is_dir():
        names = sorted(path.name for path in data.iterdir() if path.is_file() and not path.name.startswith("."))
        say(f"files: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    Console().print(figures_table(proposal.statistics, text_lines(proposal.statistics["text"])))
    if proposal.statistics["columns"]:
        Console().print(columns_table(dataset))
    for reason in proposal.reasons:
        say(f"why {proposal.name}: {reason}")
    for hint in proposal.hints:
        if hint not in proposal.statistics["notes"]:  # these are in the table
            say(f"look at: {hint}")
    say(f"expected on two idle cores: {proposal.time()}, {proposal.memory()}")
    place = shlex.join(["graphllmrec", "fit", str(out), "--data", str(data), "--out", "runs/first"])
    say(f"Proposed {proposal.name}, written to {out}. Next: {place}", "bold")
